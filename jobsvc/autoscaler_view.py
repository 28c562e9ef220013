"""What Ray's autoscaler says about machines: asked for, refused, impossible.

Read from GCS, where autoscaler v2 leaves it after each of its rounds (every 5 s). Without an autoscaler, as on
one machine, there is nothing to read.
"""

from __future__ import annotations

import asyncio

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.exceptions import RayError

from .scaling import MachineRequest, Machines

STATUS_SECONDS = 2


async def machines() -> Machines | None:
    """None if nobody can say."""
    try:
        text = await asyncio.to_thread(_cluster_status)
    except (RayError, OSError, RuntimeError, ValueError):
        return None  # GCS is away: the next look asks again
    reply = GetClusterStatusReply()
    reply.ParseFromString(text)
    return machines_of(reply)


def _cluster_status() -> bytes:
    client = GcsClient(ray.get_runtime_context().gcs_address)
    status: bytes = client.get_cluster_status(timeout_s=STATUS_SECONDS)
    return status


def machines_of(reply: GetClusterStatusReply) -> Machines:
    state = reply.autoscaling_state
    return Machines(
        requested=[
            MachineRequest(each.ray_node_type_name, each.count, float(each.request_ts))
            for each in state.pending_instance_requests
        ],
        starting=len(state.pending_instances),
        refused=[
            MachineRequest(each.ray_node_type_name, each.count, float(each.failed_ts), each.reason)
            for each in state.failed_instance_requests
        ],
        impossible=[dict(each.resources_bundle) for each in state.infeasible_resource_requests],
    )
