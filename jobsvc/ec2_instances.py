"""What a cluster has on EC2: machines, disks, addresses and spot requests with its tag; how they are ended.

Ray tags its instances with `ray-cluster-name`; the cluster file's TagSpecifications put the same tag on
volumes, and whoever makes an Elastic IP for the cluster tags it likewise. Nothing else is ever looked at:
each answer of EC2 is checked for the tag once more here, so that no filter that EC2 reads in its own way can
bring in others.

Calls fail. What may go better the next time is tried again here, with growing pauses; that an object is gone
already is success. What is left is an `Ec2Error`, and says whether it can go better later: a caller that
works in rounds goes on with the rest and comes back. boto3's own retries are off, so that there is one
policy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from .errors import JobsvcError

CLUSTER_TAG = "ray-cluster-name"
KIND_TAG = "ray-node-type"  # "type" for historical reasons: the values are head, worker, unmanaged
NODE_TYPE_TAG = "ray-user-node-type"
HEAD = "head"

TRIES = 6
PAUSE_SECONDS = 0.25  # doubles with each try
PAUSE_SECONDS_MAX = 8.0
CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 20
TERMINATE_AT_ONCE = 100

BUSY = {
    "InternalError",
    "InternalFailure",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestTimeout",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "Unavailable",
}
# It is so now and need not stay so: an object between two states, a disk whose machine has not ended yet.
NOT_NOW = {
    "DependencyViolation",
    "IncorrectInstanceState",
    "IncorrectState",
    "InvalidIPAddress.InUse",
    "ResourceLocked",
    "VolumeInUse",
}
STARTS = {"open", "active", "disabled"}  # states of a spot request that is not over
GONE = {
    "InvalidAllocationID.NotFound",
    "InvalidAssociationID.NotFound",
    "InvalidInstanceID.NotFound",
    "InvalidSpotInstanceRequestID.NotFound",
    "InvalidVolume.NotFound",
}


class Ec2Error(JobsvcError):
    """A call was not done. `may_pass`: later it may be."""

    def __init__(self, detail: str, code: str = "", *, may_pass: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.may_pass = may_pass


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A machine. `kept_volumes` are attached to it and stay when it ends."""

    id: str
    state: str  # pending, running, stopping, stopped, shutting-down, terminated
    kind: str  # head, worker, or "" if Ray has not said
    node_type: str
    launched_at: float  # Unix seconds; of the last start, not the first
    private_ip: str
    public_ip: str
    kept_volumes: tuple[str, ...]

    @property
    def is_up(self) -> bool:
        return self.state in ("pending", "running")

    @property
    def is_ended(self) -> bool:
        return self.state in ("shutting-down", "terminated")


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A disk, and the machines it is attached to."""

    id: str
    state: str  # creating, available, in-use, deleting, deleted, error
    created_at: float
    instances: tuple[str, ...]


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An Elastic IP. It may be associated with a network interface that belongs to no machine."""

    id: str
    public_ip: str
    association: str
    instance: str


class SpotRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One that starts a machine again whenever it has none, until it is cancelled."""

    id: str
    state: str  # open, active, disabled
    instance: str


def ec2_client(region: str, credentials: Mapping[str, str] | None = None) -> Any:
    """boto3's client: its usual places for credentials and address, one attempt for each call."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
    )
    return boto3.session.Session().client("ec2", region_name=region, config=config, **(credentials or {}))


