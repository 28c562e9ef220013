"""A cluster as it should go: up, growing, shrinking, up again, noticed in time; down, with nothing left.

One cluster for the module; the tests go through its life in their order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import wait_until

from .cluster import Cluster, token_in_environment
from .conftest import Rig
from .scenario import Figures, note, scenario

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster(running_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_rig.inside():
        token_in_environment()
        yield Cluster(
            running_rig, tmp_path_factory.mktemp("cluster"), running_rig.make_bucket("jobs") + "/one"
        )


def test_ray_up_ends_with_a_service_and_the_first_job_starts_its_machine(rig: Rig, cluster: Cluster) -> None:
    # given nothing
    began = time.monotonic()
    cluster.up()
    answered = time.monotonic() - began
    # when a job comes
    job = cluster.client.enqueue("test.double", 21)
    # then it says what it waits for until a machine is there for it
    wait_until(lambda: "waiting for 1 machine since" in (job.refresh()["waiting"] or ""), "why it waits", 30)
    assert job.result(timeout=120) == 42
    figures = Figures("`ray up` from nothing to the first result", accepted=1)
    figures.measured = {"service answers after": answered, "first result after": time.monotonic() - began}
    note(figures)
    # and the two managers, and the two ways in, are on two machines
    pair = cluster.whole_pair()
    assert {cluster.machine_of(each).node_type for each in pair.values()} == {"head", "manager"}


def test_a_backlog_starts_machines_and_its_end_ends_them(rig: Rig, cluster: Cluster) -> None:
    # given no machines for workers
    wait_until(lambda: not cluster.workers(), "no machine for workers", 120)
    # when there is work for more than there may be
    began = time.monotonic()
    jobs = cluster.client.enqueue_many([{"task": "test.nap", "args": [n, 3.0]} for n in range(30)])
    grown = cluster.wait_for_workers(3)
    assert sorted(jobs.results(timeout=240)) == [2 * n for n in range(30)]
    ended = time.monotonic()
    # then there were three, and when it is done EC2 says terminated for each
    mine = [each for each in rig.instances(alive=False) if each.node_type.startswith("worker")]
    wait_until(lambda: not cluster.workers(), "the machines' end", 120)
    assert len(mine) >= 3
    assert {rig.instance(each.id).state for each in mine} == {"terminated"}
    figures = Figures("0 → 3 workers → 0", accepted=30)
    figures.measured = {
        "3 workers after": grown,
        "all done after": ended - began,
        "all terminated after another": time.monotonic() - ended,
    }
    note(figures)


def test_ray_up_again_leaves_a_living_service_alone(rig: Rig, cluster: Cluster) -> None:
    before = {each["name"]: each["pid"] for each in cluster.whole_pair().values()}
    with scenario(cluster, "`ray up` again while jobs run") as (load, _):
        cluster.up()
        load.wait_for(4, 60)
    assert {each["name"]: each["pid"] for each in cluster.pair().values()} == before


def test_no_capacity_is_said_where_a_job_waits(rig: Rig, cluster: Cluster) -> None:
    # given an EC2 that has no machines of these types
    wait_until(lambda: not cluster.workers(), "no machine for workers", 120)
    rig.refuse_capacity(["m6i.xlarge", "m5a.xlarge"])
    job = cluster.client.enqueue("test.double", 4)
    # then the job tells what EC2 said
    wait_until(lambda: "InsufficientInstanceCapacity" in (job.refresh()["waiting"] or ""), "EC2's words", 120)
    # and when there are machines again, of the other type, it runs
    began = time.monotonic()
    rig.refuse_capacity(["m6i.xlarge"])
    assert job.result(timeout=240) == 8
    figures = Figures("EC2 has no machines, then some of the other type", accepted=1)
    figures.measured = {"result after these came": time.monotonic() - began}
    note(figures)


def test_a_spot_notice_drains_its_machine(rig: Rig, cluster: Cluster) -> None:
    # given machines that work
    with scenario(cluster, "a spot notice") as (load, figures):
        nap = cluster.client.enqueue("test.nap", 1, 20.0)
        wait_until(lambda: nap.state == "running", "a long job to run", 120)
        runs_on = nap.refresh()["worker"]
        [machine] = [each for each in cluster.workers() if _runs(rig, each.id, runs_on)]
        # when EC2 says that it takes the machine back in a minute
        began = time.monotonic()
        rig.spot_notice(machine.id, seconds=60)
        wait_until(lambda: not _runs(rig, machine.id, runs_on), "the worker to leave", 60)
        figures.measured["worker gone after"] = time.monotonic() - began
        load.wait_for(4, 120)
    # then the long job ended where it was, or was given back; it was charged nothing
    assert nap.result(timeout=240) == 2
    assert nap.refresh()["failures"] == 0


def _runs(rig: Rig, instance: str, worker: str | None) -> bool:
    """Whether a worker's process is on this machine."""
    assert worker is not None
    return worker in rig.run_on(instance, "ps -eo args", user="root", check=False)


def test_down_ends_everything_and_proves_it(rig: Rig, cluster: Cluster) -> None:
    said = cluster.jobsvc("down", "--cluster", str(cluster.file))
    assert not rig.instances(), said
    states = {each.state for each in rig.instances(alive=False)}
    assert states == {"terminated"}
