"""What the head publishes for guards, and what a guard makes of it."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest
import yaml

from jobsvc.cluster_file import option_of
from jobsvc.errors import InvalidRequest
from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.guard_files import GuardFiles, for_guard, newest, publish
from jobsvc.object_store import MemoryObjectStore, StoreError

from ..simulation.virtual_loop import run

FIRST = GuardFiles(cluster_file="{}", ssh_key="key 1")
SECOND = GuardFiles(cluster_file="{}", ssh_key="key 2")


def bootstrap(**changes: Any) -> dict[str, Any]:
    """A cluster file as `ray up` leaves it on the head."""
    return {
        "cluster_name": "harvest",
        "provider": {"type": "aws", "region": "us-west-2", "use_internal_ips": False},
        "auth": {"ssh_user": "ubuntu", "ssh_private_key": "~/ray_bootstrap_key.pem"},
        "file_mounts": {"~/.ray/auth_token": "~/.ray/auth_token"},
        "setup_commands": ["common"],
        "head_setup_commands": ["common", "for the head"],
        "worker_setup_commands": ["common"],
        "head_start_ray_commands": ["jobsvc node head --data s3://bucket/jobs"],
        "worker_start_ray_commands": ["jobsvc node worker"],
        **changes,
    }


def rewritten(document: dict[str, Any], started_by: str = "guard/i-1/0000") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(for_guard(json.dumps(document), "/run/key.pem", started_by))
    return found


def test_the_last_publication_holds_and_the_same_again_adds_nothing() -> None:
    async def story() -> tuple[list[str], GuardFiles | None]:
        store = MemoryObjectStore()
        assert await newest(store) is None
        keys = [await publish(store, files) for files in (FIRST, FIRST, SECOND, SECOND)]
        return keys, await newest(store)

    keys, found = asyncio.run(story())
    assert keys == ["cluster/files/0000000001"] * 2 + ["cluster/files/0000000002"] * 2
    assert found == SECOND


@pytest.mark.parametrize("seed", range(20))
def test_it_is_published_once_over_a_store_that_loses_answers(seed: int) -> None:
    async def story() -> list[str]:
        inner = MemoryObjectStore()
        store = FaultyObjectStore(inner, Random(seed), put_lost_rate=0.3, put_error_rate=0.1)
        await publish(store, FIRST)
        assert await newest(inner) == FIRST
        return await inner.list("cluster/files/")

    assert run(story()) == ["cluster/files/0000000001"]


def test_a_store_that_takes_nothing_is_an_error() -> None:
    async def story() -> None:
        store = FaultyObjectStore(MemoryObjectStore(), Random(1), put_error_rate=1.0)
        with pytest.raises(StoreError, match="did not take the cluster file"):
            await publish(store, FIRST)

    run(story())


def test_the_guards_file_reaches_machines_from_inside_with_the_guards_key() -> None:
    document = rewritten(bootstrap())
    assert document["provider"]["use_internal_ips"] is True
    assert document["auth"] == {"ssh_user": "ubuntu", "ssh_private_key": "/run/key.pem"}
    assert document["file_mounts"] == bootstrap()["file_mounts"]


def test_the_heads_commands_know_who_started_them_and_are_the_same_otherwise() -> None:
    first = rewritten(bootstrap())
    (line,) = first["head_start_ray_commands"]
    assert line == "export JOBSVC_STARTED_BY=guard/i-1/0000; jobsvc node head --data s3://bucket/jobs"
    assert option_of("--data", [line]) == "s3://bucket/jobs"
    (again,) = rewritten(first, "guard/i-2/0000")["head_start_ray_commands"]
    assert again == "export JOBSVC_STARTED_BY=guard/i-2/0000; jobsvc node head --data s3://bucket/jobs"


def test_ray_makes_the_same_file_of_it_again() -> None:
    """Ray puts the common setup commands in front, each time: workers must not see another setup."""
    document = rewritten(bootstrap())
    assert document["head_setup_commands"] == ["for the head"]
    assert document["worker_setup_commands"] == []
    merged = {
        kind: document["setup_commands"] + document[kind]
        for kind in ("head_setup_commands", "worker_setup_commands")
    }
    assert merged == {kind: bootstrap()[kind] for kind in merged}


def test_what_is_no_cluster_file_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cluster file"):
        for_guard("[]", "/run/key.pem", "guard/i-1/0000")
