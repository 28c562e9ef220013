"""`jobsvc doctor --cluster`: each trap is found by its own finding, and by no other.

The file is the shipped one. AWS is played by moto; what moto does not play (IAM's simulation of rights) is
answered by the test.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.ec2.models import ec2_backends
from typer.testing import CliRunner

from jobsvc.cli import app
from jobsvc.cluster_aws_checks import Clients, boto3_clients, examine_aws
from jobsvc.cluster_doctor import examine_cluster, examine_file
from jobsvc.cluster_file import read_cluster_file
from jobsvc.doctor import Finding

from .cluster_files import (
    BUCKET,
    KEY,
    REGION,
    SHIPPED,
    cluster_of,
    filled_document,
    filled_text,
    make_secrets,
)

Document = dict[str, Any]
Change = Callable[[Document], object]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_secrets(tmp_path)
    return tmp_path


def failing(findings: list[Finding]) -> dict[str, str]:
    return {each.check: each.found for each in findings if not each.ok}


def types(document: Document) -> Document:
    found: Document = document["available_node_types"]
    return found


def machine(document: Document, name: str = "worker-m6i") -> Document:
    found: Document = types(document)[name]["node_config"]
    return found


def each_machine(document: Document) -> list[Document]:
    return [entry["node_config"] for entry in types(document).values()]


def edit(document: Document, field: str, old: str, new: str) -> None:
    document[field] = [command.replace(old, new) for command in document[field]]


# --- the file alone -------------------------------------------------------------------------------

OPEN_SSH = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
OPEN_6 = {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
SPOT = {"MarketType": "spot"}
PERSISTENT = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "persistent"}}
GPU_POOL = '{"default": {}, "gpu": {"num_gpus": 1}}'
HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"

TRAPS: list[tuple[str, Change, str, str]] = [  # what, how the file gets it, which finding, what it says
    ("a typo", lambda d: d.update(upscaling_sped=10), "schema", "upscaling_sped"),
    ("text for a number", lambda d: d.update(docker=7), "schema", "docker"),
    ("keys in the file", lambda d: d["provider"].update(aws_credentials={"aws_access_key_id": "A"}),
     "roles", "into the store"),
    ("no word on stopping", lambda d: d["provider"].pop("cache_stopped_nodes"),
     "stopped machines", "stopped"),
    ("stopping", lambda d: d["provider"].update(cache_stopped_nodes=True), "stopped machines", "stopped"),
    ("shutdown stops", lambda d: machine(d).pop("InstanceInitiatedShutdownBehavior"),
     "shutdown", "worker-m6i"),
    ("disk stays", lambda d: machine(d)["BlockDeviceMappings"][0]["Ebs"].pop("DeleteOnTermination"),
     "disks", "DeleteOnTermination"),
    ("no word on disks", lambda d: machine(d, "head").pop("BlockDeviceMappings"), "disks", "head"),
    ("disks without a tag", lambda d: machine(d)["TagSpecifications"].pop(), "disk tags", "sweep"),
    ("another cluster's disks", lambda d: d.update(cluster_name="other"), "disk tags", "=other"),
    ("IMDSv1", lambda d: machine(d).pop("MetadataOptions"), "instance metadata", "IMDSv2"),
    ("no IMDS", lambda d: machine(d)["MetadataOptions"].update(HttpEndpoint="disabled"),
     "instance metadata", "spot notice"),
    ("worker without role", lambda d: machine(d).pop("IamInstanceProfile"), "roles", "no S3"),
    ("worker with the head's role", lambda d: machine(d).update(IamInstanceProfile={"Name": "jobsvc-head"}),
     "roles", "every job could"),
    ("manager with the workers' role",
     lambda d: machine(d, "manager").update(IamInstanceProfile={"Arn": "arn:x:/jobsvc-worker"}),
     "roles", "guard"),
    ("Ray's own group", lambda d: machine(d, "head").pop("SecurityGroupIds"), "open ports", "whole world"),
    ("open group in the file", lambda d: d["provider"].update(security_group={"IpPermissions": [OPEN_SSH]}),
     "open ports", "port 22"),
    ("open to all of IPv6", lambda d: d["provider"].update(security_group={"IpPermissions": [OPEN_6]}),
     "open ports", "every port"),
    ("no image", lambda d: machine(d).pop("ImageId"), "image", "18.04"),
    ("Ray's image", lambda d: machine(d).update(ImageId="latest_dlami"), "image", "18.04"),
    ("not an image", lambda d: machine(d).update(ImageId="ubuntu"), "image", "not an image's id"),
    ("no key name", lambda d: machine(d).pop("KeyName"), "key", "log in"),
    ("no key", lambda d: d["auth"].pop("ssh_private_key"), "key", "key pair of its own"),
    ("no such key", lambda d: d["auth"].update(ssh_private_key="~/.ssh/none.pem"), "key", "No such file"),
    ("no authentication on the head", lambda d: edit(d, HEAD, "RAY_AUTH_MODE=token ", ""), "tokens", HEAD),
    ("no authentication on workers", lambda d: edit(d, WORKER, "=token", "=disabled"), "tokens", WORKER),
    ("Ray's token not mounted", lambda d: d["file_mounts"].pop("~/.ray/auth_token"), "tokens", "auth_token"),
    ("our token not mounted", lambda d: d["file_mounts"].pop("~/.jobsvc/token"), "tokens", "~/.jobsvc/token"),
    ("token is not there", lambda d: d["file_mounts"].update({"~/.ray/auth_token": "~/none"}),
     "tokens", "--generate"),
    ("source is not there", lambda d: d["file_mounts"].update({"~/x": "./none"}), "file mounts", "./none"),
    ("key left behind", lambda d: d["rsync_exclude"].append("*.pem"), "file mounts", "no other machine"),
    ("long idle time", lambda d: d.update(idle_timeout_minutes=60), "idle time", "60"),
    ("long idle time of a type", lambda d: types(d)["worker-m6i"].update(idle_timeout_s=7200),
     "idle time", "7200"),
    ("workers without work", lambda d: types(d)["worker-m6i"].update(min_workers=1), "idle time", "no work"),
    ("Ray's speed", lambda d: d.pop("upscaling_speed"), "upscaling", "upscaling_speed is 1"),
    ("no room", lambda d: d.update(max_workers=1), "limits", "no room"),
    ("less than the least", lambda d: d.update(max_workers=0), "limits", "min_workers"),
    ("a machine that comes back", lambda d: machine(d).update(InstanceMarketOptions=PERSISTENT),
     "spot types", "again"),
    ("one kind of machine", lambda d: machine(d).update(InstanceType="m5a.xlarge"),
     "spot types", "m5a.xlarge"),
    ("jobs on the head", lambda d: types(d)["head"]["resources"].pop("CPU"), "head", "CPU: 0"),
    ("spot head", lambda d: machine(d, "head").update(InstanceMarketOptions=SPOT), "head", "spot"),
    ("one manager", lambda d: types(d)["manager"].update(min_workers=0), "pair", "two managers"),
    ("both on the head", lambda d: types(d)["head"]["resources"].pop("jobsvc_http"), "pair", "two ways in"),
    ("spot manager", lambda d: machine(d, "manager").update(InstanceMarketOptions=SPOT), "pair", "spot"),
    ("a GPU that no machine has",
     lambda d: edit(d, HEAD, "node head", f"node head --settings pools='{GPU_POOL}'"),
     "pools", "pool gpu: no node type has this shape (1 CPU, 1 GPU)"),
    ("more cores than a machine",
     lambda d: edit(d, HEAD, "export ", """export JOBSVC_POOLS='{"default": {"num_cpus": 16}}' """),
     "pools", "16 CPU"),
    ("not a pool", lambda d: edit(d, HEAD, "node head", "node head --settings pools=7"),
     "pools", "pools: Expected"),
    ("no place for data", lambda d: edit(d, HEAD, f"--data s3://{BUCKET}/jobsvc", ""), "data", "--data"),
    ("two places for data", lambda d: edit(d, WORKER, "/jobsvc", "/other"), "data", "/other"),
    ("not a bucket", lambda d: [edit(d, each, BUCKET, "Jobs") for each in (HEAD, WORKER)],
     "data", "'Jobs'"),
    ("no prefix", lambda d: [edit(d, each, f"{BUCKET}/jobsvc", BUCKET) for each in (HEAD, WORKER)],
     "data", "prefix"),
    ("plain ray start", lambda d: edit(d, WORKER, "jobsvc node worker", "ray start"),
     "start commands", WORKER),
    ("nodes that die with the head", lambda d: edit(d, WORKER, "timeout_s=600", "timeout_s=60"),
     "start commands", "reconnect_timeout"),
    ("an hour for a dead machine", lambda d: edit(d, HEAD, "ALLOCATE_STATUS_TIMEOUT_S=900", "X=1"),
     "start commands", "ALLOCATE"),
    ("another region", lambda d: edit(d, WORKER, REGION, "eu-west-1"), "start commands", "eu-west-1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "check", "says"), [t[1:] for t in TRAPS], ids=[t[0] for t in TRAPS])
def test_each_trap_is_found_by_its_own_finding(change: Change, check: str, says: str) -> None:
    # given the shipped file with one thing changed
    document = filled_document()
    change(document)
    # then that is found, and nothing else
    found = failing(examine_file(cluster_of(document)))
    if check == "data" and "data" in found:
        found.pop("start commands", None)
    assert list(found) == [check], found
    assert says in found[check]


@pytest.mark.parametrize(
    ("secret", "says"), [("", "no secret"), ("short", "no secret"), ("FILL_IN_TOKEN_HERE", "placeholder")]
)
def test_a_token_that_is_none_is_found(home: Path, secret: str, says: str) -> None:
    (home / ".jobsvc" / "token").write_text(secret)
    assert says in failing(examine_file(cluster_of(filled_document())))["tokens"]


def test_secrets_that_others_may_read_are_found(home: Path) -> None:
    for name in (".ray/auth_token", f".ssh/{KEY}.pem"):
        (home / name).chmod(0o644)
    found = failing(examine_file(cluster_of(filled_document())))
    assert set(found) == {"tokens", "key"}
    assert all("chmod 600" in text for text in found.values())


def test_a_mount_with_a_venv_in_it_is_found(tmp_path: Path) -> None:
    # given a folder that Ray would read through, .venv and all
    (tmp_path / "project" / ".venv").mkdir(parents=True)
    document = filled_document()
    document["file_mounts"]["~/project"] = str(tmp_path / "project")
    assert ".venv" in failing(examine_file(cluster_of(document)))["file mounts"]


def test_many_complaints_of_one_kind_are_cut_short() -> None:
    document = filled_document()
    for each in each_machine(document):
        each.pop("KeyName")
    assert failing(examine_file(cluster_of(document)))["key"].endswith("and 1 more")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: machine(d).update(BlockDeviceMappings="x", MetadataOptions=[], TagSpecifications={}),
        lambda d: machine(d).update(IamInstanceProfile="jobsvc-worker"),
        lambda d: d.update(idle_timeout_minutes="soon"),
        lambda d: d.update(rsync_exclude=7),
        lambda d: d["provider"].update(security_group={"IpPermissions": [{"IpRanges": [{"CidrIp": "x"}]}]}),
    ],
)
def test_nonsense_in_the_file_is_a_finding_and_no_crash(change: Change) -> None:
    document = filled_document()
    change(document)
    assert failing(examine_file(cluster_of(document)))


# --- AWS ------------------------------------------------------------------------------------------


class World:
    """An account in which all is as docs/ec2.md makes it."""

    def __init__(self, client: Clients) -> None:
        self.client = client
        self.denied: set[str] = {
            "s3:GetObject cluster",
            "s3:DeleteObject pulse",
        }  # "action part-of-resource" that IAM's simulation denies
        self.quotas = {"L-1216C47A": 4096.0, "L-34B43A08": 4096.0}  # on demand, spot
        self.s3 = client("s3")
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.ec2 = client("ec2")
        self.ec2.create_key_pair(KeyName=KEY)
        vpc = self.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        self.group = self.ec2.create_security_group(GroupName="jobsvc", Description="-", VpcId=vpc)["GroupId"]
        self.allow({"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": self.group}]})
        self.image = self.registered("/dev/sda1", "x86_64")
        self.iam = client("iam")
        for name in ("jobsvc-head", "jobsvc-worker"):
            self.iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
            self.iam.create_instance_profile(InstanceProfileName=name)
            self.iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        self.iam.create_role(RoleName="AWSServiceRoleForEC2Spot", AssumeRolePolicyDocument="{}")

    def allow(self, permission: Document) -> None:
        self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[permission])

    def registered(self, device: str, architecture: str) -> str:
        answer = self.ec2.register_image(
            Name=f"image {architecture}", RootDeviceName=device, Architecture=architecture
        )
        found: str = answer["ImageId"]
        image = ec2_backends["123456789012"][REGION].amis[found]
        image.architecture, image.root_device_name = architecture, device  # which moto forgets
        return found

    def document(self) -> Document:
        document = filled_document()
        for each in each_machine(document):
            each.update(ImageId=self.image, SecurityGroupIds=[self.group])
        return document

    def simulate(self, arguments: Document) -> Document:
        action, resource = arguments["ActionNames"][0], arguments["ResourceArns"][0]
        denied = any(action == each.split()[0] and each.split()[1] in resource for each in self.denied)
        return {"EvaluationResults": [{"EvalDecision": "implicitDeny" if denied else "allowed"}]}


@pytest.fixture(scope="module")
def clients() -> Clients:
    """Made once: reading EC2's model takes longer than a test."""
    session = boto3.session.Session("test", "test")
    return functools.cache(lambda service: session.client(service, region_name=REGION))


