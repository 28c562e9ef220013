"""Machines of a cluster that cannot reach each other, or S3, for a while; and a head that is silent for good.

One cluster for all, and each test leaves it whole for the next. Its guard is less patient with a silent
head than the longest cut is long: who is cut off from a living head must not end it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .cluster import Cluster, cluster_up
from .rig import Rig
from .scenario import another_head, scenario

pytestmark = pytest.mark.timeout(900)

CUT_SECONDS = (10, 60)
SILENT_SECONDS = 18
PATIENCE_SECONDS = 3 * SILENT_SECONDS  # the guard's, where EC2 finds nothing wrong
assert max(CUT_SECONDS) > PATIENCE_SECONDS


@pytest.fixture(scope="module")
def cluster(running_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pace = {"JOBSVC_GUARD_HEAD_SILENT_SECONDS": SILENT_SECONDS}
    with cluster_up(running_rig, tmp_path_factory.mktemp("cluster"), pace=pace) as cluster:
        yield cluster


@pytest.mark.parametrize("what", ["S3", "the standby", "everything"])
def test_the_leader_s_machine_is_cut_off(rig: Rig, cluster: Cluster, what: str) -> None:
    head = cluster.head.id
    with scenario(cluster, f"the leader's machine cut off from {what}, then healed") as (load, figures):
        for seconds in CUT_SECONDS:
            # given the leader on the manager node
            cluster.lead_on("manager")
            from_whom = {"S3": ["s3"], "the standby": [head], "everything": "everything"}[what]
            # when no packet passes for a while
            calls = len(load.told.pauses)
            machine = cluster.manager_node.id
            rig.partition(machine, from_whom)
            time.sleep(seconds)
            if machine in [each.id for each in rig.instances()]:  # else Ray has replaced it meanwhile
                if what == "the standby" and seconds > PATIENCE_SECONDS:
                    assert "answers in the store, and not here" in what_the_guard_said(rig, machine)
                rig.heal(machine)
            # then callers have waited, and the pair comes together again
            cluster.whole_pair()
            load.wait_for(8, 240)
            figures.measured[f"a cut of {seconds} s: longest pause"] = max(load.told.pauses[calls:])
    # and nobody has taken the head for dead
    assert cluster.head.id == head


def what_the_guard_said(rig: Rig, machine: str) -> str:
    return rig.run_on(machine, "journalctl -o cat -u jobsvc-guard", user="root")


def test_a_head_that_is_gone_while_ec2_says_that_it_runs_is_followed_by_another(
    rig: Rig, cluster: Cluster
) -> None:
    head = cluster.head
    with scenario(cluster, "the head gone, and EC2 says that it runs") as (_, figures):
        began = time.monotonic()
        rig.silence(head.id)
        another_head(cluster, head, figures, began)
