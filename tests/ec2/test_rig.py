"""The rig itself: what the other EC2 tests stand on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from botocore.exceptions import ClientError

from tests.s3_server import REPOSITORY

from . import rig_net
from .rig import NotHere, Rig, clean_up_abandoned
from .rig_hosts import cgroup_root
from .waiting import wait_until

ANSWERS = "python -m http.server 8000 --bind 0.0.0.0"
UNIT = f"""[Unit]
Description=A service of the test
[Service]
ExecStartPre=/bin/sh -c 'date +%%s%%N >> {Path("/") / "home"}/ubuntu/starts'
ExecStart={sys.prefix}/bin/python -m http.server 8000
User=ubuntu
Restart=always
RestartSec=0.1
[Install]
WantedBy=multi-user.target
"""


def metadata(path: str) -> str:
    """A shell command: the status of IMDS and its answer, with a token."""
    token = "$(curl -s -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' 169.254.169.254/latest/api/token)"
    header = f'-H "X-aws-ec2-metadata-token: {token}"'
    return f"curl -s -w ' %{{http_code}}' {header} 169.254.169.254/latest/meta-data/{path}"


def give_service(rig: Rig, instance: str) -> None:
    """A unit written and enabled by ubuntu, as a node's own set-up does it."""
    rig.run_on(instance, f"sudo tee /etc/systemd/system/answers.service > {os.devnull} <<'END'\n{UNIT}END\n")
    rig.run_on(instance, "sudo systemctl daemon-reload && sudo systemctl enable --now answers.service")
    wait_until(lambda: answers(rig, instance), "the service")


def answers(rig: Rig, instance: str) -> bool:
    try:
        return httpx.get(f"http://{rig.instance(instance).ip}:8000/", timeout=3).status_code == 200
    except httpx.TransportError:
        return False


def is_gone(rig: Rig, instance: str) -> bool:
    with contextlib.suppress(KeyError):
        rig.keeper.of(instance)
        return False
    return True


def left_of(owner: str) -> list[str]:
    """Namespaces, processes, cgroups and mounts of a rig."""
    root = cgroup_root()
    assert root is not None
    names = [path.name for path in rig_net.NAMESPACES.glob(f"{owner}.*")]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if owner in line]
    return [*names, *mounts, *map(str, root.glob(owner))]


def test_an_instance_is_a_host_with_ssh_sudo_and_systemd_until_it_is_terminated(rig: Rig) -> None:
    # given
    [instance] = rig.launch(
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "ray-node-type", "Value": "head"}]}]
    )

    # then
    assert rig.ssh(instance, "sudo id -un").strip() == "root"
    assert rig.ssh(instance, "systemctl is-system-running").strip() == "running"
    assert [each.id for each in rig.instances(kind="head")] == [instance]

    # when
    rig.client("ec2").terminate_instances(InstanceIds=[instance])

    # then
    wait_until(lambda: is_gone(rig, instance), "the host's end")
    assert rig.instance(instance).state == "terminated"
    with pytest.raises(AssertionError, match="ended with 255"):
        rig.ssh(instance, "true")


def test_a_unit_is_started_again_when_it_dies_and_when_the_host_reboots(rig: Rig) -> None:
    # given
    [instance] = rig.launch()
    give_service(rig, instance)

    # when it dies
    rig.run_on(instance, "sudo systemctl kill -s KILL answers.service")

    # then
    wait_until(lambda: rig.run_on(instance, "wc -l < ~/starts").strip() == "2", "a second start")

    # when the host reboots
    rig.run_on(
        instance, "touch /run/user-file /dev/shm/user-file /tmp/user-file ~/user-file 2>/dev/null; true"
    )
    rig.run_on(instance, "touch /run/lost /dev/shm/lost", user="root")
    rig.reboot(instance)

    # then
    wait_until(lambda: answers(rig, instance), "the service after the reboot")
    assert rig.run_on(instance, "wc -l < ~/starts").strip() == "3"
    assert rig.run_on(instance, "ls /tmp/user-file ~/user-file").count("user-file") == 2
    assert rig.run_on(instance, "ls /run/lost /dev/shm/lost", check=False) == ""


def test_metadata_wants_a_token_and_tells_of_tags_role_and_notices(rig: Rig) -> None:
    # given
    [instance] = rig.launch(
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "pool", "Value": "cheap"}]}],
        InstanceMarketOptions={"MarketType": "spot"},
    )
    ip = rig.instance(instance).ip

    # then
    without = "curl -s -o /dev/null -w '%{http_code}' 169.254.169.254/latest/meta-data/instance-id"
    assert rig.run_on(instance, without) == "401"
    assert rig.run_on(instance, metadata("instance-id")) == f"{instance} 200"
    assert rig.run_on(instance, metadata("local-ipv4")) == f"{ip} 200"
    assert rig.run_on(instance, metadata("placement/region")) == "us-west-2 200"
    assert rig.run_on(instance, metadata("tags/instance/pool")) == "cheap 200"
    assert rig.run_on(instance, metadata("spot/instance-action")).endswith(" 404")
    assert rig.run_on(instance, metadata("events/recommendations/rebalance")).endswith(" 404")

    # when
    rig.rebalance_notice(instance)
    rig.spot_notice(instance, seconds=10)

    # then
    assert '"noticeTime"' in rig.run_on(instance, metadata("events/recommendations/rebalance"))
    assert '"action": "terminate"' in rig.run_on(instance, metadata("spot/instance-action"))
    wait_until(lambda: rig.instance(instance).state == "terminated", "the interruption")


