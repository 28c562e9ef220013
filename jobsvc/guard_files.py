"""What a guard needs to bring a head back, in the service's store: the cluster file as the head's own
autoscaler uses it, and the SSH key that lets `ray up` onto the new machine.

`ray up` leaves both on the head, and `jobsvc node head` publishes them under `cluster/files/<number>`, in one
object that is never changed; the greatest number holds. Only the head and the manager node may read this
prefix (see the policies in `iam/`): who has the key can enter every machine of the cluster.

The head's file differs from the operator's in what makes it usable from inside: `ray up` has filled in
subnets, security groups and profiles; the key is `~/ray_bootstrap_key.pem`; every file mount names its place
on a node as its source, and Ray has put the files there on every node. What is left to change for `ray up`
from the manager node is in `for_guard`.
"""

from __future__ import annotations

import asyncio
import copy
import re
from typing import Any

import msgspec
import yaml

from .errors import InvalidRequest
from .object_store import ObjectStore, PutOutcome, StoreError

PREFIX = "cluster/files/"
STARTED_BY_VARIABLE = "JOBSVC_STARTED_BY"
TRIES = 6
PAUSE_SECONDS = 0.2  # doubles with each try

_STARTED_BY = re.compile(rf"^export {STARTED_BY_VARIABLE}=\S*; ")


class GuardFiles(msgspec.Struct, frozen=True, kw_only=True):
    """One publication."""

    cluster_file: str
    ssh_key: str


async def publish(store: ObjectStore, files: GuardFiles) -> str:
    """Make these the files that guards use. Returns their key. Raises StoreError."""
    body = msgspec.json.encode(files)
    for attempt in range(TRIES):
        keys = await store.list(PREFIX)
        if keys and await store.get(keys[-1]) == body:
            return keys[-1]  # published before: by an earlier start, or by a put whose answer was lost
        number = int(keys[-1].removeprefix(PREFIX)) + 1 if keys else 1
        key = f"{PREFIX}{number:010d}"
        if await store.put_new(key, body) is PutOutcome.CREATED:
            return key
        await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
    raise StoreError(f"the store did not take the cluster file in {TRIES} tries")


async def newest(store: ObjectStore) -> GuardFiles | None:
    """What was published last, or None if nothing was. Raises StoreError."""
    keys = await store.list(PREFIX)
    body = await store.get(keys[-1]) if keys else None
    return None if body is None else msgspec.json.decode(body, type=GuardFiles)


def for_guard(cluster_file: str, ssh_key_path: str, started_by: str) -> str:
    """The cluster file for `ray up` from the manager node.

    Machines are reached at their inner addresses. The head's start commands learn who started them: one
    that the operator starts says that the cluster is wanted; a guard's does not (`announce_up`).
    Ray put the common setup commands in front of the others and will do so again: they are taken off, so that
    the new head's file is the old one's, and nodes that live on need no second setup.
    """
    document = yaml.safe_load(cluster_file)
    if not isinstance(document, dict):
        raise InvalidRequest("what the head published has no keys", "cluster file")
    document = copy.deepcopy(document)
    document["auth"] = {**document["auth"], "ssh_private_key": ssh_key_path}
    document["provider"] = {**document["provider"], "use_internal_ips": True}
    document["head_start_ray_commands"] = [
        _marked(command, started_by) for command in document["head_start_ray_commands"]
    ]
    common = document.get("setup_commands") or []
    for kind in ("head_setup_commands", "worker_setup_commands"):
        commands = document.get(kind) or []
        if common and commands[: len(common)] == common:
            document[kind] = commands[len(common) :]
    return msgspec.json.encode(document).decode()


def _marked(command: Any, started_by: str) -> str:
    return f"export {STARTED_BY_VARIABLE}={started_by}; " + _STARTED_BY.sub("", str(command))
