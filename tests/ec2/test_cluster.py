"""The life of a cluster: up from nothing, growing, shrinking, losing workers; then down, and nothing is left.

One cluster, and the tests go through its life in their order: each leaves it whole for the next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .cluster import UP_SECONDS, WORKERS_SECONDS, Cluster, cluster_on
from .rig import Rig
from .scenario import Figures, note, scenario
from .waiting import wait_until

pytestmark = pytest.mark.timeout(900)

NEXT_PORT = 8001
RESULT_SECONDS = 400.0
NAPS = [{"task": "test.nap", "args": [n, 3.0]} for n in range(30)]
OTHER_UNIT = r"[Service]\nExecStart=%s -m http.server 8000 --directory /run\nRestart=always\n"
OTHER_INSTALL = r"[Install]\nWantedBy=multi-user.target\n"
OCCUPY = (
    f'printf "{OTHER_UNIT}{OTHER_INSTALL}" "$(which python)"'
    " | sudo tee /etc/systemd/system/other.service >/dev/null;"
    " sudo systemctl daemon-reload; sudo systemctl enable --now other.service"
)


@pytest.fixture(scope="module")
def cluster(running_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # on its head something else listens on the service's port
    changes = {"head_setup_commands": [OCCUPY]}
    with cluster_on(running_rig, tmp_path_factory.mktemp("cluster"), changes=changes) as cluster:
        cluster.port = NEXT_PORT
        yield cluster


def test_ray_up_ends_with_a_service_and_the_first_job_starts_its_machine(rig: Rig, cluster: Cluster) -> None:
    # given nothing, and a head on whose port something else will listen
    began = time.monotonic()
    said = cluster.up()
    answered = time.monotonic() - began
    # then the next port is used, and `ray up` says so
    assert f":{NEXT_PORT}" in said
    # when a job comes
    job = cluster.client.enqueue("test.double", 21)
    # then it says what it waits for until a machine is there for it
    wait_until(lambda: "waiting for 1 machine" in (job.refresh()["waiting"] or ""), "why it waits")
    assert job.result(timeout=RESULT_SECONDS) == 42
    figures = Figures("`ray up` from nothing to the first result, port 8000 taken on the head", accepted=1)
    figures.measured = {"service answers after": answered, "first result after": time.monotonic() - began}
    note(figures)
    # and the two managers, and the two ways in, are on two machines
    nap = cluster.client.enqueue("test.nap", 1, 3.0)  # from now on it is known that jobs take seconds
    pair = cluster.whole_pair()
    assert {cluster.machine_of(each).node_type for each in pair.values()} == {"head", "manager"}
    assert cluster.client.job(nap.id).result(timeout=RESULT_SECONDS) == 2


def test_a_backlog_starts_machines_and_its_end_ends_them(rig: Rig, cluster: Cluster) -> None:
    # given no machines for workers
    cluster.wait_for_no_workers()
    # when there is work for more than there may be, until all of them work at once
    began = time.monotonic()
    backlog = [cluster.client.enqueue_many(NAPS)]

    def three_work() -> bool:
        status = cluster.status()
        if status is not None and status["counts"]["queued"] < len(NAPS) / 3:
            backlog.append(cluster.client.enqueue_many(NAPS))
        return len(cluster.workers()) == 3 and cluster.working() == 3

    wait_until(three_work, "three machines that work", WORKERS_SECONDS)
    grown = time.monotonic() - began
    for jobs in backlog:
        assert sorted(jobs.results(timeout=RESULT_SECONDS)) == [2 * n for n in range(len(NAPS))]
    ended = time.monotonic()
    # then there were three, and when it is done EC2 says terminated for each
    mine = [each for each in rig.instances(alive=False) if each.node_type.startswith("worker")]
    cluster.wait_for_no_workers()
    assert len(mine) >= 3
    assert {rig.instance(each.id).state for each in mine} == {"terminated"}
    figures = Figures("0 → 3 workers → 0", accepted=len(backlog) * len(NAPS))
    figures.measured = {
        "3 workers after": grown,
        "all done after": ended - began,
        "all terminated after another": time.monotonic() - ended,
    }
    note(figures)


def test_no_capacity_is_said_where_a_job_waits(rig: Rig, cluster: Cluster) -> None:
    # given an EC2 that has no machines of these types
    cluster.wait_for_no_workers()
    rig.refuse_capacity(["m6i.xlarge", "m5a.xlarge"])
    job = cluster.client.enqueue("test.double", 4)
    # then the job tells what EC2 said
    wait_until(lambda: "InsufficientInstanceCapacity" in (job.refresh()["waiting"] or ""), "EC2's words", 240)
    # and when there are machines again, of the other type, it runs
    began = time.monotonic()
    rig.refuse_capacity(["m6i.xlarge"])
    assert job.result(timeout=RESULT_SECONDS) == 8
    figures = Figures("EC2 has no machines, then some of the other type", accepted=1)
    figures.measured = {"result after these came": time.monotonic() - began}
    note(figures)


def test_ray_up_again_leaves_a_living_service_alone(rig: Rig, cluster: Cluster) -> None:
    before = {each["name"]: each["pid"] for each in cluster.whole_pair().values()}
    with scenario(cluster, "`ray up` again while jobs run") as (load, _):
        cluster.up()
        load.wait_for(4, 120)
    assert {each["name"]: each["pid"] for each in cluster.pair().values()} == before


def test_a_spot_notice_drains_its_machine(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "a spot notice") as (load, figures):
        nap, worker, machine = cluster.long_job(seconds=15.0)
        # when EC2 says that it takes the machine back in a minute
        began = time.monotonic()
        rig.spot_notice(machine, seconds=60)
        wait_until(lambda: cluster.worker(worker) is None, "the worker to leave", 120)
        figures.measured["worker gone after"] = time.monotonic() - began
        load.wait_for(4, 240)
    # then the long job ended where it was, or was given back; it was charged nothing
    nap = cluster.client.job(nap.id)
    assert nap.result(timeout=RESULT_SECONDS) == 2
    document = nap.refresh()
    assert (document["failures"], document["crashes"]) == (0, 0)


def test_a_worker_s_machine_is_unplugged(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "a worker's machine unplugged") as (_, figures):
        nap, _, machine = cluster.long_job(seconds=5.0)
        began = time.monotonic()
        rig.unplug(machine)
        wait_until(lambda: nap.refresh()["attempt"] == 2, "its job to run again", 240)
        figures.measured["its job runs again after"] = time.monotonic() - began
        assert nap.result(timeout=RESULT_SECONDS) == 2


def test_ray_down_is_interrupted_and_the_sweeper_ends_the_rest(rig: Rig, cluster: Cluster) -> None:
    # given `ray down` that ends half way: some machines are gone, and nobody looks after the others
    cluster.whole_pair()
    accepted = cluster.client.enqueue("test.double", 3)
    assert accepted.result(timeout=RESULT_SECONDS) == 6
    down = ["timeout", "-s", "KILL", "6", "ray", "down", "-y", str(cluster.file)]
    rig.operator(down, check=False, timeout=UP_SECONDS)
    left = len(rig.instances())
    # when it is swept
    said = cluster.jobsvc("sweep", str(cluster.file), "--yes", "--dead")
    # then nothing is left, and EC2 says so
    wait_until(lambda: not rig.instances(), f"the end of {left} machines: {said}", 240)
    assert {each.state for each in rig.instances(alive=False)} == {"terminated"}
    figures = Figures("`ray down` interrupted, then `jobsvc sweep`", accepted=1)
    figures.measured["machines that were left"] = left
    note(figures)
    # and `down` has nothing to end, and proves that
    said = cluster.jobsvc("down", "--cluster", str(cluster.file))
    assert not rig.instances(), said
