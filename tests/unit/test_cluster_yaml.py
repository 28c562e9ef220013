"""The cluster file that is shipped: Ray takes it, `jobsvc node` takes its commands, the policies fit."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
import typer
import yaml
from botocore.client import BaseClient
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from jobsvc.cli import app
from jobsvc.cluster_doctor import examine_file
from jobsvc.cluster_file import load_cluster_file, read_cluster_file
from jobsvc.cluster_file_checks import profile_of
from jobsvc.guard_files import PREFIX as GUARD_PREFIX
from jobsvc.head_pulse import PREFIX as PULSE_PREFIX
from jobsvc.worker_objects import log_key, outbox_key

from .cluster_files import BUCKET, KEY, REGION, ROOT, SHIPPED, VALUES, filled_text, make_secrets, shipped_text

POLICIES = ROOT / "iam"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_secrets(tmp_path)
    return tmp_path


def uncommented(text: str, name: str) -> str:
    """The text with the commented example of one node type switched on."""
    block = re.search(rf"^  # {name}:\n(?:  #   .*\n)+", text, re.MULTILINE)
    assert block, name
    return text.replace(block[0], re.sub(r"^  # ", "  ", block[0], flags=re.MULTILINE))


# --- Ray --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [shipped_text(), filled_text()], ids=["shipped", "filled in"])
def test_ray_takes_the_file(text: str) -> None:
    validate_config(prepare_config(yaml.safe_load(text)))


def test_ray_adds_no_setup_commands_of_its_own() -> None:
    ours = yaml.safe_load(filled_text())
    prepared = prepare_config(yaml.safe_load(filled_text()))
    # then each machine runs the commands of the file and no others
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == ours["setup_commands"]


def test_the_head_sends_its_own_key_on(home: Path) -> None:
    # given what rsync leaves out
    excluded = yaml.safe_load(shipped_text())["rsync_exclude"]
    # then the key is not among it: without it the head could reach no other machine
    for name in ("ray_bootstrap_key.pem", "auth_token", "token", "tasks.py"):
        assert not any(fnmatchcase(name, pattern) for pattern in excluded)


def test_commented_examples_are_node_types_that_ray_takes() -> None:
    # given the examples switched on, and the pool that the GPU machines are for
    text = uncommented(uncommented(filled_text(), "worker-on-demand"), "worker-gpu")
    pool = re.search(r"--settings pools='.*'", text)
    assert pool
    text = text.replace("jobsvc node head --data", f"jobsvc node head {pool[0]} --data")
    text = text.replace("ami-…", VALUES["FILL_IN_AMI"])
    # then Ray takes it, and the doctor has nothing to say
    validate_config(prepare_config(yaml.safe_load(text)))
    cluster = read_cluster_file(text, str(SHIPPED))
    assert {"worker-on-demand", "worker-gpu"} <= set(cluster.node_types)
    assert [each for each in examine_file(cluster) if not each.ok] == []


# --- EC2 --------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """One machine of each type, as Ray's own provider starts it; their answers from EC2 by type."""
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        ec2, iam = (boto3.client(service, region_name=REGION) for service in ("ec2", "iam"))
        ec2.create_key_pair(KeyName=KEY)
        for name in ("jobsvc-head", "jobsvc-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="jobsvc", Description="-", VpcId=vpc)["GroupId"]
        image = ec2.register_image(Name="image", RootDeviceName="/dev/sda1")["ImageId"]
        text = filled_text(FILL_IN_AMI=image, FILL_IN_SECURITY_GROUP=group)
        calls = recorded_calls(monkeypatch)
        config = bootstrap_aws(prepare_config(yaml.safe_load(text)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        machines = {}
        for name, entry in config["available_node_types"].items():
            [instance] = provider.create_node(entry["node_config"], {"ray-user-node-type": name}, 1)
            machines[name] = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        for instance in provider.non_terminated_nodes({}):
            provider.set_node_tags(instance, {"ray-node-status": "up-to-date"})
        rest = {"ec2": ec2, "iam": iam, "group": group, "calls": calls}
        yield {"provider": provider, "machines": machines, **rest}


def recorded_calls(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of all calls of AWS from now on, which are the names of rights too."""
    calls: set[str] = set()
    made = BaseClient._make_api_call

    def call(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        calls.add(operation)
        return made(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", call)
    return calls


def test_machines_are_what_the_file_says(started: dict[str, Any]) -> None:
    for name, machine in started["machines"].items():
        # then each is in our group alone, with its role, IMDSv2 and the cluster's tag
        assert [each["GroupId"] for each in machine["SecurityGroups"]] == [started["group"]]
        role = "worker" if name.startswith("worker") else "head"
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/jobsvc-{role}")
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert {"Key": "ray-cluster-name", "Value": "jobsvc"} in machine["Tags"]
        assert (machine.get("InstanceLifecycle") == "spot") == (role == "worker")
        # and ends when it shuts itself down
        asked = started["ec2"].describe_instance_attribute(
            InstanceId=machine["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
        )
        assert asked["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"


def test_ray_makes_no_role_and_no_group_of_its_own(started: dict[str, Any]) -> None:
    groups = started["ec2"].describe_security_groups()["SecurityGroups"]
    assert {each["GroupName"] for each in groups} == {"default", "jobsvc"}
    [ours] = [each for each in groups if each["GroupName"] == "jobsvc"]
    assert not ours["IpPermissions"]  # and has opened nothing in ours
    assert started["iam"].list_roles()["Roles"] == []


@pytest.mark.parametrize("name", ["head", "operator"])
def test_what_ray_asks_of_aws_is_allowed(started: dict[str, Any], name: str) -> None:
    # given `ray up`, as the operator and the guard run it, and what an autoscaler does
    provider = started["provider"]
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    made = started["calls"] - {"DescribeInstanceAttribute", "ListRoles"}  # asked by these tests alone
    assert {"RunInstances", "CreateTags", "TerminateInstances", "DescribeSubnets"} <= made
    # then the policy has each; `ray up` looks at instance types too, before any of this
    allowed = {action.split(":")[1] for entry in statements(name) for action in listed(entry["Action"])}
    assert made | {"DescribeInstanceTypes"} <= allowed


def test_what_ray_ends_is_gone_with_its_disks(started: dict[str, Any]) -> None:
    ec2, provider = started["ec2"], started["provider"]
    # given disks that carry the cluster's tag, so that a sweep would find what stays
    disks = ec2.describe_volumes()["Volumes"]
    assert len(disks) == len(started["machines"])
    assert all({"Key": "ray-cluster-name", "Value": "jobsvc"} in each["Tags"] for each in disks)
    # when Ray ends the machines, on demand ones too
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    # then they are terminated, not stopped, and nothing is left
    states = {
        machine["State"]["Name"]
        for reservation in ec2.describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    }
    assert states == {"terminated"}
    assert ec2.describe_volumes()["Volumes"] == []


# --- the doctor -------------------------------------------------------------------------------------


def test_as_shipped_only_the_placeholders_are_missing() -> None:
    wrong = [each for each in examine_file(load_cluster_file(SHIPPED)) if not each.ok]
    # then that is all, and every placeholder is named
    assert [each.check for each in wrong] == ["filled in"]
    assert all(name in wrong[0].found for name in VALUES)


def test_filled_in_nothing_is_wrong() -> None:
    cluster = read_cluster_file(filled_text(), str(SHIPPED))
    assert [each for each in examine_file(cluster) if not each.ok] == []


# --- commands ---------------------------------------------------------------------------------------


def words_of(command: str) -> list[str]:
    """What follows `jobsvc` in a start command."""
    words = shlex.split(command)
    return words[words.index("jobsvc") + 1 :]


@pytest.mark.parametrize("field", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_jobsvc_node_takes_the_start_command(field: str) -> None:
    command = yaml.safe_load(filled_text())[field][-1]
    node, kind, *options = words_of(command)
    # when the command line is read, and not run
    jobsvc: Any = typer.main.get_command(app)
    found = jobsvc.commands[node].commands[kind].make_context(kind, options)
    # then it is one that exists, with options that exist
    assert kind in field
    assert found.params["data"] == f"s3://{BUCKET}/jobsvc"


def test_every_command_is_one_that_bash_reads() -> None:
    document = yaml.safe_load(filled_text())
    fields = [name for name in document if name.endswith("_commands")]
    for command in (each for name in fields for each in document[name]):
        # as Ray wraps them
        subprocess.run(["bash", "-n", "-c", f"true && ({command})"], check=True)


STUBS = {
    "python3": """
if [ "$1" = -m ]; then
    mkdir -p "$4/bin" "$4/lib/python3.12/site-packages"
    for name in pip jobsvc ray; do printf '#!/bin/sh\\necho %s "$@" >>~/done\\n' $name >"$4/bin/$name"; done
    chmod +x "$4"/bin/*
    echo venv >>~/done
fi""",
    "sudo": 'echo sudo "$@" >>~/done',
}


@pytest.fixture
def machine(home: Path) -> Path:
    """A machine after `file_mounts`, on which Python, pip and sudo only say that they were called."""
    source = home / "jobsvc" / "src"
    (source / "jobsvc").mkdir(parents=True)
    (source / "jobsvc" / "manager.py").write_text("first\n")
    (source / "requirements.lock").write_text("ray==2.60.0\n")
    (home / "bin").mkdir()
    for name, script in STUBS.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (home / "bin" / name).chmod(0o755)
    return home


def set_up(machine: Path) -> str:
    """Run the setup commands as Ray does; what was done."""
    (machine / "done").write_text("")
    environment = {"HOME": str(machine), "PATH": f"{machine}/bin:{os.environ['PATH']}"}
    for command in yaml.safe_load(filled_text())["setup_commands"]:
        subprocess.run(["bash", "-c", f"true && ({command})"], check=True, env=environment, cwd=machine)
    return (machine / "done").read_text()


def test_setup_makes_a_venv_with_hashes_and_is_done_the_second_time(machine: Path) -> None:
    # when a new machine is set up
    done = set_up(machine)
    # then the locked dependencies and jobsvc are installed
    assert done.count("venv\n") == 1
    assert "--require-hashes -r src/requirements.lock" in done
    assert "--no-deps --force-reinstall ./src" in done
    # and the second time nothing is, beyond the two links
    again = set_up(machine)
    assert "pip" not in again and "venv\n" not in again
    assert (machine / ".profile").read_text().count("RAY_AUTH_MODE=token") == 1
    tasks = machine / "jobsvc/venv/lib/python3.12/site-packages/jobsvc-tasks.pth"
    assert tasks.read_text() == f"{machine}/jobsvc/tasks\n"


def test_setup_after_a_change_does_what_has_changed(machine: Path) -> None:
    set_up(machine)
    first = (machine / "jobsvc" / "venv").resolve()
    # when a source file changes, jobsvc alone is installed again
    (machine / "jobsvc/src/jobsvc/manager.py").write_text("second\n")
    done = set_up(machine)
    assert done.count("pip install") == 1 and "--no-deps" in done
    # when the lock changes, a venv is made beside the one that processes may be using
    (machine / "jobsvc/src/requirements.lock").write_text("ray==2.61.0\n")
    done = set_up(machine)
    assert done.count("pip install") == 2
    assert (machine / "jobsvc" / "venv").resolve() != first
    assert first.is_dir()


# --- policies ---------------------------------------------------------------------------------------


def statements(name: str) -> list[dict[str, Any]]:
    document = json.loads((POLICIES / f"{name}.json").read_text())
    assert document["Version"] == "2012-10-17"
    found: list[dict[str, Any]] = document["Statement"]
    return found


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def allows(name: str, action: str, resource: str) -> bool:
    """Without conditions."""
    return any(
        any(fnmatchcase(action, each) for each in listed(entry["Action"]))
        and any(fnmatchcase(resource, each) for each in listed(entry["Resource"]))
        for entry in statements(name)
    )


def of_prefix(key: str) -> str:
    return f"arn:aws:s3:::FILL_IN_BUCKET/jobsvc/{key}"


@pytest.mark.parametrize(
    "key", [log_key(b"j" * 16, 1, 0), outbox_key("worker", "session", 1), "results/0123-session-000001"]
)
def test_a_worker_may_write_what_it_writes_and_change_nothing_else(key: str) -> None:
    assert allows("worker", "s3:PutObject", of_prefix(key))
    assert not allows("worker", "s3:DeleteObject", of_prefix(key))
    assert not allows("worker", "s3:PutObject", of_prefix("log/0000000001/000000000001"))


def test_a_worker_reads_payloads_and_never_the_clusters_key() -> None:
    assert allows("worker", "s3:GetObject", of_prefix("payloads/x"))
    assert not allows("worker", "s3:GetObject", of_prefix(f"{GUARD_PREFIX}0000000001"))
    assert not any(
        each.startswith(("ec2:", "iam:"))
        for entry in statements("worker")
        for each in listed(entry["Action"])
    )


def test_a_guard_asks_and_a_head_answers_and_no_job_can_do_it_for_them() -> None:
    question = of_prefix(f"{PULSE_PREFIX}i-1")
    for action in ("s3:PutObject", "s3:GetObject", "s3:DeleteObject"):
        assert allows("head", action, question)  # the guard on the manager node has this role too
        assert not allows("worker", action, question)


@pytest.mark.parametrize("name", ["head", "worker"])
def test_a_missing_object_is_told_from_a_refused_one(name: str) -> None:
    # S3 answers 404 only to who may list the key's prefix; 403 would stop the journal
    lists = [entry for entry in statements(name) if "s3:ListBucket" in listed(entry["Action"])]
    patterns = [each for entry in lists for each in listed(entry["Condition"]["StringLike"]["s3:prefix"])]
    assert any(fnmatchcase("jobsvc/payloads/x", pattern) for pattern in patterns)


def test_the_head_passes_exactly_the_roles_of_the_file_and_ends_only_its_own() -> None:
    cluster = load_cluster_file(SHIPPED)
    wanted = {f"arn:aws:iam::FILL_IN_ACCOUNT:role/{profile_of(each)}" for each in cluster.node_types.values()}
    for entry in statements("head"):
        if "iam:PassRole" in listed(entry["Action"]):
            assert set(listed(entry["Resource"])) == wanted
        if "ec2:TerminateInstances" in listed(entry["Action"]):
            assert entry["Condition"]["StringEquals"] == {
                "aws:ResourceTag/ray-cluster-name": cluster.cluster_name
            }
    assert allows("head", "iam:PassRole", sorted(wanted)[0])


@pytest.mark.parametrize("name", ["head", "worker", "operator"])
def test_no_policy_gives_everything(name: str) -> None:
    for entry in statements(name):
        assert "NotAction" not in entry and "NotResource" not in entry
        for action in listed(entry["Action"]):
            assert "*" not in action
            reads = action.split(":")[1].startswith(("Describe", "List", "Get", "Simulate"))
            assert reads or "*" not in listed(entry["Resource"]), action


CALL = re.compile(r"\b(?:describe|terminate|delete|release|disassociate|cancel|get|simulate|head)_[a-z_]+\b")
HEADS_CALLS = ("guard_machine",)
OPERATORS_CALLS = ("ec2_instances", "cluster_aws_checks")
FREE = {"GetCallerIdentity", "HeadBucket", "HeadAnswers"}  # need no right, or their refusal is an answer
OTHER_NAMES = {"GetBucketLifecycleConfiguration": "GetLifecycleConfiguration"}


@pytest.mark.parametrize(("name", "modules"), [("head", HEADS_CALLS), ("operator", OPERATORS_CALLS)])
def test_who_makes_a_call_may_make_it(name: str, modules: tuple[str, ...]) -> None:
    # given every call of AWS that our code makes
    made = {
        "".join(part.capitalize() for part in call.split("_"))
        for module in modules
        for call in CALL.findall((ROOT / "jobsvc" / f"{module}.py").read_text())
    }
    # then the policy has it
    allowed = {action.split(":")[1] for entry in statements(name) for action in listed(entry["Action"])}
    assert {OTHER_NAMES.get(each, each) for each in made - FREE} <= allowed


def test_what_the_docs_say_fills_in_every_placeholder() -> None:
    docs = (ROOT / "docs" / "ec2.md").read_text()
    function = re.search(r"^fill\(\) \{\n.*?^\}\n", docs, re.MULTILINE | re.DOTALL)
    assert function
    # given the values that the page sets
    names = ("AWS_DEFAULT_REGION", "ACCOUNT", "BUCKET", "KEY", "GROUP", "AMI")
    given = "; ".join(f"{name}=value-of-{name.lower()}" for name in names)
    for path in (SHIPPED, *sorted(POLICIES.glob("*.json"))):
        script = f"{given}; {function[0]}fill {path}"
        filled = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
        # then no line but a comment has a placeholder left, and a policy is one still
        assert not [line for line in filled.splitlines() if re.search("FILL_IN_[A-Z]", line)]
        if path.suffix == ".json":
            json.loads(filled)
