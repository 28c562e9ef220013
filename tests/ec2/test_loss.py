"""No machine that cannot be lost: each is unplugged, rebooted or cut off while callers go on.

One cluster for the module; every test leaves it whole for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import wait_until

from .cluster import Cluster, token_in_environment
from .conftest import Rig
from .scenario import Figures, note, scenario

pytestmark = pytest.mark.timeout(900)

LEADS_SECONDS = 5.0


@pytest.fixture(scope="module")
def cluster(running_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_rig.inside():
        token_in_environment()
        cluster = Cluster(
            running_rig, tmp_path_factory.mktemp("cluster"), data=running_rig.make_bucket("jobs") + "/one"
        )
        cluster.up()
        cluster.whole_pair()
        yield cluster


def led_by_another(cluster: Cluster, manager: str, seconds: float = 60.0) -> float:
    """How long until another manager leads."""
    began = time.monotonic()
    wait_until(
        lambda: (leader := cluster.pair().get("leader")) is not None and leader["name"] != manager,
        "another leader",
        seconds,
    )
    return time.monotonic() - began


def test_a_worker_s_machine_is_unplugged(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "a worker's machine unplugged") as (load, figures):
        cluster.wait_for_workers(1)
        began = time.monotonic()
        rig.unplug(cluster.workers()[0].id)
        load.wait_for(10, 120)
        wait_until(cluster.workers, "another machine", 180)
        figures.measured["another machine after"] = time.monotonic() - began


def test_the_manager_node_is_unplugged(rig: Rig, cluster: Cluster) -> None:
    # given its manager leads
    make_leader_on(rig, cluster, "manager")
    pair = cluster.pair()
    with scenario(cluster, "the manager node unplugged") as (_, figures):
        began = time.monotonic()
        rig.unplug(cluster.manager_node.id)
        # then the other one leads, the autoscaler replaces the machine, and the pair is whole again
        figures.measured["the other leads after"] = led_by_another(cluster, pair["leader"]["name"])
        cluster.whole_pair()
        figures.measured["pair whole after"] = time.monotonic() - began
    assert figures.measured["the other leads after"] <= LEADS_SECONDS


def make_leader_on(rig: Rig, cluster: Cluster, node_type: str) -> None:
    """Wait for a pair whose leader is there; the leader is killed where it is elsewhere."""
    pair = cluster.whole_pair()
    machine = cluster.machine_of(pair["leader"])
    if machine.node_type != node_type:
        rig.run_on(machine.id, f"kill -9 {pair['leader']['pid']}")
        led_by_another(cluster, pair["leader"]["name"])
        pair = cluster.whole_pair()
    assert cluster.machine_of(pair["leader"]).node_type == node_type


@pytest.mark.parametrize(
    ("what", "from_whom", "seconds"),
    [
        ("S3", lambda rig, cluster: ["s3"], 10),
        ("the standby", lambda rig, cluster: [cluster.head.id], 10),
        ("everything", lambda rig, cluster: "everything", 10),
        ("everything", lambda rig, cluster: "everything", 60),
    ],
)
def test_the_leader_s_machine_is_cut_off(
    rig: Rig,
    cluster: Cluster,
    what: str,
    from_whom: Callable[[Rig, Cluster], list[str] | str],
    seconds: float,
) -> None:
    # given the leader on the manager node
    make_leader_on(rig, cluster, "manager")
    machine = cluster.manager_node
    with scenario(cluster, f"the leader's machine cut off from {what} for {seconds:g} s") as (load, _):
        rig.partition(machine.id, from_whom(rig, cluster))
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > seconds, "the end of the partition", seconds + 5)
        rig.heal(machine.id)
        load.wait_for(4, 240)
    cluster.whole_pair()


def test_the_head_s_ray_is_killed(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "GCS on the head killed with SIGKILL") as (_, figures):
        began = time.monotonic()
        rig.run_on(cluster.head.id, "pkill -9 gcs_server", user="root")
        wait_until(lambda: not cluster.is_ready(cluster.head), "the head to be down", 60)
        wait_until(lambda: cluster.is_ready(cluster.head), "the head to answer again", 240)
        figures.measured["head answers again after"] = time.monotonic() - began
        cluster.whole_pair()


def test_the_head_reboots(rig: Rig, cluster: Cluster) -> None:
    head = cluster.head
    with scenario(cluster, "the head rebooted") as (_, figures):
        began = time.monotonic()
        rig.reboot(head.id, seconds=240)
        wait_until(lambda: cluster.is_ready(head), "the head to answer again", 240)
        figures.measured["head answers again after"] = time.monotonic() - began
        cluster.whole_pair()
    assert cluster.head.id == head.id


def test_the_head_is_unplugged_and_the_guard_brings_another(rig: Rig, cluster: Cluster) -> None:
    head = cluster.head
    with scenario(cluster, "the head unplugged, guard on") as (load, figures):
        slow = cluster.client.enqueue_many([{"task": "test.nap", "args": [n, 2.0]} for n in range(4)])
        began = time.monotonic()
        rig.unplug(head.id)
        wait_until(lambda: rig.instances(kind="head"), "another head", 240)
        figures.measured["another head after"] = time.monotonic() - began
        done = len(load.told.accepted)
        wait_until(lambda: cluster.is_ready(cluster.head), "the new head to answer", 240)
        figures.measured["head answers after"] = time.monotonic() - began
        cluster.forget_addresses()
        running = cluster.client.enqueue("test.double", 1)
        assert running.result(timeout=240) == 2
        figures.measured["first job run after"] = time.monotonic() - began
        cluster.whole_pair()
        assert sorted(cluster.client.job(each).result(timeout=240) for each in slow.ids) == [0, 2, 4, 6]
        assert len(load.told.accepted) >= done
    assert cluster.head.id != head.id
    assert len(rig.instances(node_type="manager")) == 1


def test_head_and_manager_node_are_unplugged_and_ray_up_brings_all_back(rig: Rig, cluster: Cluster) -> None:
    # given jobs that were accepted and not run
    cluster.whole_pair()
    jobs = cluster.client.enqueue_many([{"task": "test.nap", "args": [n, 1.0]} for n in range(10)])
    # when nothing is left that could bring anything back
    rig.unplug(cluster.manager_node.id)
    rig.unplug(cluster.head.id)
    began = time.monotonic()
    cluster.up()
    figures = Figures("head and manager node unplugged, then `ray up` by hand", accepted=len(jobs))
    figures.measured["service answers after"] = time.monotonic() - began
    # then every job ends
    results = [cluster.client.job(each).result(timeout=240) for each in jobs.ids]
    assert sorted(results) == [2 * n for n in range(10)]
    figures.measured["all done after"] = time.monotonic() - began
    note(figures)
    cluster.whole_pair()


def test_ray_down_is_interrupted_and_the_sweeper_ends_the_rest(rig: Rig, cluster: Cluster) -> None:
    # given `ray down` that ends half way: some machines are gone, and nobody looks after the others
    wait_until(lambda: len(rig.instances()) >= 2, "machines", 60)
    accepted = cluster.client.enqueue("test.double", 3)
    assert accepted.result(timeout=240) == 6
    rig.operator(
        ["timeout", "-s", "KILL", "6", "ray", "down", "-y", str(cluster.file)], check=False, timeout=60
    )
    left = len(rig.instances())
    # when it is swept
    said = cluster.jobsvc("sweep", str(cluster.file), "--yes", "--dead", timeout=240)
    # then nothing is left, and EC2 says so
    wait_until(lambda: not rig.instances(), f"the end of {left} machines: {said}", 120)
    assert {each.state for each in rig.instances(alive=False)} == {"terminated"}
    figures = Figures("`ray down` interrupted, then `jobsvc sweep`", accepted=1)
    figures.measured["machines that were left"] = float(left)
    note(figures)
