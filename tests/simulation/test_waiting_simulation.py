"""Everybody who can wait, while nothing happens for hours, and while the leader is lost in that silence."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
import typer

from jobsvc import cli_jobs, cli_watch, commit_loop, leader, leader_links, manager, pool_scaler, worker
from jobsvc.client import Client
from jobsvc.client_async import ALONE_MAX
from jobsvc.errors import Unavailable, WaitTimedOut

from ..unit.http_world import Stream
from .waiting_world import URL, World, blocking, run

HOUR_SECONDS = 3_600.0
DAY_SECONDS = 24 * HOUR_SECONDS
LATE_SECONDS = 0.3  # of an answer on a healthy service
FAILOVER_SECONDS = 15.0
ROUGH_SECONDS = 600.0
NO_END = [None, math.inf, DAY_SECONDS]
# below, at and above every limit on the way: 10, 15, 20, 30, 60, 60 + 20 s
TIMEOUTS = [0.0, 0.5, 9.0, 14.0, 15.0, 16.0, 20.0, 21.0, 30.0, 59.0, 60.0, 61.0, 79.0, 81.0, 900.0]
FAULTS: dict[str, Callable[[World], None]] = {
    "quiet": lambda world: None,
    "leader killed": World.kill_leader,
    "leader stopped": World.stop_leader,
    "replica killed": World.kill_replica,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


Wait = Callable[[Client, Any, Any, float | None], Any]
WAITS: dict[str, Wait] = {
    "Job.wait": lambda client, job, jobs, timeout: job.wait(timeout)["state"] == "succeeded",
    "Job.result": lambda client, job, jobs, timeout: job.result(timeout) == "slept",
    "JobSet.wait": lambda client, job, jobs, timeout: jobs.wait(timeout) == {"succeeded": 1},
    "JobSet.results": lambda client, job, jobs, timeout: jobs.results(timeout) == ["slept"],
    "JobSet.as_completed": lambda client, job, jobs, timeout: len(list(jobs.as_completed(timeout))) == 1,
}


class Watch:
    """One who waits, and what came of it and when."""

    def __init__(self, world: World, name: str, timeout: float | None) -> None:
        self._world = world
        self.name = f"{name}({timeout})"
        self.timeout = timeout
        self.outcome: Any = None
        self.seconds = 0.0

    async def run(self, wait: Callable[[], Any]) -> None:
        began = self._world.loop.time()
        try:
            self.outcome = await blocking(wait)
        except Exception as error:
            self.outcome = error
        self.seconds = self._world.loop.time() - began

    def check(self, job_seconds: float, late: float) -> None:
        """On time, or with the result."""
        if self.timeout in NO_END:
            assert self.outcome is True, (self.name, self.outcome, self.seconds)
            assert self.seconds <= job_seconds + 2 * FAILOVER_SECONDS, (self.name, self.seconds)
        else:
            assert isinstance(self.outcome, WaitTimedOut), (self.name, self.outcome, self.seconds)
            assert self.timeout <= self.seconds <= self.timeout + late, (self.name, self.seconds)


@pytest.mark.parametrize(
    ("fault", "hours"),
    [("quiet", 2.0), ("leader killed", 2.0), ("leader stopped", 0.3), ("replica killed", 0.3)],
)
def test_every_wait_for_a_job_of_hours_ends_with_it_or_with_its_own_time(
    fault: str, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_seconds = hours * HOUR_SECONDS

    async def story(world: World) -> None:
        # given a job that runs for hours, and nothing else
        own = world.client()
        sent = await blocking(lambda: own.map("jobsvc.sleep", [job_seconds], progress=False))
        watches, tasks = [], []
        for number, (name, wait) in enumerate(WAITS.items()):
            for timeout in (*TIMEOUTS, NO_END[number % 3]):
                client = world.client()
                jobs = type(sent)(client, sent.ids, sent._ends.after)
                watch = Watch(world, name, timeout)
                watches.append(watch)
                call = _waiting(wait, client, client.job(sent.ids[0]), jobs, timeout)
                tasks.append(world.loop.create_task(watch.run(call)))
        # when something breaks in the silence, again and again
        for after in (7.0, 11.5, 40.0, job_seconds / 2):
            await asyncio.sleep(after)
            FAULTS[fault](world)
        await asyncio.wait(tasks)
        # then nobody was told anything but the truth, in time
        for watch in watches:
            watch.check(job_seconds, LATE_SECONDS if fault == "quiet" else FAILOVER_SECONDS)

    run(story, monkeypatch, heartbeat_seconds=15.0)


def _waiting(wait: Wait, client: Client, job: Any, jobs: Any, timeout: float | None) -> Callable[[], Any]:
    return lambda: wait(client, job, jobs, timeout)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.lives(3, 1)
def test_jobs_are_awaited_in_a_loop_for_hours(
    fault: str, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        # given awaits of a job of half an hour, alone and beside one another, and of a set
        client = world.client()
        jobs = await blocking(
            lambda: client.map("jobsvc.sleep", [HOUR_SECONDS / 2, HOUR_SECONDS / 3], progress=False)
        )
        handles = [client.job(jobs.ids[number % 2]) for number in range(5 * ALONE_MAX)]

        async def await_one(job: Any) -> Any:
            return await job

        async def await_all() -> Any:
            return [await job async for job in jobs]

        tasks = [world.loop.create_task(await_one(job)) for job in handles]
        tasks.append(world.loop.create_task(await_all()))
        # when something breaks meanwhile, and some give up
        for _ in range(4):
            await asyncio.sleep(world.random.random() * 300)
            FAULTS[fault](world)
            tasks.pop(0).cancel()
        # then all others have their results
        found = await asyncio.gather(*tasks)
        assert found == ["slept"] * (len(handles) - 4) + [["slept", "slept"]]

    run(story, monkeypatch, seeds.start, heartbeat_seconds=15.0)


class Caller:
    """One program with a client of its own: it sends jobs, and waits for them in one way or another."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = Random(world.random.random())
        self._client = world.client()
        self.problems: list[str] = []

    async def live(self) -> None:
        random = self._random
        ways = [self._results, self._as_completed, self._one, self._timed]
        while self._world.loop.time() < ROUGH_SECONDS:
            seconds = [random.choice((0.01, 1.0, 7.0, 25.0, 90.0)) for _ in range(random.choice((1, 1, 3)))]
            way = random.choice([*ways, self._awaited])
            try:
                if way == self._awaited:
                    await self._awaited(seconds)
                else:
                    await blocking(lambda way=way, seconds=seconds: way(seconds))  # type: ignore[misc]
            except Exception as error:
                self.problems.append(f"{way.__name__}({seconds}) at {self._world.loop.time():.1f}: {error!r}")
            await asyncio.sleep(random.choice((0.0, 1.0, 40.0)))

    def _map(self, seconds: list[float]) -> Any:
        return self._client.map("jobsvc.sleep", seconds, progress=False)

    def _results(self, seconds: list[float]) -> None:
        assert self._map(seconds).results() == ["slept"] * len(seconds)

    def _as_completed(self, seconds: list[float]) -> None:
        jobs = self._map(seconds)
        assert {job.id for job in jobs.as_completed()} == set(jobs.ids)

    def _one(self, seconds: list[float]) -> None:
        assert self._client.enqueue("jobsvc.sleep", seconds[0]).result() == "slept"

    def _timed(self, seconds: list[float]) -> None:
        """Again and again until it has ended, as callers do who look at something else in between."""
        jobs, loop = self._map(seconds), self._world.loop
        timeout = self._random.choice((0.0, 0.5, 12.0, 30.0))
        while True:
            began = loop.time()
            try:
                jobs.wait(timeout)
                return
            except WaitTimedOut:
                assert loop.time() - began <= max(timeout + 2.5, 10.5), "late"
                _sleep(1.0)

    async def _awaited(self, seconds: list[float]) -> None:
        jobs = await blocking(lambda: self._map(seconds))
        assert [await job async for job in jobs] == ["slept"] * len(seconds)


