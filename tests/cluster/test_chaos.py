"""Real processes killed with real signals, under load, judged by what callers were told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from .conftest import RunningService, wait_until
from .load import Load, judge
from .tasks_under_test import mark

pytestmark = pytest.mark.chaos


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("role", ["leader", "standby"])
def test_a_killed_manager_loses_nothing(running: RunningService, role: str) -> None:
    # given load on a whole pair
    pair = running.whole_pair()
    with Load(running) as load:
        load.wait_for(100)
        # when one of the two is killed
        kill(pair[role]["pid"])
        # then callers go on
        load.wait_for(200)
    judge(running, load.told)
    # and the pair becomes whole again
    running.whole_pair()


def test_both_managers_killed_at_once(running: RunningService) -> None:
    pair = running.whole_pair()
    with Load(running) as load:
        load.wait_for(100)
        for manager in pair.values():
            kill(manager["pid"])
        load.wait_for(200)
    judge(running, load.told)


def test_a_worker_killed_in_the_middle_of_jobs(running: RunningService) -> None:
    with Load(running) as load:
        load.wait_for(100)
        for worker in running.client.workers():
            kill(worker["pid"])
        load.wait_for(200)
    judge(running, load.told)


def test_a_killed_replica_is_a_pause(running: RunningService) -> None:
    # given the process that serves HTTP
    replicas = [process for process in running.processes() if "ServeReplica" in " ".join(process.cmdline())]
    assert replicas, [process.cmdline() for process in running.processes()]
    with Load(running) as load:
        load.wait_for(100)
        # when it is killed, callers send again under the same key
        for replica in replicas:
            replica.kill()
        load.wait_for(200)
    judge(running, load.told)


def test_a_stopped_leader_that_wakes_up_acknowledges_nothing(running: RunningService) -> None:
    # given a leader that is stopped, not dead
    pair = running.whole_pair()
    stopped = pair["leader"]
    with Load(running) as load:
        load.wait_for(100)
        os.kill(stopped["pid"], signal.SIGSTOP)
        try:
            # when the standby has taken over
            new = wait_until(
                lambda: (
                    (found := running.managers().get("leader"))
                    and found["name"] != stopped["name"]
                    and found["epoch"] > stopped["epoch"]
                ),
                "the standby to lead",
            )
            assert new
            load.wait_for(50)
        finally:
            os.kill(stopped["pid"], signal.SIGCONT)
        # then the old one ends by itself, fenced, and comes back as the standby
        wait_until(lambda: not psutil.pid_exists(stopped["pid"]), "the fenced leader to end")
        load.wait_for(50)
    judge(running, load.told)
    assert running.whole_pair()["standby"]["name"] == stopped["name"]


def test_managers_are_down_while_workers_finish(running: RunningService, tmp_path: Path) -> None:
    # given jobs that run while both managers are stopped for longer than outbox_after_seconds
    pair = running.whole_pair()
    marks = tmp_path / "marks"
    job = running.client.enqueue(mark, str(marks), seconds=1.0)
    wait_until(marks.exists, "the job to begin")
    for manager in pair.values():
        os.kill(manager["pid"], signal.SIGSTOP)
    try:
        wait_until(lambda: "end" in marks.read_text(), "the job to end without managers")
        outbox = Path(running.info.data) / "objects" / "outbox"
        # when its worker has written the outbox, and the managers die
        wait_until(lambda: any(path.is_file() for path in outbox.rglob("*")), "the outbox to be written")
    finally:
        for manager in pair.values():
            kill(manager["pid"])
    # then the job is not run again
    assert job.result(60) == "done"
    assert marks.read_text().count("begin") == 1


def test_all_of_ray_is_killed_and_up_brings_every_job_back(running: RunningService) -> None:
    # given accepted jobs, some of them still queued because the queue is paused
    client = running.client
    client.pause("later")
    kept = client.enqueue_many([{"task": "test.double", "args": [n], "queue": "later"} for n in range(50)])
    with Load(running) as load:
        load.wait_for(100)
    # when every process is killed, and the service is started again on the same store
    running.kill_everything()
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{running.url}/healthz", timeout=2)
    running.up()
    # then everything is there
    judge(running, load.told)
    assert running.client.job(kept.ids[0]).state == "queued"
    running.client.resume("later")
    for number, job_id in enumerate(kept.ids):
        assert running.client.job(job_id).result(60) == 2 * number


def test_pauses_are_short_when_the_leader_dies(running: RunningService) -> None:
    """P6, with room for a busy machine: the benchmarks say how short."""
    pair = running.whole_pair()
    with Load(running, callers=2, batch=1) as load:
        load.wait_for(30)
        began = time.monotonic()
        kill(pair["leader"]["pid"])
        load.wait_for(30)
    assert time.monotonic() - began < 60
    judge(running, load.told)
    assert max(load.told.pauses) < 15
