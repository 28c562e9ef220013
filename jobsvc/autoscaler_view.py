"""What Ray's autoscaler says about machines: asked for, refused, impossible.

Read from GCS, where autoscaler v2 leaves it after each of its rounds (every 5 s). Without an autoscaler, as
on one machine, the machines that there are are all that there will be.

Why a machine was refused, Ray 2.60 tells nobody but its own log: the field that is there for it stays empty.
So a task on the head reads the end of that log, when something was refused and people may look.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus  # type: ignore[attr-defined]
from ray.exceptions import RayError

from .scaling import MachineRequest, Machines

STATUS_SECONDS = 2
REASONS_SECONDS = 15.0
LOG_BYTES = 64 * 1024
HEAD_RESOURCE = "node:__internal_head__"
REFUSED = re.compile(r"Failed to launch \d+ nodes of type (\S+?): (?:Node Launch Exception )?(.*)")


class AutoscalerView:
    """Asked by the leader while workers of a pool wait for machines."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._reasons_until = 0.0
        self._learning: asyncio.Task[None] | None = None

    async def machines(self) -> Machines | None:
        """None if nobody can say."""
        try:
            machines = machines_of(await asyncio.to_thread(_cluster_status))
        except (RayError, OSError, RuntimeError, ValueError):
            return None  # GCS is away: the next look asks again
        if any(not request.problem for request in machines.refused):
            self._begin_to_learn()
        return msgspec.structs.replace(
            machines, refused=[self._with_reason(request) for request in machines.refused]
        )

    def _with_reason(self, request: MachineRequest) -> MachineRequest:
        reason = request.problem or self._reasons.get(request.node_type)
        return msgspec.structs.replace(request, problem=reason)

    def _begin_to_learn(self) -> None:
        """On the side: nobody's scaling waits for the words. The next look has them."""
        now = asyncio.get_running_loop().time()
        if now >= self._reasons_until:
            self._reasons_until = now + REASONS_SECONDS  # what is still asking then has given up
            self._learning = asyncio.create_task(self._learn_reasons(), name="why machines were refused")

    async def _learn_reasons(self) -> None:
        task: Any = ray.remote(refusals_of_this_head)
        options = {"num_cpus": 0, "resources": {HEAD_RESOURCE: 0.001}, "max_retries": 0}
        try:
            async with asyncio.timeout(REASONS_SECONDS):
                self._reasons = await task.options(**options).remote()
        except (RayError, TimeoutError):
            pass  # the head is away or slow: it is asked again while machines are refused


def _cluster_status() -> GetClusterStatusReply:
    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=STATUS_SECONDS))
    return reply


def machines_of(reply: GetClusterStatusReply) -> Machines:
    state = reply.autoscaling_state
    return Machines(
        requested=[
            MachineRequest(each.ray_node_type_name, each.count, float(each.request_ts))
            for each in state.pending_instance_requests
        ],
        starting=len(state.pending_instances),
        refused=[
            MachineRequest(each.ray_node_type_name, each.count, float(each.failed_ts), each.reason or None)
            for each in state.failed_instance_requests
        ],
        impossible=[dict(each.resources_bundle) for each in state.infeasible_resource_requests],
        here=None if state.autoscaler_state_version else _here(reply),
    )


def _here(reply: GetClusterStatusReply) -> list[dict[str, float]] | None:
    """The machines that live, by their resources. None if there are none: Ray has not begun to say."""
    nodes = reply.cluster_resource_state.node_states
    return [dict(node.total_resources) for node in nodes if node.status != NodeStatus.DEAD] or None


def refusals_of_this_head() -> dict[str, str]:
    """Machine type -> what the cloud said last. A Ray task, for the head."""
    node: Any = ray._private.worker.global_worker.node
    return refusals(Path(node.get_logs_dir_path()) / "monitor.log")


def refusals(log: Path) -> dict[str, str]:
    """The same from the autoscaler's log; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return {}
    return {match[1]: match[2].strip() for match in REFUSED.finditer(text)}