@pytest.mark.lives(16, 4)
def test_callers_of_every_kind_outlast_rough_times(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        # given callers that send jobs and wait for them all the time
        callers = [Caller(world) for _ in range(6)]
        lives = [world.loop.create_task(caller.live()) for caller in callers]
        # when something breaks every minute or so
        while world.loop.time() < ROUGH_SECONDS:
            await asyncio.sleep(world.random.expovariate(1.0) * 40.0)
            FAULTS[world.random.choice([*FAULTS])](world)
        # then each has had the results of all its jobs, and no error
        await asyncio.wait(lives, timeout=1_000.0)
        assert all(life.done() for life in lives)
        assert [problem for caller in callers for problem in caller.problems] == []
        assert world.lost > 0

    for seed in seeds:
        with monkeypatch.context() as patch:
            run(story, patch, seed)


def test_a_client_that_sleeps_between_its_calls_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        client = world.client()

        def call() -> None:
            jobs = client.map("jobsvc.sleep", [1.0, 2.0], progress=False)
            later = client.enqueue("jobsvc.sleep", 1.0, delay=1_200.0)
            _sleep(1_000.0)
            assert jobs.results(0) == ["slept", "slept"], "0 looks once"
            with pytest.raises(WaitTimedOut):
                later.result(0)
            _sleep(1_000.0)
            assert later.result(0) == "slept"
            given = jobs.as_completed(0)
            next(given)
            _sleep(1_000.0)
            assert len(list(given)) == 1

        world.loop.call_later(500.0, world.kill_leader)
        world.loop.call_later(1_500.0, world.kill_replica)
        await blocking(call)

    run(story, monkeypatch, heartbeat_seconds=15.0)


def _sleep(seconds: float) -> None:
    from jobsvc import client_http

    client_http.time.sleep(seconds)


def test_a_day_of_silence_with_the_leader_killed_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a service whose own pulses are slow, so that a day has not so many
    for module, name in (
        (leader, "TICK_SECONDS"),
        (commit_loop, "SIGN_OF_LIFE_SECONDS"),
        (worker, "LOOK_SECONDS"),
        (pool_scaler, "LOOK_SECONDS"),
        (manager, "STALE_CHECK_SECONDS"),
        (leader_links, "POLL_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 20.0)

    async def story(world: World) -> None:
        client = world.client()

        def wait() -> Any:
            job = client.enqueue("jobsvc.sleep", 1.0, delay=DAY_SECONDS)
            return job.result()

        def follow() -> Any:
            return next(client.completions(client.feed_end(), follow=True)).state

        async def one(call: Callable[[], Any]) -> Any:
            return await blocking(call)

        tasks = [world.loop.create_task(one(call)) for call in (wait, follow)]
        await asyncio.sleep(DAY_SECONDS / 2)
        world.kill_leader()
        assert await asyncio.gather(*tasks) == ["slept", "succeeded"]
        assert world.loop.time() < DAY_SECONDS + 120

    run(
        story,
        monkeypatch,
        heartbeat_seconds=100.0,
        lease_seconds=300.0,
        idle_record_seconds=60.0,
        takeover_silence_seconds=60.0,
        stepdown_seconds=120.0,
        snapshot_records=300,
    )


# --- HTTP -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 0.3, 10.0, 14.0, 16.0, 20.0, 59.0, 60.0, 61.0, 3_600.0])
@pytest.mark.parametrize("fault", ["quiet", "leader killed"])
def test_a_wait_over_http_ends_with_its_time(
    seconds: float, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        http, loop = world.replica.http, world.loop
        job_id = await world.replica.enqueue("jobsvc.sleep", args=[1_000.0])
        end = (await http.get("/v1/completions", params={"after": -1, "limit": 0})).json()["next"]
        began = loop.time()

        async def timed(path: str, status: int, **headers: str) -> float:
            answer = await http.get(path, headers=headers)
            assert answer.status_code == status, answer.text
            return loop.time() - began

        asked = [
            timed(f"/v1/completions?after={end}&wait={seconds}", 200),
            timed(f"/v1/jobs/{job_id}", 200, Prefer=f"wait={seconds}"),
            timed(f"/v1/jobs/{job_id}?wait={seconds}", 200),
            timed(f"/v1/jobs/{job_id}/result", 202, Prefer=f"wait={seconds}"),
        ]
        if fault != "quiet":
            loop.call_later(min(seconds, 60.0) / 2, world.kill_leader)
        late = LATE_SECONDS if fault == "quiet" else FAILOVER_SECONDS
        for taken in await asyncio.gather(*asked):
            assert min(seconds, 60.0) <= taken + 0.01 <= min(seconds, 60.0) + late

    run(story, monkeypatch)


@pytest.mark.parametrize("fault", ["quiet", "leader killed", "leader stopped"])
def test_streams_are_never_silent_for_long(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client takes for a dead stream is 30 s without a byte."""

    async def story(world: World) -> None:
        # given streams of everything: of a job that runs, one that has not begun, the feed, the live page
        app = world.replica.app
        running = await world.replica.enqueue("jobsvc.sleep", args=[900.0])
        queued = await world.replica.enqueue("jobsvc.sleep", args=[1.0], delay_seconds=5_000.0)
        paths = [f"/v1/jobs/{running}/logs", f"/v1/jobs/{queued}/logs", "/v1/completions", "/v1/events"]
        streams = [Stream(app, path) for path in paths]
        gaps = [0.0] * len(streams)

        async def follow(number: int, stream: Stream) -> None:
            last = world.loop.time()
            while True:
                await stream._pieces.get()
                now = world.loop.time()
                gaps[number], last = max(gaps[number], now - last), now

        readers = [world.loop.create_task(follow(*each)) for each in enumerate(streams)]
        # when the service does nothing but lose its leader
        for _ in range(3):
            await asyncio.sleep(200.0 + world.random.random() * 10)
            FAULTS[fault](world)
        await asyncio.sleep(200.0)
        for reader in readers:
            reader.cancel()
        for stream in streams:
            await stream.hang_up()
        # then something came all the time
        assert max(gaps) <= (10.5 if fault == "quiet" else 27.0), dict(zip(paths, gaps, strict=True))
        assert min(gaps) > 0.0

    run(story, monkeypatch)


# --- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_the_commands_that_wait_outlast_silence_and_failover(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(world: World) -> None:
        job_id = await world.replica.enqueue("jobsvc.sleep", args=[1_500.0], batch="night")
        other = await world.replica.enqueue("jobsvc.sleep", args=[1_000.0], batch="night")
        commands: dict[str, Callable[[], Any]] = {
            "wait": lambda: cli_jobs.wait([job_id, other], url=URL),
            "wait --batch": lambda: cli_jobs.wait(batch="night", url=URL),
            "enqueue --wait": lambda: cli_jobs.enqueue("jobsvc.sleep", ["1200"], wait=True, url=URL),
            "result --timeout": lambda: cli_jobs.result(job_id, timeout=2_000.0, url=URL),
            "logs -f": lambda: cli_jobs.logs(job_id, follow=True, url=URL),
            "completions -f": lambda: cli_jobs.completions(0, follow=True, url=URL),
            "watch": lambda: cli_watch.watch(looks=100, seconds=12.0, url=URL),
        }
        codes: dict[str, Any] = {}

        async def command(name: str, call: Callable[[], Any]) -> None:
            try:
                codes[name] = await blocking(call)
            except typer.Exit as ended:
                codes[name] = ended.exit_code

        tasks = {name: world.loop.create_task(command(name, call)) for name, call in commands.items()}
        for _ in range(3):
            await asyncio.sleep(250.0 + world.random.random() * 100)
            FAULTS[fault](world)
        follow = tasks.pop("completions -f")
        await asyncio.wait(tasks.values(), timeout=3_000.0)
        assert not follow.done(), "it goes on for ever"
        follow.cancel()
        assert {name: codes.get(name, "still waits") for name in tasks} == dict.fromkeys(tasks)

    run(story, monkeypatch, heartbeat_seconds=15.0)
    out = capsys.readouterr().out
    assert "awake" in out and "slept" in out


# --- nobody there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0.0, 5.0, 60.0, 200.0, None])
@pytest.mark.parametrize("outage", ["no leader", "no replica"])
def test_an_outage_is_outlasted_by_those_whose_deadline_is_longer(
    deadline: float | None, outage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        client = world.client(deadline)
        waits = dict(WAITS)
        jobs = await blocking(lambda: world.client().map("jobsvc.sleep", [200.0], progress=False))
        watches, tasks = [], []
        for name, wait in waits.items():
            again = type(jobs)(client, jobs.ids, jobs._ends.after)
            watch = Watch(world, name, None)
            watches.append(watch)
            call = _waiting(wait, client, client.job(jobs.ids[0]), again, None)
            tasks.append(world.loop.create_task(watch.run(call)))
        # when for two minutes nobody leads, or nobody answers
        await asyncio.sleep(30.0)
        if outage == "no replica":
            world.kill_replica()
            world.loop.call_later(3.0, setattr, world, "refuses", True)
            world.loop.call_later(120.0, setattr, world, "refuses", False)
        else:
            for name in list(world.pair.managers):
                world.pair.kill(name)
                world.loop.call_later(120.0, world.pair.start, name)
        await asyncio.wait(tasks)
        # then who is patient has the result, and all others were told so in their time
        for watch in watches:
            if deadline is None or deadline > 120.0:
                assert watch.outcome is True, (watch.name, watch.outcome)
            else:
                assert isinstance(watch.outcome, Unavailable), (watch.name, watch.outcome)
                assert watch.seconds <= 30.0 + deadline + 20.0 + 20.0, (watch.name, watch.seconds)

    run(story, monkeypatch)
