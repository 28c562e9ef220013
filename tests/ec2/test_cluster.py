"""The life of a cluster: up from nothing, growing, shrinking; every machine of it is lost once; then down.

One cluster, and the tests go through its life in their order: each leaves it whole for the next. CI runs the
heart of it, `make test-ec2` all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from jobsvc.client import Job
from tests.cluster.conftest import wait_until

from .cluster import Cluster, token_in_environment
from .conftest import Rig
from .scenario import Figures, note, scenario

pytestmark = pytest.mark.timeout(600)

LEADS_SECONDS = 5.0
ALL = bool(os.environ.get("JOBSVC_EC2_ALL"))  # `make test-ec2` says so
long = pytest.mark.skipif(not ALL, reason="`make test-ec2` runs it: CI has 25 minutes for everything")
NEXT_PORT = 8001
OTHER_UNIT = r"[Service]\nExecStart=%s -m http.server 8000 --directory /run\nRestart=always\n"
OTHER_INSTALL = r"[Install]\nWantedBy=multi-user.target\n"
OCCUPY = (
    f'printf "{OTHER_UNIT}{OTHER_INSTALL}" "$(which python)"'
    " | sudo tee /etc/systemd/system/other.service >/dev/null;"
    " sudo systemctl daemon-reload; sudo systemctl enable --now other.service"
)


@pytest.fixture(scope="module")
def cluster(running_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_rig.inside():
        token_in_environment()
        # on its head something else listens on the service's port
        changes = {"head_setup_commands": [OCCUPY]}
        data = running_rig.make_bucket("jobs") + "/one"
        cluster = Cluster(running_rig, tmp_path_factory.mktemp("cluster"), data, changes)
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
    wait_until(lambda: "waiting for 1 machine" in (job.refresh()["waiting"] or ""), "why it waits", 30)
    assert job.result(timeout=120) == 42
    figures = Figures("`ray up` from nothing to the first result, port 8000 taken on the head", accepted=1)
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


@long
def test_ray_up_again_leaves_a_living_service_alone(rig: Rig, cluster: Cluster) -> None:
    before = {each["name"]: each["pid"] for each in cluster.whole_pair().values()}
    with scenario(cluster, "`ray up` again while jobs run") as (load, _):
        cluster.up()
        load.wait_for(4, 60)
    assert {each["name"]: each["pid"] for each in cluster.pair().values()} == before


@long
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


@long
def test_a_spot_notice_drains_its_machine(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "a spot notice") as (load, figures):
        nap, worker, machine = long_job(cluster, seconds=20.0)
        # when EC2 says that it takes the machine back in a minute
        began = time.monotonic()
        rig.spot_notice(machine, seconds=60)
        wait_until(lambda: cluster.worker(worker) is None, "the worker to leave", 60)
        figures.measured["worker gone after"] = time.monotonic() - began
        load.wait_for(4, 120)
    # then the long job ended where it was, or was given back; it was charged nothing
    nap = cluster.client.job(nap.id)
    assert nap.result(timeout=240) == 2
    document = nap.refresh()
    assert (document["failures"], document["crashes"]) == (0, 0)


def long_job(cluster: Cluster, seconds: float) -> tuple[Job, str, str]:
    """A job that runs now, its worker, and the machine on which that is."""
    nap = cluster.client.enqueue("test.nap", 1, seconds)
    wait_until(lambda: nap.state == "running", "a long job to run", 180)
    name = nap.refresh()["worker"]
    worker = cluster.worker(name)
    assert worker is not None
    return nap, name, cluster.machine_of(worker).id


# --- loss ---------------------------------------------------------------------------------------------


def led_by_another(cluster: Cluster, manager: str, seconds: float = 60.0) -> float:
    """How long until another manager leads."""
    began = time.monotonic()
    wait_until(
        lambda: (leader := cluster.pair().get("leader")) is not None and leader["name"] != manager,
        "another leader",
        seconds,
    )
    return time.monotonic() - began


@long
def test_a_worker_s_machine_is_unplugged(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "a worker's machine unplugged") as (_, figures):
        nap, _, machine = long_job(cluster, seconds=5.0)
        began = time.monotonic()
        rig.unplug(machine)
        wait_until(lambda: nap.refresh()["attempt"] == 2, "its job to run again", 120)
        figures.measured["its job runs again after"] = time.monotonic() - began
        assert nap.result(timeout=240) == 2


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
    "what", [pytest.param("S3", marks=long), pytest.param("the standby", marks=long), "everything"]
)
def test_the_leader_s_machine_is_cut_off(rig: Rig, cluster: Cluster, what: str) -> None:
    with scenario(cluster, f"the leader's machine cut off from {what}, then healed") as (load, figures):
        for seconds in (10, 60) if ALL else (10,):
            # given the leader on the manager node
            make_leader_on(rig, cluster, "manager")
            from_whom = {"S3": ["s3"], "the standby": [cluster.head.id], "everything": "everything"}[what]
            # when no packet passes for a while
            calls = len(load.told.pauses)
            machine = cluster.manager_node.id
            rig.partition(machine, from_whom)
            began = time.monotonic()
            wait_until(lambda began=began, seconds=seconds: time.monotonic() - began > seconds, "the end", 90)
            if machine in [each.id for each in rig.instances()]:  # else Ray has replaced it meanwhile
                rig.heal(machine)
            # then callers have waited, and the pair comes together again
            cluster.whole_pair()
            load.wait_for(8, 240)
            figures.measured[f"longest pause, cut for {seconds} s,"] = max(load.told.pauses[calls:])


@long
def test_the_head_s_ray_is_killed(rig: Rig, cluster: Cluster) -> None:
    with scenario(cluster, "GCS on the head killed with SIGKILL") as (_, figures):
        began = time.monotonic()
        rig.run_on(cluster.head.id, "pkill -9 gcs_server", user="root")
        wait_until(lambda: not cluster.is_ready(cluster.head), "the head to be down", 60)
        wait_until(lambda: cluster.is_ready(cluster.head), "the head to answer again", 240)
        figures.measured["head answers again after"] = time.monotonic() - began
        cluster.whole_pair()


@long
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


@long
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
    # and `down` has nothing to end, and proves that
    said = cluster.jobsvc("down", "--cluster", str(cluster.file))
    assert not rig.instances(), said
