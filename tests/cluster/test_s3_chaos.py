"""The same promises with the journal on an S3 that misbehaves."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from jobsvc import service

from ..s3_fault_proxy import RunningProxy, running_proxy
from ..s3_server import running_s3
from .conftest import RunningService, start, wait_until
from .load import Load, judge

pytestmark = pytest.mark.chaos

PUTS_PER_SECOND_MAX = 33.0  # 30 records, and what a slow clock adds


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, RunningProxy]]:
    """A service whose journal is on a real S3 server, behind the proxy."""
    with running_s3() as server, running_proxy(server.endpoint_url) as proxy:
        chosen = server.settings("service")
        running = start(
            tmp_path_factory.mktemp("service"), data=chosen.data, s3_endpoint_url=proxy.endpoint_url
        )
        yield running, proxy
        running.client.close()
        service.down(run_dir=running.run_dir, say=lambda _: None)


def test_under_load_there_are_few_puts(s3: tuple[RunningService, RunningProxy]) -> None:
    # given load for a while
    running, _ = s3
    with Load(running, pace_seconds=0.001) as load:
        load.wait_for(50)
        before, began = _puts(running), time.monotonic()
        load.wait_for(1_000)
        puts, seconds = _puts(running) - before, time.monotonic() - began
    # then the leader has written at most so many records a second
    assert puts <= PUTS_PER_SECOND_MAX * seconds + 5
    judge(running, load.told)


def test_large_bodies_results_and_output_make_no_more_puts(
    s3: tuple[RunningService, RunningProxy],
) -> None:
    # given callers whose jobs take, print and return more than fits into a record
    running, proxy = s3
    text = "jobsvc" * 3_000
    stop = threading.Event()

    def call() -> list[str]:
        ids = []
        while not stop.is_set():
            ids += running.client.enqueue_many([{"task": "test.say_back", "args": [text]}] * 5).ids
        return ids

    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(call) for _ in range(8)]
        # when all PUTs of leader, replicas and workers are counted for a while
        time.sleep(2.0)
        proxy.set("slow", seconds=0, method="PUT")
        began = time.monotonic()
        time.sleep(10.0)
        puts, seconds = proxy.met(), time.monotonic() - began
        proxy.set("pass")
        stop.set()
        ids = [job_id for each in calls for job_id in each.result()]
    print(f"{puts / seconds:.1f} PUTs a second; {len(ids) / (seconds + 2):.0f} jobs a second were accepted")
    # then there are no more than of small jobs, though there were more jobs than PUTs
    assert puts <= PUTS_PER_SECOND_MAX * seconds + 10
    assert len(ids) > puts
    # and what was stored together is read apart
    for job_id in (ids[0], ids[len(ids) // 2], ids[-1]):
        job = running.client.job(job_id)
        assert job.result(timeout=90) == text
        assert job.logs() == f"{len(text)} characters\n"
    wait_until(
        lambda: all(running.client.status()["counts"][s] == 0 for s in ("queued", "running")), "the end"
    )


def _puts(running: RunningService) -> int:
    return int(running.managers()["leader"]["store_requests"]["put"])


@pytest.mark.parametrize("mode", ["store_then_500", "store_then_drop", "reset"])
def test_lost_answers_are_not_lost_jobs(s3: tuple[RunningService, RunningProxy], mode: str) -> None:
    running, proxy = s3
    with Load(running) as load:
        load.wait_for(50)
        # when the next PUTs are done and not answered, or not done
        proxy.set(mode, method="PUT", times=5)
        wait_until(lambda: proxy.met() == 0 or proxy.met() >= 5, "the fault to be met")
        load.wait_for(100)
    judge(running, load.told)


def test_a_slow_store_is_a_slow_service(s3: tuple[RunningService, RunningProxy]) -> None:
    running, proxy = s3
    with Load(running) as load:
        load.wait_for(20)
        proxy.set("slow", seconds=0.5)
        load.wait_for(50)
        proxy.set("pass")
        load.wait_for(50)
    judge(running, load.told)


def test_a_store_that_fails_for_twenty_seconds_stops_answers_and_loses_nothing(
    s3: tuple[RunningService, RunningProxy],
) -> None:
    running, proxy = s3
    with Load(running) as load:
        load.wait_for(50)
        # when every request fails for longer than a leader waits for its store
        proxy.set("fail_500")
        accepted = len(load.told.accepted)
        began = time.monotonic()
        while time.monotonic() - began < 20:
            time.sleep(0.5)
        told_meanwhile = len(load.told.accepted) - accepted
        proxy.set("pass")
        # then nothing was acknowledged beyond what was in the air, and everybody goes on afterwards
        assert told_meanwhile <= 4 * 5
        load.wait_for(50, seconds=90)
    judge(running, load.told, seconds=120)


def test_the_leader_is_killed_over_s3(s3: tuple[RunningService, RunningProxy]) -> None:
    running, _ = s3
    pair = running.whole_pair()
    with Load(running) as load:
        load.wait_for(50)
        os.kill(pair["leader"]["pid"], signal.SIGKILL)
        load.wait_for(100)
    judge(running, load.told)
