"""Every machine of a cluster that jobs do not run on is lost once, and processes of its head.

One cluster for all, and each test leaves it whole for the next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .cluster import UP_SECONDS, Cluster, cluster_up
from .rig import Rig
from .scenario import Figures, another_head, note, scenario
from .waiting import wait_until

pytestmark = pytest.mark.timeout(900)

RESULT_SECONDS = 400.0


@pytest.fixture(scope="module")
def cluster(running_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_up(running_rig, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def test_the_manager_node_is_unplugged(rig: Rig, cluster: Cluster) -> None:
    # given its manager leads
    pair = cluster.lead_on("manager")
    with scenario(cluster, "the manager node unplugged") as (_, figures):
        began = time.monotonic()
        rig.unplug(cluster.manager_node.id)
        # then the other one leads, the autoscaler replaces the machine, and the pair is whole again
        figures.measured["the other leads after"] = cluster.led_by_another(pair["leader"]["name"])
        cluster.whole_pair()
        figures.measured["pair whole after"] = time.monotonic() - began


def test_the_head_s_ray_is_killed(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "GCS on the head killed with SIGKILL") as (_, figures):
        began = time.monotonic()
        rig.run_on(cluster.head.id, "pkill -9 gcs_server", user="root")
        wait_until(lambda: not cluster.is_ready(cluster.head), "the head to be down", 120)
        wait_until(lambda: cluster.is_ready(cluster.head), "the head to answer again", UP_SECONDS)
        figures.measured["head answers again after"] = time.monotonic() - began
        cluster.whole_pair()


def test_the_head_reboots(rig: Rig, cluster: Cluster) -> None:
    head = cluster.head
    with scenario(cluster, "the head rebooted") as (_, figures):
        began = time.monotonic()
        rig.reboot(head.id, seconds=UP_SECONDS)
        wait_until(lambda: cluster.is_ready(head), "the head to answer again", UP_SECONDS)
        figures.measured["head answers again after"] = time.monotonic() - began
        cluster.whole_pair()
    assert cluster.head.id == head.id


def test_the_head_is_unplugged_and_the_guard_brings_another(rig: Rig, cluster: Cluster) -> None:
    head = cluster.head
    with scenario(cluster, "the head unplugged, guard on") as (_, figures):
        slow = cluster.client.enqueue_many([{"task": "test.nap", "args": [n, 2.0]} for n in range(4)])
        began = time.monotonic()
        rig.unplug(head.id)
        another_head(cluster, head, figures, began)
        results = [cluster.client.job(each).result(timeout=RESULT_SECONDS) for each in slow.ids]
        assert sorted(results) == [0, 2, 4, 6]
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
    results = [cluster.client.job(each).result(timeout=RESULT_SECONDS) for each in jobs.ids]
    assert sorted(results) == [2 * n for n in range(10)]
    figures.measured["all done after"] = time.monotonic() - began
    note(figures)
