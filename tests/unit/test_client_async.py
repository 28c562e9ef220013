"""Awaiting jobs: as fast beside many as alone, without a thread, and whoever is cancelled leaves alone."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest

from jobsvc.client import Client
from jobsvc.client_async import ALONE_MAX, LoopClient
from jobsvc.client_job import Job
from jobsvc.client_jobs import JobSet
from jobsvc.errors import JobFailed, Refused, Unavailable

from .local_service import LocalService, ScriptedServer, answer, unused_url

SECONDS = 30.0
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory") as started:
        yield started


@pytest.fixture
def client(service: LocalService) -> Iterator[Client]:
    service.working = True
    with Client(service.url) as connected:
        yield connected
    service.working = True


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - the service is another thread's
            await asyncio.sleep(0.01)


def test_event_loops_that_are_closed_are_forgotten(client: Client) -> None:
    async def ask() -> None:
        assert await client.enqueue("jobsvc.echo", 1) == 1

    for _ in range(10):
        asyncio.run(ask())
    assert len(client._loops) == 1


def started(*waiting: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    async def one(each: Awaitable[Any]) -> Any:
        return await each

    return [asyncio.create_task(one(each)) for each in waiting]


async def seconds_of(work: Awaitable[Any]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def other_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def paused(client: Client, count: int) -> list[Job]:
    """Jobs of a queue that is paused: they never end."""
    client.pause("later")
    jobs = client.map("jobsvc.echo", range(count), queue="later", progress=False)
    return [client.job(job_id) for job_id in jobs.ids]


@pytest.mark.parametrize("beside", [0, 1, ALONE_MAX, 30, 1_000])
def test_a_job_is_awaited_as_fast_beside_others_as_alone(client: Client, beside: int) -> None:
    async def median_seconds() -> float:
        """Of awaiting a job that ends at once."""
        return sorted([await seconds_of(client.enqueue("jobsvc.echo", 1)) for _ in range(11)])[5]

    async def story() -> None:
        alone = await median_seconds()
        # given others that wait for what does not end
        waiting = started(*paused(client, beside)) if beside else []
        await asyncio.sleep(0.2)
        # then a job is awaited all the same in milliseconds
        assert await median_seconds() < 30 * alone
        if waiting:
            await ended(waiting)

    asyncio.run(story())


def test_ten_thousand_are_awaited_by_few_connections_and_no_thread(
    client: Client, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given ten thousand jobs, of which none has ended
    service.rest()
    handles = [client.job(each) for each in client.map("jobsvc.echo", range(10_000), progress=False).ids]
    polls = set()
    feed = LoopClient.feed

    async def counted(self: LoopClient, *arguments: Any, **named: Any) -> Any:
        polls.add(asyncio.current_task())
        return await feed(self, *arguments, **named)

    monkeypatch.setattr(LoopClient, "feed", counted)

    async def story() -> None:
        threads = threading.active_count()
        waiting = started(*handles)
        await asyncio.sleep(1.0)
        service.working = True
        # when they end, then each has its own result
        assert await asyncio.gather(*waiting) == list(range(10_000))
        assert threading.active_count() <= threads
        # and one reader was enough
        assert len(polls) == 1

    asyncio.run(story())


def test_what_had_ended_before_is_there_at_once(client: Client) -> None:
    jobs = client.map("jobsvc.echo", range(50), progress=False)
    jobs.wait(SECONDS)

    async def story() -> None:
        handles = [client.job(job_id) for job_id in jobs.ids]
        assert await asyncio.gather(*handles) == list(range(50))
        assert await handles[0] == 0, "once more asks nobody"

    asyncio.run(story())


def test_results_that_the_feed_does_not_carry_and_failures_are_fetched(client: Client) -> None:
    async def story() -> None:
        waiting = started(*paused(client, ALONE_MAX))
        await asyncio.sleep(0.1)
        raw = client.enqueue_bytes("jobsvc.echo", bytes(20_000))
        bad = client.enqueue("jobsvc.sha512", "x", iterations=0, max_attempts=1)
        gone = client.job("00000000-0000-7000-8000-000000000000")
        found = await asyncio.gather(raw, bad, gone, return_exceptions=True)
        assert found[0] == bytes(20_000)
        assert isinstance(found[1], JobFailed) and "Traceback of the task" in found[1].__notes__[0]
        assert isinstance(found[2], Refused) and found[2].refusal.code == "unknown_job"
        await ended(waiting)

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_a_cancellation_at_any_await_leaves_everything_usable(client: Client, seed: int) -> None:
    async def story() -> None:
        luck = random.Random(seed)
        jobs = client.map("jobsvc.echo", range(150), progress=False)
        handles = [client.job(job_id) for job_id in jobs.ids]
        # given callers who give up after any number of turns of the loop
        for turns in range(90):
            waiting = started(*luck.sample(handles, 8), anext(aiter(jobs)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await ended(luck.sample(waiting, 6))
            await asyncio.gather(*waiting, return_exceptions=True)
        # then all others get what is theirs, and nobody is left behind
        assert await asyncio.gather(*handles) == list(range(150))
        assert {job.id async for job in jobs} == set(jobs.ids)
        assert await client.enqueue("jobsvc.echo", "after") == "after"
        await until(lambda: not other_tasks())

    asyncio.run(story())


def test_the_last_one_who_leaves_ends_the_reader(client: Client) -> None:
    async def story() -> None:
        waiting = started(*paused(client, ALONE_MAX + 20))
        await asyncio.sleep(0.2)
        assert len(other_tasks()) > ALONE_MAX + 20
        await ended(waiting)
        assert other_tasks() == set()

    asyncio.run(story())


def test_sets_are_read_by_many_at_once(client: Client) -> None:
    async def story() -> None:
        sets = [client.map("jobsvc.echo", range(40), progress=False) for _ in range(5)]

        async def all_of(jobs: Any) -> int:
            return sum([await job async for job in jobs])

        assert await asyncio.gather(*(all_of(jobs) for jobs in sets * 3)) == [780] * 15

    asyncio.run(story())


def test_nobody_there_is_told_to_all_who_wait() -> None:
    client = Client(unused_url(), deadline_seconds=0.3)

    async def story() -> None:
        jobs = [client.job(f"job-{number}") for number in range(20)]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert {type(each) for each in found} == {Unavailable}
        assert other_tasks() == set()

    asyncio.run(story())


def test_a_set_whose_service_dies_amid_its_looks_says_so_as_anybody_does() -> None:
    """As one error, not as the group of those who asked."""

    def reply(asked: Any) -> Any:
        if asked.path.startswith("/v1/completions"):
            return answer({"entries": [], "next": 9, "newest": 9, "truncated": True})
        return answer({"code": "no_leader", "detail": "nobody leads", "retryable": True}, 503)

    async def story(client: Client) -> None:
        async for _ in JobSet(client, [f"job-{number}" for number in range(20)], 1):
            pass

    with (
        ScriptedServer(reply=reply) as server,
        Client(server.url, deadline_seconds=0.3) as client,
        pytest.raises(Unavailable, match="nobody leads"),
    ):
        asyncio.run(story(client))


def test_a_feed_that_has_forgotten_makes_it_look_again() -> None:
    # given a service whose feed tells of nothing any more
    page = {"entries": [], "next": 9, "oldest": 9, "newest": 9, "truncated": True}
    looks = 0

    def reply(asked: Any) -> Any:
        nonlocal looks
        if asked.path.startswith("/v1/completions"):
            return answer(page)
        if asked.path.startswith("/v1/jobs/late"):
            looks += 1
            return answer(5, **JSON_TYPE) if looks > 1 else answer({"state": "running"}, 202)
        time.sleep(0.2)
        return answer({"state": "running"}, 202)

    async def story(client: Client) -> None:
        waiting = started(*(client.job(f"open-{number}") for number in range(ALONE_MAX)))
        await asyncio.sleep(0.1)
        assert await client.job("late") == 5
        await ended(waiting)

    with ScriptedServer(reply=reply) as server, Client(server.url) as client:
        asyncio.run(story(client))


def test_loops_one_after_the_other_and_side_by_side(client: Client) -> None:
    async def story() -> None:
        assert await client.enqueue("jobsvc.echo", 1) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for _ in range(3):
            asyncio.run(story())
        gc.collect()
    threads = [threading.Thread(target=asyncio.run, args=(story(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)


def run_story(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def test_a_connection_that_breaks_is_opened_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = 0
    ask = httpx.AsyncClient.request

    async def breaks(self: httpx.AsyncClient, *arguments: Any, **named: Any) -> Any:
        nonlocal broken
        broken += 1
        if broken % 2:
            raise httpx.ReadError("broken")
        return await ask(self, *arguments, **named)

    monkeypatch.setattr(httpx.AsyncClient, "request", breaks)

    async def story() -> None:
        assert await asyncio.gather(*(client.enqueue("jobsvc.echo", n) for n in range(20))) == list(range(20))

    run_story(story)
