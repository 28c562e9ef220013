"""EC2 for tests: moto in this process, machines and disks as a cluster leaves them, and calls that fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from jobsvc.ec2_instances import CLUSTER_TAG, KIND_TAG, NODE_TYPE_TAG, ec2_client
from jobsvc.ec2_sweep import Clock

REGION = "eu-central-1"
CLUSTER = "harvest"
CLUSTER_YAML = f"""
cluster_name: {CLUSTER}
max_workers: 10
provider: {{type: aws, region: {REGION}, cache_stopped_nodes: false}}
auth: {{ssh_user: ubuntu}}
head_node_type: head
available_node_types:
  head:
    resources: {{CPU: 0, jobsvc_manager: 1}}
    node_config: {{InstanceType: m7i.large}}
  manager:
    resources: {{CPU: 0, jobsvc_manager: 1}}
    node_config: {{InstanceType: m7i.large}}
  worker:
    node_config: {{InstanceType: c7i.xlarge}}
"""


class Ec2World:
    """Use inside `mock_aws()`. Everything carries the tag of `CLUSTER` unless said otherwise."""

    def __init__(self) -> None:
        self.client = ec2_client(REGION)
        zones = self.client.describe_availability_zones()["AvailabilityZones"]
        self._zone = zones[0]["ZoneName"]

    # --- things --------------------------------------------------------------------------------

    def machine(
        self, node_type: str = "worker", *, cluster: str | None = CLUSTER, stopped: bool = False
    ) -> str:
        tags = {KIND_TAG: "head" if node_type == "head" else "worker", NODE_TYPE_TAG: node_type}
        if cluster is not None:
            tags[CLUSTER_TAG] = cluster
        made = self.client.run_instances(
            ImageId="ami-12c6146b",
            InstanceType="m5.large",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": _pairs(tags)}],
        )
        name = str(made["Instances"][0]["InstanceId"])
        if stopped:
            self.client.stop_instances(InstanceIds=[name])
        return name

    def whole_cluster(self, workers: int = 2) -> list[str]:
        return [self.machine("head"), self.machine("manager"), *(self.machine() for _ in range(workers))]

    def volume(self, *, cluster: str | None = CLUSTER, machine: str | None = None) -> str:
        tags = {} if cluster is None else {CLUSTER_TAG: cluster}
        specifications = [{"ResourceType": "volume", "Tags": _pairs(tags)}] if tags else []
        made = self.client.create_volume(
            AvailabilityZone=self._zone, Size=8, TagSpecifications=specifications
        )
        name = str(made["VolumeId"])
        if machine is not None:
            self.client.attach_volume(VolumeId=name, InstanceId=machine, Device="/dev/sdf")
        return name

    def address(self, *, cluster: str | None = CLUSTER, machine: str | None = None) -> str:
        made = self.client.allocate_address(Domain="vpc")
        name = str(made["AllocationId"])
        if cluster is not None:
            self.client.create_tags(Resources=[name], Tags=_pairs({CLUSTER_TAG: cluster}))
        if machine is not None:
            self.client.associate_address(AllocationId=name, InstanceId=machine)
        return name

    def spot_request(self, *, cluster: str | None = CLUSTER, kind: str = "persistent") -> str:
        tags = {} if cluster is None else {CLUSTER_TAG: cluster}
        made = self.client.request_spot_instances(
            InstanceCount=1, Type=kind, LaunchSpecification={"ImageId": "ami-12c6146b"}
        )["SpotInstanceRequests"][0]
        if tags:
            names = [made["SpotInstanceRequestId"], made["InstanceId"]]
            self.client.create_tags(Resources=names, Tags=_pairs(tags))
        return str(made["SpotInstanceRequestId"])

    def spot_requests(self) -> set[str]:
        """Those that are not over; moto forgets the others."""
        found = self.client.describe_spot_instance_requests()["SpotInstanceRequests"]
        return {each["SpotInstanceRequestId"] for each in found}

    # --- what there is -------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """Everything that costs money, by id, whoever owns it."""
        pages = self.client.describe_instances()["Reservations"]
        machines = [each for reservation in pages for each in reservation["Instances"]]
        found = {each["InstanceId"]: each["State"]["Name"] for each in machines}
        found = {name: state for name, state in found.items() if state != "terminated"}
        found |= {each["VolumeId"]: each["State"] for each in self.client.describe_volumes()["Volumes"]}
        addresses = self.client.describe_addresses()["Addresses"]
        return found | {each["AllocationId"]: each.get("InstanceId") or "free" for each in addresses}


class TurnedClock(Clock):
    """Sleeping takes no time and moves it on. It stands an hour ahead, so that nothing in moto is young."""

    def __init__(self, ahead_seconds: float = 3600.0) -> None:
        self.seconds = super().now() + ahead_seconds
        self.after_sleep: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.after_sleep()


class FlakyClient:
    """Half of the calls fail: some before they are done, some after, so that only the answer is lost."""

    def __init__(self, client: Any, seed: int, *, fail_rate: float = 0.5, names: str = "") -> None:
        self._client = client
        self._random = random.Random(seed)
        self._fail_rate = fail_rate
        self._names = names.split()  # calls that may fail; none: all
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            self.calls.append(name)
            fails = self._random.random() < self._fail_rate and (not self._names or name in self._names)
            is_done = self._random.random() < 0.5
            if fails and not is_done:
                raise refusal(name, "ServiceUnavailable", 503)
            answer = getattr(self._client, name)(**arguments)
            if fails:
                raise refusal(name, "RequestLimitExceeded", 503)
            return answer

        return call


def refusal(operation: str, code: str, status: int = 400) -> Exception:
    from botocore.exceptions import ClientError

    response: Any = {
        "Error": {"Code": code, "Message": f"EC2 said {code}"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, operation)


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
