"""The rim of the guard: EC2 as it answers, `ray up` as a process, a memory that ends with a boot."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from moto import mock_aws

from jobsvc.guard import Claim, Ec2Silent, Memory
from jobsvc.guard_files import GuardFiles, publish
from jobsvc.guard_machine import Ec2Cloud, MemoryFile, NodeHands, environment_of_ray_up
from jobsvc.object_store import MemoryObjectStore, StoreError

REGION, CLUSTER = "us-west-2", "harvest"


# --- EC2 --------------------------------------------------------------------------------------------


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.client("ec2", region_name=REGION)


def launch(ec2: Any, kind: str, cluster: str = CLUSTER) -> str:
    tags = [{"Key": "ray-cluster-name", "Value": cluster}, {"Key": "ray-node-type", "Value": kind}]
    answer = ec2.run_instances(
        ImageId="ami-12c6146b",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    found: str = answer["Instances"][0]["InstanceId"]
    return found


def test_a_look_shows_the_heads_of_this_cluster_and_whether_our_machine_runs(ec2: Any) -> None:
    head, own = launch(ec2, "head"), launch(ec2, "worker")
    launch(ec2, "head", "another")
    cloud = Ec2Cloud(REGION, CLUSTER, own)
    sight = asyncio.run(cloud.look())
    assert [(each.id, each.is_up) for each in sight.heads] == [(head, True)]
    assert sight.heads[0].private_ip
    assert sight.own_machine_runs
    assert asyncio.run(cloud.is_impaired(head)) is False
    asyncio.run(cloud.end(head))
    ec2.terminate_instances(InstanceIds=[own])
    sight = asyncio.run(cloud.look())
    assert [(each.is_up, each.is_ended) for each in sight.heads] == [(False, True)]
    assert not sight.own_machine_runs


def test_a_machine_that_ec2_does_not_list_knows_nothing(ec2: Any) -> None:
    launch(ec2, "head")
    with pytest.raises(Ec2Silent, match="does not list this machine"):
        asyncio.run(Ec2Cloud(REGION, CLUSTER, "i-0").look())


def test_checks_that_cannot_be_asked_for_are_not_known(ec2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Ec2Cloud(REGION, CLUSTER, launch(ec2, "worker"))
    assert asyncio.run(cloud.is_impaired("i-0")) is False


# --- ray up -----------------------------------------------------------------------------------------

RAY_UP = """#!/bin/sh
echo "$@" > "{folder}/said"
for file; do :; done
cp "$file" "{folder}/cluster.json"
{then}
"""


@pytest.fixture
def hands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeHands:
    store = MemoryObjectStore()
    document = {"auth": {}, "provider": {}, "head_start_ray_commands": ["jobsvc node head"]}
    files = GuardFiles(cluster_file=json.dumps(document), ssh_key="the key\n")
    asyncio.run(publish(store, files))
    return NodeHands(store, tmp_path / "guard")


def ray_up_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    script = tmp_path / "python"
    script.write_text(RAY_UP.format(folder=tmp_path, then=then))
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.parametrize(("code", "worked"), [(0, True), (1, False)])
def test_ray_up_is_run_with_what_the_head_published(
    hands: NodeHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, worked: bool
) -> None:
    ray_up_that(tmp_path, monkeypatch, f"exit {code}")
    assert asyncio.run(hands.launch("guard/i-1/0000")) is worked
    path = tmp_path / "guard" / "ray_bootstrap_config.yaml"
    assert (tmp_path / "said").read_text().split() == [
        *("-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", str(path))
    ]
    key = Path(json.loads(path.read_text())["auth"]["ssh_private_key"])
    assert key.read_text() == "the key\n"
    assert key.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_ray_up_whose_time_is_over_is_killed_with_its_children(
    hands: NodeHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_up_that(tmp_path, monkeypatch, f'sleep 300 & echo $! > "{tmp_path}/child"; wait')

    async def story() -> None:
        launching = asyncio.ensure_future(hands.launch("guard/i-1/0000"))
        await asyncio.to_thread(until_written, tmp_path / "child")
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching

    asyncio.run(story())
    child = until_written(tmp_path / "child")
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_written(path: Path) -> int:
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def test_without_a_publication_nothing_is_launched(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has published"):
        asyncio.run(NodeHands(MemoryObjectStore(), tmp_path).launch("guard/i-1/0000"))


def test_ray_up_does_not_hear_what_was_said_of_the_guards_own_machine() -> None:
    environment = environment_of_ray_up(
        {
            "RAY_OVERRIDE_RESOURCES": "{}",
            "RAY_CLOUD_INSTANCE_ID": "i-2",
            "RAY_AUTH_MODE": "token",
            "HOME": "/h",
        }
    )
    assert environment == {"RAY_AUTH_MODE": "token", "HOME": "/h", "RAY_UP_enable_autoscaler_v2": "1"}


# --- memory -----------------------------------------------------------------------------------------

KNOWN = Memory(
    head="i-1", claim=Claim(key="guard/i-1/0000", nonce="n", since=4.5, condemned=["i-1"], is_sure=True)
)


def test_what_a_guard_knows_outlives_its_process_and_not_a_boot(tmp_path: Path) -> None:
    path = tmp_path / "guard.json"
    memory = MemoryFile(path, booted_at=0)
    assert memory.load() == Memory()
    memory.save(KNOWN)
    assert memory.load() == KNOWN
    os.utime(path, (1000, 1000))
    assert MemoryFile(path, booted_at=2000).load() == Memory()