@pytest.fixture
def world(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # a second for each test
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        world = World(clients)
        asked = BaseClient._make_api_call

        def call(client: Any, operation: str, arguments: Document) -> Any:
            if operation == "SimulatePrincipalPolicy":
                return world.simulate(arguments)
            if operation == "GetServiceQuota":
                return {"Quota": {"Value": world.quotas[arguments["QuotaCode"]]}}
            return asked(client, operation, arguments)

        monkeypatch.setattr(BaseClient, "_make_api_call", call)
        yield world


def asked(
    document: Document, clients: Clients | None = None, now: Callable[[], float] = time.time
) -> list[Finding]:
    cluster = cluster_of(document)
    return examine_aws(cluster, clients or boto3_clients(cluster), now)


def test_in_a_good_account_nothing_is_wrong_and_all_is_checked(world: World) -> None:
    findings = asked(world.document(), world.client)
    assert failing(findings) == {}
    assert not any("not checked" in each.found for each in findings)
    assert len(findings) == 11


def rule(**what: Any) -> Document:
    return {"Rules": [{"ID": "old", "Status": "Enabled", "Filter": {"Prefix": ""}, **what}]}


def expire(world: World, document: Document) -> None:
    configuration = rule(Expiration={"Days": 30})
    world.s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=configuration)