def test_credentials_on_a_host_are_those_of_its_role(rig: Rig) -> None:
    # given
    rig.client("iam").create_instance_profile(InstanceProfileName="job-workers")
    [instance] = rig.launch(IamInstanceProfile={"Name": "job-workers"})
    bucket = rig.make_bucket("from-a-host").removeprefix("s3://")

    # when
    script = (
        "import boto3; boto3.client('ec2').describe_instances();"
        f"boto3.client('s3').put_object(Bucket='{bucket}', Key='a', Body=b'b')"
    )
    rig.run_on(instance, f'python -c "{script}"')

    # then
    assert {each["caller"] for each in rig.calls("DescribeInstances")} >= {"role-job-workers"}
    assert rig.client("s3").get_object(Bucket=bucket, Key="a")["Body"].read() == b"b"


def test_a_partition_is_silence_and_heals(rig: Rig) -> None:
    # given
    one, other = rig.launch(2)
    give_service(rig, one)
    from_other = f"curl -s -m 3 -o {os.devnull} http://{rig.instance(one).ip}:8000; echo $?"
    s3 = f"curl -s -m 3 -o {os.devnull} {rig.services.s3_url}; echo $?"
    wait_until(lambda: rig.run_on(other, from_other).strip() == "0", "the service, from the other")

    # when
    rig.partition(one, [other, "s3"])

    # then: 28 is a timeout, not an error that the network told of
    assert rig.run_on(other, from_other).strip() == "28"
    assert rig.run_on(one, s3).strip() == "28"
    wait_until(lambda: answers(rig, one), "the service, which the operator still reaches")

    # when
    rig.heal(one)
    rig.partition(one)

    # then
    assert not answers(rig, one)
    assert rig.run_on(one, s3).strip() == "28"

    # when
    rig.heal(one)

    # then
    wait_until(lambda: answers(rig, one), "the healed network")
    wait_until(lambda: rig.run_on(other, from_other).strip() == "0", "the service, from the other")
    wait_until(lambda: rig.run_on(one, s3).strip() == "0", "S3")


def test_a_slow_host_answers_later(rig: Rig) -> None:
    [instance] = rig.launch()
    try:
        rig.slow(instance, 256)
    except NotHere as reason:
        pytest.skip(str(reason))
    # given a line on which 60 kB take two seconds
    began = time.monotonic()
    assert len(rig.ssh(instance, "head -c 60000 /dev/zero | tr '\\0' x")) == 60_000
    slow_seconds = time.monotonic() - began
    assert slow_seconds > 1.5
    # when it is as it was
    rig.slow(instance, 0)
    began = time.monotonic()
    assert len(rig.ssh(instance, "head -c 60000 /dev/zero | tr '\\0' x")) == 60_000
    assert time.monotonic() - began < slow_seconds


def test_ec2_without_capacity_or_failing_says_so(rig: Rig) -> None:
    # given
    before = len(rig.instances(alive=False))
    rig.refuse_capacity(["m5.large"])

    # then
    with pytest.raises(ClientError, match="InsufficientInstanceCapacity"):
        rig.launch()
    assert len(rig.instances(alive=False)) == before
    assert rig.calls("RunInstances")[-1]["status"] == 500
    [instance] = rig.launch(InstanceType="c5.large")
    assert rig.instance(instance).type == "c5.large"

    # when
    rig.refuse_capacity(False)
    rig.fail_api(1.0)

    # then
    with pytest.raises(ClientError, match="InternalError"):
        rig.client("ec2").describe_instances()


@pytest.mark.parametrize(("behavior", "state"), [("terminate", "terminated"), ("stop", "stopped")])
def test_shutdown_from_inside_ends_the_instance_as_it_was_asked_to(
    rig: Rig, behavior: str, state: str
) -> None:
    [instance] = rig.launch(InstanceInitiatedShutdownBehavior=behavior)
    rig.run_on(instance, "touch ~/kept; sudo shutdown -h now", check=False)
    wait_until(lambda: rig.instance(instance).state == state, state)
    if state == "stopped":
        rig.client("ec2").start_instances(InstanceIds=[instance])
        wait_until(lambda: rig.boots(instance) == 2, "another boot")
        rig.wait_until_up(instance)
        rig.run_on(instance, "ls ~/kept")


def test_a_pulled_host_is_known_to_ec2_or_not(rig: Rig) -> None:
    known, silent = rig.launch(2)
    rig.unplug(known)
    rig.silence(silent)
    assert rig.instance(known).state == "terminated"
    assert rig.instance(silent).state == "running"
    assert not rig.keeper.of(silent).host.is_up


def test_after_close_nothing_is_left(tmp_path: Path) -> None:
    # given
    threads = set(threading.enumerate())
    with Rig(tmp_path / "rig") as rig:
        rig.launch(2)
        assert left_of(rig.network.owner)

    # then
    assert not left_of(rig.network.owner)
    assert set(threading.enumerate()) <= threads
    assert "BOOT" in (tmp_path / "rig/events.log").read_text()


def test_what_a_killed_rig_left_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    # given
    command = [sys.executable, "-m", "tests.ec2.rig", "--state", str(tmp_path)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert killed.stdout is not None
    assert killed.stdout.readline().startswith("ready")
    launch = "import boto3; boto3.client('ec2').run_instances(ImageId='ami-12c6146b', MinCount=1, MaxCount=1)"
    subprocess.run([tmp_path / "operator", "python", "-c", launch], check=True)
    wait_until(lambda: list(tmp_path.glob("hosts/*/console.log")), "a host")

    # when
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    [owner] = [each for each in rig_net.abandoned() if f".{killed.pid}." in each]
    assert left_of(owner)
    clean_up_abandoned()

    # then
    assert not left_of(owner)
