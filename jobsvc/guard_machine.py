"""The rim of the guard: EC2, `ray up`, and the file in which a guard remembers. `run_guard` joins them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from .cluster_file import ClusterFile, read_cluster_file
from .discovery import secret_file
from .drain_notice import node_dir
from .ec2_instances import HEAD, Ec2, Ec2Error, ec2_client
from .errors import Unavailable
from .guard import Ec2Silent, Guard, Head, Memory, Sight
from .guard_files import GuardFiles, for_guard, newest
from .imds import Imds, imds_client
from .node_settings import GuardSettings, numbers_from
from .node_units import BOOTSTRAP_CONFIG, BOOTSTRAP_KEY, GCS_PORT
from .object_store import ObjectStore, StoreError
from .ports import is_listening
from .s3_store import open_store
from .settings import Settings

MEMORY_FILE = "guard.json"
PROBE_SECONDS = 3.0
POLL_SECONDS = 5.0

_log = logging.getLogger("jobsvc.guard")


class Ec2Cloud:
    """EC2 as the guard sees it."""

    def __init__(self, region: str, cluster_name: str, own_id: str) -> None:
        self._client = ec2_client(region)
        self._ec2 = Ec2(self._client)
        self._cluster_name = cluster_name
        self._own_id = own_id

    async def look(self) -> Sight:
        try:
            found = await asyncio.to_thread(self._ec2.instances, self._cluster_name)
        except Ec2Error as error:
            raise Ec2Silent(str(error)) from error
        own = [each for each in found if each.id == self._own_id]
        if not own:
            raise Ec2Silent(f"EC2 does not list this machine, {self._own_id}, in {self._cluster_name}")
        heads = [
            Head(
                id=each.id,
                is_up=each.is_up,
                is_ended=each.is_ended,
                launched_at=each.launched_at,
                private_ip=each.private_ip,
            )
            for each in found
            if each.kind == HEAD
        ]
        return Sight(heads=tuple(heads), own_machine_runs=own[0].state == "running")

    async def is_impaired(self, instance_id: str) -> bool:
        """True if EC2's own checks of the machine, or of what is under it, fail. Not known is no."""
        try:
            answer = await asyncio.to_thread(self._client.describe_instance_status, InstanceIds=[instance_id])
        except Exception as error:
            _log.warning("EC2's checks of %s are not known: %s", instance_id, error)
            return False
        checks = [
            each.get(name, {}).get("Status")
            for each in answer.get("InstanceStatuses", [])
            for name in ("InstanceStatus", "SystemStatus")
        ]
        return "impaired" in checks

    async def end(self, instance_id: str) -> None:
        failed = await asyncio.to_thread(self._ec2.terminate, [instance_id])
        for error in failed.values():
            raise Ec2Silent(str(error)) from error


class NodeHands:
    """What the guard does on its own machine."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store = store
        self._folder = folder

    async def head_answers(self, ip: str) -> bool:
        return await asyncio.to_thread(is_listening, f"{ip}:{GCS_PORT}", PROBE_SECONDS)

    async def launch(self, started_by: str) -> bool:
        files = await newest(self._store)
        if files is None:
            raise StoreError("no head has published its cluster file")
        path = await asyncio.to_thread(self._write, files, started_by)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", str(path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr,
            env=environment_of_ray_up(os.environ),
            start_new_session=True,
        )
        try:
            return await process.wait() == 0
        finally:
            if process.returncode is None:  # our time is over, and its SSH connections end with it
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    def _write(self, files: GuardFiles, started_by: str) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        key = secret_file(self._folder / BOOTSTRAP_KEY, files.ssh_key)
        text = for_guard(files.cluster_file, key, started_by)
        return Path(secret_file(self._folder / BOOTSTRAP_CONFIG, text))


def environment_of_ray_up(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what was said of this machine's own Ray."""
    own = ("RAY_OVERRIDE_", "RAY_CLOUD_", "RAY_NODE_TYPE_NAME", "RAY_START_HOOK", "RAY_SERVE_")
    kept = {name: value for name, value in environment.items() if not name.startswith(own)}
    return kept | {"RAY_UP_enable_autoscaler_v2": "1"}


class MemoryFile:
    """What the guard remembers, as long as its machine runs."""

    def __init__(self, path: Path, booted_at: float) -> None:
        self._path = path
        self._booted_at = booted_at

    def load(self) -> Memory:
        try:
            if self._path.stat().st_mtime < self._booted_at:
                return Memory()
            return msgspec.json.decode(self._path.read_bytes(), type=Memory)
        except FileNotFoundError:
            return Memory()

    def save(self, memory: Memory) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(memory))
        fresh.replace(self._path)


async def run_guard(settings: Settings, environment: Mapping[str, str]) -> None:
    """For ever. Raises Unavailable where this is no machine of EC2, InvalidRequest for a wrong setting."""
    patience = numbers_from(environment, "JOBSVC_GUARD_", GuardSettings)
    own_id = await asyncio.to_thread(Imds(imds_client(environment), time.monotonic).instance_id)
    if own_id is None:
        raise Unavailable("EC2's instance metadata does not answer: `jobsvc guard` runs on the manager node")
    store = open_store(settings)
    cluster = await _cluster(store)
    folder = node_dir(environment)
    memory = MemoryFile(folder / MEMORY_FILE, psutil.boot_time())
    guard = Guard(
        patience,
        store,
        Ec2Cloud(cluster.region, cluster.cluster_name, own_id),
        NodeHands(store, folder / "guard"),
        name=own_id,
        cluster_name=cluster.cluster_name,
        memory=memory.load(),
        remember=memory.save,
        new_nonce=lambda: secrets.token_hex(16),
        monotonic=time.monotonic,
    )
    _log.info("this guard watches over the head of %s", cluster.cluster_name)
    await guard.run()


async def _cluster(store: ObjectStore) -> ClusterFile:
    """What the head has published; the head that made this node has, so it is only a matter of the store."""
    while True:
        try:
            files = await newest(store)
            if files is not None:
                return read_cluster_file(files.cluster_file, BOOTSTRAP_CONFIG)
            _log.warning("no head has published its cluster file yet")
        except StoreError as error:
            _log.warning("%s", error)
        await asyncio.sleep(POLL_SECONDS)