def keep_versions(world: World, document: Document) -> None:
    world.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})


def move_bucket(world: World, document: Document) -> None:
    world.s3.delete_bucket(Bucket=BUCKET)
    elsewhere = boto3.client("s3", region_name="eu-west-1")
    elsewhere.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})


def one_zone(world: World, document: Document) -> None:
    machine(document)["SubnetIds"] = [world.ec2.describe_subnets()["Subnets"][0]["SubnetId"]]


def no_public_addresses(world: World, document: Document) -> None:
    for each in world.ec2.describe_subnets()["Subnets"]:
        world.ec2.modify_subnet_attribute(SubnetId=each["SubnetId"], MapPublicIpOnLaunch={"Value": False})


def closed_group(world: World, document: Document) -> None:
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": world.group}]}
    world.ec2.revoke_security_group_ingress(GroupId=world.group, IpPermissions=[inside])


def empty_profile(world: World, document: Document) -> None:
    world.iam.remove_role_from_instance_profile(InstanceProfileName="jobsvc-worker", RoleName="jobsvc-worker")


def set_each(document: Document, **values: Any) -> None:
    for each in each_machine(document):
        each.update(values)


MISTAKES: list[tuple[Callable[[World, Document], object], str, str]] = [
    (lambda w, d: w.s3.delete_bucket(Bucket=BUCKET), "bucket", "aws s3 mb"),
    (move_bucket, "bucket", "eu-west-1"),
    (expire, "bucket", "journal"),
    (keep_versions, "bucket", "version"),
    (
        lambda w, d: machine(d).update(ImageId="ami-0123456789abcdef1"),
        "images",
        "does not exist in us-west-2",
    ),
    (lambda w, d: machine(d).update(ImageId=w.registered("/dev/xvda", "x86_64")), "images", "/dev/xvda"),
    (lambda w, d: set_each(d, ImageId=w.registered("/dev/sda1", "arm64")), "images", "arm64"),
    (lambda w, d: machine(d).update(InstanceType="m99.large"), "instance types", "m99.large"),
    (lambda w, d: types(d)["worker-m6i"].update(resources={"CPU": 16}), "instance types", "4 vCPUs"),
    (lambda w, d: w.ec2.delete_key_pair(KeyName=KEY), "key pair", KEY),
    (lambda w, d: w.allow(OPEN_SSH), "security group", "port 22 to the whole world"),
    (closed_group, "security group", "reach each other"),
    (
        lambda w, d: machine(d).update(SecurityGroupIds=[w.group, "sg-0123456789abcdef1"]),
        "security group",
        "exist",
    ),
    (one_zone, "subnets", "us-west-2a"),
    (no_public_addresses, "subnets", "use_internal_ips"),
    (lambda w, d: machine(d).update(SubnetIds=["subnet-0123456789abcdef0"]), "subnets", "not all exist"),
    (lambda w, d: machine(d).update(IamInstanceProfile={"Name": "nobody"}), "instance profiles", "nobody"),
    (empty_profile, "instance profiles", "no role"),
    (lambda w, d: w.iam.delete_role(RoleName="AWSServiceRoleForEC2Spot"), "instance profiles", "spot"),
    (lambda w, d: w.denied.add("iam:PassRole role/jobsvc-worker"), "rights", "iam:PassRole"),
    (lambda w, d: w.denied.add("ec2:RunInstances instance"), "rights", "ec2:RunInstances"),
    (lambda w, d: w.denied.add("s3:PutObject results"), "rights", "role/jobsvc-worker may not"),
    (lambda w, d: w.denied.remove("s3:GetObject cluster"), "rights", "SSH key"),
    (lambda w, d: w.denied.remove("s3:DeleteObject pulse"), "rights", "a dead head"),
]


