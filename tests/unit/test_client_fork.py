"""One client in many processes and threads: each gets its own answers, or an error, never another's."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import pickle
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobsvc.client import Client
from jobsvc.client_jobs import JobSet
from jobsvc.errors import (
    CompletionsLost,
    InvalidRequest,
    JobFailed,
    Refusal,
    Refused,
    Unavailable,
    WaitTimedOut,
)

from .local_service import LocalService

SECONDS = 30.0
# Python warns of threads beside a fork; that is what these stories are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory") as started:
        yield started


@pytest.fixture
def client(service: LocalService) -> Iterator[Client]:
    """Made by the parent, and used: it has open connections."""
    service.working = True
    with Client(service.url) as connected:
        connected.status()
        yield connected


def echoes(client: Client, seed: int, count: int = 20) -> Counter[str]:
    found: Counter[str] = Counter()
    luck = random.Random(seed)
    for _ in range(count):
        value = luck.random()
        try:
            right = client.enqueue("jobsvc.echo", value).result(SECONDS) == value
            found["right" if right else "wrong"] += 1
        except BaseException as error:
            found[repr(error)] += 1
    return found


def in_a_fork(do: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Run it in a child of `os.fork`; what it raises, or that it hangs, fails the story."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            do()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            pytest.fail("the forked process hangs")
        time.sleep(0.01)
    assert ended[1] == 0


_parents: Client


def _child(seed: int) -> Counter[str]:
    return echoes(_parents, seed)


def test_forked_processes_get_their_own_answers(client: Client) -> None:
    # given a client whose connections are open
    global _parents
    _parents = client
    client.map("jobsvc.echo", range(200), batch_jobs=10, progress=False).wait(SECONDS)
    # when eight processes are forked that all use it, and so does the parent
    with multiprocessing.get_context("fork").Pool(8) as pool:
        asked = pool.map_async(_child, range(8))
        mine = echoes(client, 99, 40)
        found: Counter[str] = sum(asked.get(4 * SECONDS), Counter())
    # then every answer was its own
    assert found == {"right": 160} and mine == {"right": 40}


def test_workers_that_are_forked_after_loading_get_their_own_answers(client: Client) -> None:
    """As gunicorn's preload does: the application is loaded once, then a worker may be forked at any time."""
    for seed in range(3):
        in_a_fork(lambda seed=seed: _assert_right(echoes(client, seed, 5)))  # type: ignore[misc]
        _assert_right(echoes(client, seed, 5))


def _assert_right(found: Counter[str]) -> None:
    assert set(found) == {"right"}, found


def test_a_fork_amid_the_calls_of_other_threads_waits_for_none_of_them(client: Client) -> None:
    # given threads that wait and send all the time, so that locks are held whenever a fork happens
    over = threading.Event()
    jobs = client.map("jobsvc.echo", range(2_000), progress=False)

    def busy() -> None:
        while not over.is_set():
            jobs.counts()
            client.enqueue("jobsvc.echo", 1).result(SECONDS)

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(busy) for _ in range(6)]
        # when the process is forked amid that
        try:
            for seed in range(6):
                in_a_fork(lambda seed=seed: _work(client, jobs, seed))  # type: ignore[misc]
        finally:
            over.set()
        for each in asked:
            each.result()


def _work(client: Client, jobs: JobSet, seed: int) -> None:
    _assert_right(echoes(client, seed, 3))
    assert jobs.wait(SECONDS) == {"succeeded": 2_000}
    assert len(list(jobs.as_completed(1))) == 2_000


def test_handles_from_before_the_fork_go_on_in_both(client: Client, service: LocalService) -> None:
    # given a job and a set that have not ended, and a set that is half given out
    service.rest()
    job, jobs = client.enqueue("jobsvc.echo", "one"), client.map("jobsvc.echo", range(50), progress=False)
    ended = client.map("jobsvc.echo", range(50), progress=False)
    service.working = True
    given = ended.as_completed(SECONDS)
    first = [next(given) for _ in range(20)]

    # then parent and child both wait for the whole of each
    def the_rest() -> None:
        assert job.result(SECONDS) == "one"
        assert jobs.results(SECONDS) == list(range(50))
        assert {each.id for each in (*first, *given)} == set(ended.ids)

    in_a_fork(the_rest)
    the_rest()


def test_a_set_that_was_being_changed_at_the_fork_is_whole_in_the_child(client: Client) -> None:
    # given a set of which another thread was taking in a job when the process was forked
    jobs = client.map("jobsvc.echo", range(3), progress=False)
    jobs.wait(SECONDS)
    half = jobs._ends.order.pop()
    jobs._ends.states["succeeded"] -= 1
    jobs._reading.acquire()
    jobs._taking.acquire()

    def count() -> None:
        assert jobs.counts() == {"open": 0, "succeeded": 3}
        assert [job.id for job in jobs.as_completed(1)][-1] == half

    in_a_fork(count)


