"""`down` for a cluster: end everything that it has on EC2, and prove it by EC2's own word.

The order matters, because a cluster is made to outlive the loss of any machine. First the guards are told,
in the store, that the cluster is not wanted; then Ray takes it down in its own way, head and all; then the
sweep ends what is left, and goes on until EC2 says that every machine is terminated and lists no volume or
address.

Where the guards cannot be told, Ray's way is too slow: it would end the head while a guard lives. Then the
sweep alone ends it, with heads and managers in the first call. Ray's teardown may fail, hang or be
interrupted; what it leaves is the sweep's. The jobs stay where they are, in the store: a new cluster on the
same data goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import msgspec

from .cluster_file import ClusterFile
from .ec2_cluster_mark import announce_down, is_down
from .ec2_instances import Ec2
from .ec2_sweep import WAIT_SECONDS, Case, Clock, Report, Say, Sweep
from .errors import InvalidRequest, JobsvcError
from .object_store import ObjectStore
from .s3_store import open_store
from .settings import Settings

RAY_DOWN_SECONDS = 240.0
LINES_SHOWN = 5

RayDown = Callable[[ClusterFile], str]


class DownReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, and the proof: EC2's last word on everything that carried the cluster's tag."""

    cluster: str
    guards_told: bool
    ray_down: str  # "done", or why it was not
    left: Report
    data: str  # where the jobs stay

    @property
    def is_clean(self) -> bool:
        return self.left.is_clean


def take_down(
    cluster: ClusterFile,
    ec2: Ec2,
    *,
    say: Say = lambda _: None,
    clock: Clock | None = None,
    ray_down: RayDown | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> DownReport:
    """End everything of this cluster. May be repeated; the report says whether anything is left."""
    guards_told = tell_guards_to_stand_still(cluster, say)
    case = Case(cluster=cluster.cluster_name, manager_types=cluster.manager_types, dead=True)
    sweep = Sweep(ec2, case, say=say, clock=clock)
    how = "not needed: no machine is up"
    if any(each.kind == "instance" and each.state in ("pending", "running") for each in sweep.look().items):
        how = "left out: a guard could bring the head back meanwhile"
        if guards_told:
            say("ray down: Ray takes its cluster down")
            how = (ray_down or run_ray_down)(cluster)
        say(f"ray down: {how}")
    left = sweep.end(wait_seconds)
    return DownReport(
        cluster=cluster.cluster_name, guards_told=guards_told, ray_down=how, left=left, data=cluster.data
    )


# --- the guards ---------------------------------------------------------------------------------------


def tell_guards_to_stand_still(cluster: ClusterFile, say: Say) -> bool:
    """False if they could not be told; why is said."""
    try:
        asyncio.run(announce_down(_store(cluster), cluster.cluster_name, "jobsvc down"))
    except JobsvcError as error:
        say(f"the guards cannot be told that the cluster is not wanted: {error}")
        return False
    return True


def guards_stand_still(cluster: ClusterFile, say: Say) -> bool:
    """True if they have been told to. Where that cannot be read they may be at work, and why is said."""
    try:
        return asyncio.run(is_down(_store(cluster), cluster.cluster_name))
    except JobsvcError as error:
        say(f"it cannot be read whether the cluster was taken down: {error}")
        return False


def _store(cluster: ClusterFile) -> ObjectStore:
    if not cluster.data.startswith("s3://"):
        raise InvalidRequest("`jobsvc node head` has no --data s3://BUCKET/PREFIX", "head_start_ray_commands")
    return open_store(Settings(data=cluster.data, s3_endpoint_url=cluster.s3_endpoint_url))


# --- Ray's own way ------------------------------------------------------------------------------------


def run_ray_down(cluster: ClusterFile, seconds: float = RAY_DOWN_SECONDS) -> str:
    """`ray down`, as a process of its own. Says "done", or what went wrong; neither is to be relied on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "down", "-y", cluster.path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # with the ssh that it starts, so that all of it can be ended
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"gave up on it after {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode == 0:
        return "done"
    return " / ".join([f"failed with code {process.returncode}", *said.strip().splitlines()[-LINES_SHOWN:]])