@pytest.mark.parametrize(("mistake", "check", "says"), MISTAKES, ids=[f"{m[1]}: {m[2]}" for m in MISTAKES])
def test_each_mistake_in_the_account_is_found(
    world: World, mistake: Callable[[World, Document], object], check: str, says: str
) -> None:
    # given an account in which one thing is not as it has to be
    document = world.document()
    mistake(world, document)
    # then that is found, and nothing else
    found = failing(asked(document, world.client))
    assert list(found) == [check], found
    assert says in found[check]


@pytest.mark.parametrize(
    ("code", "needed", "market"),
    # two m6i.large; twenty machines of four vCPUs, less the manager node's place if there is no room for all
    [("L-1216C47A", 4, "on demand"), ("L-34B43A08", 80, "on spot")],
)
def test_a_quota_that_is_too_small_for_the_file_is_a_warning(
    world: World, code: str, needed: int, market: str
) -> None:
    world.quotas[code] = needed
    assert quota_of(world).found.startswith("room for all")
    world.quotas[code] = needed - 1.0
    finding = quota_of(world)
    assert finding.ok
    assert finding.found.startswith("warning: ")
    assert f"{needed - 1} vCPUs {market}" in finding.found and f"come to {needed}" in finding.found


def test_a_cluster_asks_for_no_more_machines_than_it_may_have(world: World) -> None:
    document = world.document()
    document["max_workers"] = 5
    world.quotas["L-34B43A08"] = 20.0
    assert quota_of(world, document).found.startswith("room for all")


