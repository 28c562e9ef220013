"""What the autoscaler says, as it says it."""

from __future__ import annotations

from pathlib import Path

from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from jobsvc.autoscaler_view import machines_of, refusals
from jobsvc.scaling import MachineRequest

LOG = """\
2026-11-25 16:18:54,576 INFO node_provider.py:485 -- Launching 1 nodes of type worker-a.
2026-11-25 16:18:54,595 INFO node_provider.py:491 -- Failed to launch 1 nodes of type worker-a: \
Node Launch Exception (InsufficientInstanceCapacity): there is none
2026-11-25 16:18:59,595 INFO node_provider.py:491 -- Failed to launch 2 nodes of type worker-b: no such subnet
"""


def test_requests_refusals_and_impossible_shapes_are_read_from_the_status() -> None:
    reply = GetClusterStatusReply()
    state = reply.autoscaling_state
    state.pending_instance_requests.add(ray_node_type_name="worker-a", count=2, request_ts=10)
    state.pending_instances.add(ray_node_type_name="worker-a", instance_id="i-1")
    state.failed_instance_requests.add(ray_node_type_name="worker-b", count=1, failed_ts=11)
    state.infeasible_resource_requests.add(resources_bundle={"CPU": 64.0})
    machines = machines_of(reply)
    assert machines.requested == [MachineRequest("worker-a", 2, 10.0)]
    assert machines.starting == 1
    assert machines.refused == [MachineRequest("worker-b", 1, 11.0)]
    assert machines.impossible == [{"CPU": 64.0}]


def test_the_cloud_s_own_words_are_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "monitor.log"
    assert refusals(log) == {}
    log.write_text(LOG)
    said = "(InsufficientInstanceCapacity): there is none"
    assert refusals(log) == {"worker-a": said, "worker-b": "no such subnet"}