class Ec2:
    """The calls. `client` is boto3's, made with one attempt for each call."""

    def __init__(self, client: Any, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._sleep = sleep

    # --- looking --------------------------------------------------------------------------------

    def instances(self, cluster_name: str) -> list[Instance]:
        """Those that ended less than an hour ago included."""
        pages = self._pages("describe_instances", "Reservations", Filters=_tagged(cluster_name))
        found = [each for reservation in pages for each in reservation["Instances"]]
        return [_instance(each) for each in found if _carries(each, cluster_name)]

    def volumes(self, cluster_name: str) -> list[Volume]:
        pages = self._pages("describe_volumes", "Volumes", Filters=_tagged(cluster_name))
        return [_volume(each) for each in pages if _carries(each, cluster_name)]

    def addresses(self, cluster_name: str) -> list[Address]:
        found = self._call("describe_addresses", Filters=_tagged(cluster_name)).get("Addresses", [])
        return [_address(each) for each in found if _carries(each, cluster_name)]

    def persistent_spot_requests(self, cluster_name: str) -> list[SpotRequest]:
        """Those that can still start a machine. (A request for one machine once is over with it.)"""
        pages = self._pages(
            "describe_spot_instance_requests", "SpotInstanceRequests", Filters=_tagged(cluster_name)
        )
        return [
            _spot_request(each)
            for each in pages
            if _carries(each, cluster_name) and each.get("Type") == "persistent" and each["State"] in STARTS
        ]

    # --- ending ---------------------------------------------------------------------------------

    def terminate(self, ids: Sequence[str]) -> dict[str, Ec2Error]:
        """End these machines; returns those that EC2 did not take, and why.

        EC2 ends all of a call's machines or none, so one that is refused must not keep the others.
        """
        failed: dict[str, Ec2Error] = {}
        for start in range(0, len(ids), TERMINATE_AT_ONCE):
            some = list(ids[start : start + TERMINATE_AT_ONCE])
            try:
                self._call("terminate_instances", InstanceIds=some)
            except Ec2Error as error:
                if len(some) == 1 and error.code not in GONE:
                    failed[some[0]] = error
                elif len(some) > 1 and error.may_pass:
                    failed.update(dict.fromkeys(some, error))
                elif len(some) > 1:
                    for each in some:
                        failed.update(self.terminate([each]))
        return failed

    def delete_volume(self, volume: Volume) -> None:
        """Delete a disk that is attached to nothing. Raises Ec2Error."""
        self._ended("delete_volume", VolumeId=volume.id)

    def release(self, address: Address) -> None:
        """Give an address back; from its machine too, if it has one. Raises Ec2Error."""
        if address.association:
            self._ended("disassociate_address", AssociationId=address.association)
        self._ended("release_address", AllocationId=address.id)

    def cancel(self, request: SpotRequest) -> None:
        """Have it start no more machines; the one that it has is not touched. Raises Ec2Error."""
        self._ended("cancel_spot_instance_requests", SpotInstanceRequestIds=[request.id])

    # --- one call -------------------------------------------------------------------------------

    def _ended(self, operation: str, **arguments: Any) -> None:
        try:
            self._call(operation, **arguments)
        except Ec2Error as error:
            if error.code not in GONE:
                raise

    def _pages(self, operation: str, key: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self._call(operation, **arguments)
            yield from page.get(key, [])
            if not page.get("NextToken"):
                return
            arguments["NextToken"] = page["NextToken"]

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        pause_seconds = PAUSE_SECONDS
        for tries_left in reversed(range(TRIES)):
            try:
                answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
                return answer
            except Exception as error:
                failure, may_try_again = _meaning(operation, error)
                if not (may_try_again and tries_left):
                    raise failure from error
            self._sleep(pause_seconds * random.uniform(0.5, 1.0))
            pause_seconds = min(pause_seconds * 2, PAUSE_SECONDS_MAX)
        raise AssertionError("the last try returns or raises")


def _meaning(operation: str, error: Exception) -> tuple[Ec2Error, bool]:
    """What a failure of boto3 means, and whether to call again at once. Raises what is a defect of ours."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        busy = code in BUSY or status >= 500
        text = f"{operation}: {error.response.get('Error', {}).get('Message') or code} ({code})"
        return Ec2Error(text, code, may_pass=busy or code in NOT_NOW), busy
    settings = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.NoRegionError)
    if isinstance(error, settings):
        return Ec2Error(f"{operation}: {error}"), False
    if isinstance(error, boto.ParamValidationError):
        raise error
    if isinstance(error, boto.BotoCoreError | boto.HTTPClientError | OSError):
        return Ec2Error(f"{operation}: {error}", may_pass=True), True
    raise error


# --- answers --------------------------------------------------------------------------------------


def _tagged(cluster_name: str) -> list[dict[str, Any]]:
    return [{"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster_name]}]


def _carries(entry: Mapping[str, Any], cluster_name: str) -> bool:
    return _tags(entry).get(CLUSTER_TAG) == cluster_name


def _tags(entry: Mapping[str, Any]) -> dict[str, str]:
    return {each["Key"]: each.get("Value", "") for each in entry.get("Tags") or []}


def _instance(entry: Mapping[str, Any]) -> Instance:
    tags = _tags(entry)
    disks = [each.get("Ebs") or {} for each in entry.get("BlockDeviceMappings") or []]
    return Instance(
        id=entry["InstanceId"],
        state=entry["State"]["Name"],
        kind=tags.get(KIND_TAG, ""),
        node_type=tags.get(NODE_TYPE_TAG, ""),
        launched_at=_unix(entry.get("LaunchTime")),
        private_ip=entry.get("PrivateIpAddress") or "",
        public_ip=entry.get("PublicIpAddress") or "",
        kept_volumes=tuple(
            each["VolumeId"] for each in disks if each.get("VolumeId") and not each.get("DeleteOnTermination")
        ),
    )


def _volume(entry: Mapping[str, Any]) -> Volume:
    return Volume(
        id=entry["VolumeId"],
        state=entry["State"],
        created_at=_unix(entry.get("CreateTime")),
        instances=tuple(each["InstanceId"] for each in entry.get("Attachments") or []),
    )


def _address(entry: Mapping[str, Any]) -> Address:
    return Address(
        id=entry["AllocationId"],
        public_ip=entry.get("PublicIp", ""),
        association=entry.get("AssociationId") or "",
        instance=entry.get("InstanceId") or "",
    )


def _spot_request(entry: Mapping[str, Any]) -> SpotRequest:
    return SpotRequest(
        id=entry["SpotInstanceRequestId"], state=entry["State"], instance=entry.get("InstanceId") or ""
    )


def _unix(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0