def test_types_that_these_quotas_do_not_count_are_left_out(world: World) -> None:
    document = world.document()
    machine(document)["InstanceType"] = "g4dn.xlarge"
    world.quotas["L-34B43A08"] = 40.0
    assert quota_of(world, document).found.startswith("room for all")


def quota_of(world: World, document: Document | None = None) -> Finding:
    (found,) = [each for each in asked(document or world.document(), world.client) if each.check == "quotas"]
    return found


@pytest.mark.parametrize(("seconds", "says"), [(-3600.0, "behind"), (900.0, "ahead of")])
def test_a_clock_that_is_wrong_is_found_by_the_date_of_an_answer(
    world: World, seconds: float, says: str
) -> None:
    found = failing(asked(world.document(), world.client, lambda: time.time() + seconds))
    assert list(found) == ["clock"]
    assert says in found["clock"]


def test_what_may_not_be_asked_is_not_checked_and_not_held_against_the_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given credentials with which nothing but their own name can be asked for
    allowed = BaseClient._make_api_call

    def call(client: Any, operation: str, arguments: Document) -> Any:
        if operation in ("GetCallerIdentity", "HeadBucket"):
            return allowed(client, operation, arguments)
        raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, operation)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    findings = asked(world.document(), world.client)
    assert failing(findings) == {}
    unchecked = [each.check for each in findings if "not checked" in each.found]
    assert unchecked == [
        "bucket",
        "instance types",
        "images",
        "key pair",
        "security group",
        "instance profiles",
    ]