def test_a_stream_of_the_parent_is_not_read_by_the_child(client: Client, service: LocalService) -> None:
    # given a log that is being followed
    service.rest()
    job = client.enqueue("jobsvc.echo", "spoken")
    service.working = True
    log = job.follow()
    whole = 'given: {"args":["spoken"],"kwargs":{}}\n'
    assert next(log) == whole
    # when the child goes on with it, then it opens its own, and the parent's goes on too
    in_a_fork(lambda: _assert_no_more(log))
    assert list(log) == []


def _assert_no_more(log: Iterator[str]) -> None:
    assert list(log) == []


def test_a_client_that_a_fork_closes_goes_on_in_its_parent(client: Client) -> None:
    in_a_fork(client.close)
    _assert_right(echoes(client, 1, 3))


def _raises(error: Exception) -> None:
    raise error


ERRORS = [
    InvalidRequest("is no number", "timeout"),
    Refused(Refusal("unknown_job", "no such job", "id", 1.5)),
    CompletionsLost("places 2 to 6 were of jobs that have passed their retention", "6.0123456789ab"),
    Unavailable("silence"),
    JobFailed("job j has failed", "cancelled", {"type": "E"}),
    WaitTimedOut("after 5 s"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_is_raised_in_another_process_arrives_from_there(error: Exception) -> None:
    error.add_note("in a child")
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(type(error)) as raised:
        pool.apply_async(_raises, (error,)).get(SECONDS)
    assert str(raised.value) == str(error)
    told = {name: value for name, value in vars(raised.value).items() if name != "__cause__"}
    assert told == vars(error)


def test_a_client_is_not_sent_to_another_process(client: Client) -> None:
    job, jobs = client.enqueue("jobsvc.echo", 1), client.map("jobsvc.echo", range(2), progress=False)
    for each in (client, job, jobs):
        for send in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="make one there"):
                send(each)
    assert job.result(SECONDS) == 1


def test_a_closed_client_says_so_to_all_who_use_it(service: LocalService) -> None:
    client = Client(service.url)
    job, jobs = client.enqueue("jobsvc.echo", 1), client.map("jobsvc.echo", range(2), progress=False)
    own, went = client.job(job.id), threading.Event()

    def busy(seed: int) -> Counter[str]:
        found: Counter[str] = Counter()
        while not (went.is_set() and any("closed" in each for each in found)):
            found += echoes(client, seed, 1)
        return found

    # given threads that are at it
    with ThreadPoolExecutor(32) as pool:
        asked = [pool.submit(busy, seed) for seed in range(32)]
        time.sleep(0.3)
        # when one closes it, and another once more
        client.close()
        client.close()
        went.set()
        found: Counter[str] = sum((each.result() for each in asked), Counter())
    # then each has its own answers, or is told
    assert set(found) == {"right", repr(InvalidRequest("has been closed", "client"))}

    async def awaited() -> None:
        await own

    async def read() -> None:
        async for _ in jobs:
            pass

    calls: list[Callable[[], Any]] = [
        client.status,
        own.result,
        own.wait,
        lambda: list(own.follow()),
        jobs.wait,
        lambda: next(client.completions(0)),
        lambda: asyncio.run(awaited()),
        lambda: asyncio.run(read()),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="has been closed"):
            call()


def test_a_fork_that_python_is_not_told_of_is_noticed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given what C code that forks leaves: another pid, and no hook was called
    before = client._connection.http
    monkeypatch.setattr("jobsvc.client_http.os.getpid", lambda: -1)
    # then other connections are used
    _assert_right(echoes(client, 1, 2))
    assert client._connection.http is not before


def test_thirty_two_threads_get_their_own_answers(client: Client) -> None:
    with ThreadPoolExecutor(32) as pool:
        found: Counter[str] = sum(pool.map(lambda seed: echoes(client, seed, 8), range(32)), Counter())
    assert found == {"right": 256}


def test_nobody_waits_for_a_connection_of_those_who_wait_for_jobs(
    client: Client, service: LocalService
) -> None:
    # given more threads that wait for a job than a client keeps connections
    service.rest()
    job = client.enqueue("jobsvc.echo", 1)
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(client.job(job.id).result, SECONDS) for _ in range(60)]
        deadline = time.monotonic() + SECONDS
        while service.http_waiting() < 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # then others are answered all the same
        began = time.monotonic()
        client.status()
        assert time.monotonic() - began < 5
        service.working = True
        assert {each.result() for each in waiting} == {1}