def test_a_bucket_that_refuses_everything_is_somebody_elses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = BaseClient._make_api_call

    def call(client: Any, operation: str, arguments: Document) -> Any:
        if "Bucket" in operation:
            raise ClientError(
                {
                    "Error": {"Code": "403"},
                    "ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": REGION}},
                },
                operation,
            )
        return allowed(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    assert "another account's" in failing(asked(world.document(), world.client))["bucket"]


def test_credentials_that_aws_refuses_are_a_finding(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(client: Any, operation: str, arguments: Document) -> Any:
        raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "expired"}}, operation)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    findings = asked(world.document(), world.client)
    assert [each.check for each in findings] == ["AWS"]
    assert "expired" in failing(findings)["AWS"]


@pytest.fixture
def no_credentials(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_without_credentials_aws_is_not_checked(no_credentials: None) -> None:
    findings = asked(filled_document())
    assert [each.check for each in findings] == ["AWS"]
    assert findings[0].ok and "not checked" in findings[0].found


@pytest.mark.parametrize("region", ["FILL_IN_REGION", "no region"])
def test_a_region_that_is_none_is_not_asked(no_credentials: None, tmp_path: Path, region: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(filled_text(FILL_IN_REGION=region))
    last = examine_cluster(str(path))[-1]
    assert (last.check, last.ok) == ("AWS", True)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--settings replicas=0", "replicas: must be 1 to 100"),
        ("--settings lease=3", "--settings lease=3: there is no such setting"),
        ("--settings retention_seconds", "there is no such setting"),
        ('--settings \'queues={"q":"none"}\'', "queue 'q' names no known pool"),
        ("--port 70000", "port: must be 1 to 65,535"),
        ("--task myapp.tasks", "no option --task"),
        ("--settings=log_level=LOUD", "LOUD"),
    ],
)
def test_settings_that_the_head_would_refuse_are_named(words: str, named: str) -> None:
    # given a mistake in what the head's start commands say to the service
    document = filled_document()
    commands = document["head_start_ray_commands"]
    at = next(at for at, each in enumerate(commands) if "jobsvc node head" in each)
    commands[at] += f" {words}"
    # then its row names it, and no other row complains
    bad = failing(examine_file(cluster_of(document)))
    assert set(bad) - {"tokens", "key"} == {"settings"}
    assert named in bad["settings"], bad


def test_yaml_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    for content, named in (
        (b"a: 1\nb: [\n", "line 3"),
        (b"a: \xff", "is not text"),
        (b"a:\n\t- 1", "line 2"),
    ):
        path.write_bytes(content)
        (found,) = examine_cluster(str(path))
        assert named in found.found and str(path) in found.found and "\n" not in found.found


# --- the command ----------------------------------------------------------------------------------


def test_the_command_says_what_is_missing_and_exits_with_1(no_credentials: None) -> None:
    result = CliRunner().invoke(app, ["doctor", "--cluster", str(SHIPPED), "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [each["check"] for each in document if not each["ok"]] == ["filled in"]


def test_the_command_passes_a_good_file(no_credentials: None, tmp_path: Path) -> None:
    path = SHIPPED.parent / "cluster.yaml"
    document = yaml.safe_load(filled_text())
    document["file_mounts"] = {
        remote: str(path.parent / local) if local.startswith("./") else local
        for remote, local in document["file_mounts"].items()
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["doctor", "--cluster", str(tmp_path / "mine.yaml")])
    assert result.exit_code == 0, result.stdout


@pytest.mark.parametrize("text", ["[]", "a: [", "provider: {type: gcp}", "provider: {type: aws}"])
def test_what_is_no_cluster_file_is_a_finding(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    assert list(failing(examine_cluster(str(path)))) == ["cluster file"]
    assert list(failing(examine_cluster(str(tmp_path / "none.yaml")))) == ["cluster file"]


def test_the_finding_about_a_file_that_is_shared_by_types_names_each(home: Path) -> None:
    # given one image for all that Ray would have to choose
    cluster = read_cluster_file(filled_text(FILL_IN_AMI="latest_dlami"), str(SHIPPED))
    assert "head" in failing(examine_file(cluster))["image"]
