"""No long job waits behind another while its pool may grow: real workers, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from jobsvc import commands as c
from jobsvc.errors import Unavailable
from jobsvc.job_frames import ReadyJob
from jobsvc.jobs import TERMINAL, JobOptions, NewJob, Outcome, State, WorkerOrders, WorkerReport
from jobsvc.manager import Manager
from jobsvc.settings import PoolSettings
from jobsvc.simulated_runner import Plan, SimulatedRunner
from jobsvc.worker import Worker

from .manager_world import START, FakeFleet, Pair, run, until
from .queue_world import job_id

START_SECONDS = 1.0  # until a worker's process is there


def now() -> float:
    return asyncio.get_running_loop().time()


class Link:
    """A worker's way to whoever leads."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    async def report_and_ask(self, report: WorkerReport) -> WorkerOrders:
        leader = next((each.leader for each in self._pair.managers.values() if each.leader), None)
        if leader is None:
            raise Unavailable("nobody leads")
        return await leader.report(report)


class WorkingFleet(FakeFleet):
    """Its workers are real, and their jobs take as long as their payload says, or their task's name.

    The first attempt of the task `fails` raises."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self._pair = pair
        self._lives: dict[str, asyncio.Task[None]] = {}
        self.most = 0

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        await super().start(pool, name, not_on)
        self.most = max(self.most, len(self.there))
        self._lives[name] = asyncio.ensure_future(self._live(pool, name))

    async def end(self, name: str) -> None:
        await super().end(name)
        self._lives[name].cancel()

    async def _live(self, pool: str, name: str) -> None:
        await asyncio.sleep(START_SECONDS)
        wall: Callable[[], float] = lambda: START + now()  # noqa: E731

        def plan(job: ReadyJob) -> Plan:
            seconds = float(job.task.removeprefix("task.") if job.payload == b"{}" else job.payload)
            fails = job.task == "fails" and job.attempt == 1
            return Plan(seconds, Outcome.RAISED if fails else Outcome.SUCCEEDED)

        worker = Worker(
            name=name,
            session=name,
            pool=pool,
            node="node",
            pid=1,
            settings=self._pair.settings,
            store=self._pair.store,
            leader=Link(self._pair),
            runner=SimulatedRunner(plan, wall),
            wall=wall,
            random=Random(name),
        )
        await worker.run()
        self.there.pop(name, None)
        self._pair.managers["manager-a"].worker_gone(name)


async def work(pair: Pair, *jobs: tuple[int, float]) -> list[float]:
    """Enqueue so many jobs of so many seconds each, one group after the other; returns how long each took."""
    fleet = pair.fleet = WorkingFleet(pair)
    a, _ = await pair.leader_and_standby()
    await until(lambda: len(fleet.there) >= pair.settings.pools["default"].min_workers)
    taken, number = [], 0
    for count, seconds in jobs:
        began = now()
        for first in range(0, count, 1000):
            size = min(1000, count - first)
            await pair.enqueue(a, *range(number + 1, number + size + 1), task=f"task.{seconds}")
            number += size
        await until(lambda: a.state.counts.ended == len(a.state.jobs), 40_000.0)
        taken.append(now() - began)
    return taken


def pools(most: int, least: int = 1) -> dict[str, PoolSettings]:
    return {"default": PoolSettings(min_workers=least, max_workers=most)}


def test_long_jobs_after_short_ones_run_side_by_side() -> None:
    async def story(pair: Pair) -> None:
        _, seconds = await work(pair, (5_000, 0.0005), (4, 15.0))
        assert seconds < 33.5, seconds

    run(story, pools=pools(2))


@pytest.mark.parametrize(("count", "most", "at_most"), [(2, 2, 304), (12, 12, 320), (24, 12, 622)])
@pytest.mark.parametrize("before", [0.0005, 0.3])
def test_jobs_of_minutes_have_their_workers_within_seconds(
    count: int, most: int, at_most: float, before: float
) -> None:
    async def story(pair: Pair) -> None:
        _, seconds = await work(pair, (200, before), (count, 300.0))
        assert seconds < at_most, seconds

    run(story, pools=pools(most))


def test_tasks_that_are_known_to_be_short_do_not_hide_behind_one_that_lasts() -> None:
    async def story(pair: Pair) -> None:
        # given a job that was short before, and lasts now
        fleet = pair.fleet = WorkingFleet(pair)
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1, task="task.0.001")
        await until(lambda: a.state.counts.ended == len(a.state.jobs))
        await pair.enqueue(a, 101, task="task.600")
        await asyncio.sleep(0.3)
        short = await pair.enqueue(a, *range(102, 202), task="task.0.001")
        began = now()
        await until(lambda: all(a.state.jobs[each].state in TERMINAL for each in short))
        assert now() - began < 6.0
        assert fleet.most == 2

    run(story, pools=pools(5))


def test_short_jobs_alone_start_no_more_workers_than_they_need() -> None:
    async def story(pair: Pair) -> None:
        await work(pair, (1, 0.01), (3_000, 0.01))
        assert isinstance(pair.fleet, WorkingFleet) and pair.fleet.most <= 4

    run(story, pools=pools(50))


# --- other shapes: what is known of a task says nothing of its next job -----------------------------


async def begin(pair: Pair, *known: tuple[int, float]) -> Manager:
    """A leader, whose pool has seen so many jobs of the task `same`, of so many seconds each."""
    pair.fleet = WorkingFleet(pair)
    a, _ = await pair.leader_and_standby()
    await all_ended(a, await put(pair, a, *((count, seconds, {}) for count, seconds in known)))
    return a


async def put(pair: Pair, a: Manager, *groups: tuple[int, float, dict[str, object]]) -> list[bytes]:
    """Enqueue, in one command, groups of jobs: how many, of how many seconds, with which options."""
    options = [JobOptions(**{"task": "same", **chosen}) for _, _, chosen in groups]  # type: ignore[arg-type]
    numbers = iter(range(len(a.state.jobs) + 1, 100_000))
    new = [
        NewJob(job_id(next(numbers)), option, str(seconds).encode())
        for option, (count, seconds, _) in enumerate(groups)
        for _ in range(count)
    ]
    if new:
        [answer] = await pair.ask(a, c.Enqueue(options, new))
        assert isinstance(answer, c.Accepted)
    return [each.id for each in new]


async def all_ended(a: Manager, ids: list[bytes]) -> float:
    """Returns how long that took."""
    began = now()
    while not all(a.state.jobs[each].state in TERMINAL for each in ids):  # noqa: ASYNC110 - as `until`
        await asyncio.sleep(0.5)
    return now() - began


@pytest.mark.parametrize("least", [0, 1])
def test_a_task_that_was_short_and_lasts_now_has_its_workers(least: int) -> None:
    async def story(pair: Pair) -> None:
        a = await begin(pair, (1_000, 0.0005), (50, 0.3))
        assert await all_ended(a, await put(pair, a, (4, 1_200.0, {}))) < 1_225.0

    run(story, pools=pools(4, least))


@pytest.mark.parametrize("task", ["same", "long"])
def test_short_and_long_jobs_that_come_mixed_keep_nobody(task: str) -> None:
    async def story(pair: Pair) -> None:
        a = await begin(pair, (500, 0.01))
        groups: list[tuple[int, float, dict[str, object]]] = []
        for _ in range(6):
            groups += [(50, 0.01, {}), (1, 600.0, {"task": task})]
        ids = await put(pair, a, *groups, (50, 0.01, {}))
        short = [each for each in ids if a.state.jobs[each].payload == b"0.01"]
        assert await all_ended(a, short) < 25.0
        assert await all_ended(a, ids) < 625.0

    run(story, pools=pools(8, 0))


def test_two_pools_grow_side_by_side() -> None:
    async def story(pair: Pair) -> None:
        a = await begin(pair)
        there: dict[str, object] = {"queue": "g", "pool": "gpu"}
        groups = [(200, 0.05, {}), (3, 600.0, {}), (200, 0.05, there), (3, 600.0, there)]
        assert await all_ended(a, await put(pair, a, *groups)) < 640.0

    gpu = PoolSettings(min_workers=0, max_workers=3, num_cpus=4)
    run(story, pools={**pools(3), "gpu": gpu}, queues={"g": "gpu"})


def test_long_jobs_that_come_one_by_one_begin_soon() -> None:
    async def story(pair: Pair) -> None:
        a = await begin(pair, (500, 0.01))
        for _ in range(6):
            [job] = await put(pair, a, (1, 3_600.0, {}))
            await until(lambda job=job: a.state.jobs[job].state is State.RUNNING, 25.0)  # type: ignore[misc]
            await asyncio.sleep(7.0)

    run(story, pools=pools(8))


def test_long_jobs_that_are_tried_again_run_side_by_side() -> None:
    async def story(pair: Pair) -> None:
        a = await begin(pair, (500, 0.01))
        options: dict[str, object] = {"task": "fails", "backoff_base_seconds": 5.0}
        assert await all_ended(a, await put(pair, a, (6, 300.0, options))) < 640.0

    run(story, pools=pools(8))


def test_a_pool_at_its_limit_runs_the_urgent_one_next() -> None:
    async def story(pair: Pair) -> None:
        a = await begin(pair, (500, 0.01))
        ids = await put(pair, a, (7, 300.0, {}))
        await asyncio.sleep(30.0)
        urgent = await put(pair, a, (1, 300.0, {"priority": 5}))
        assert await all_ended(a, urgent) < 600.0
        assert await all_ended(a, ids) < 930.0 - 600.0 + 30.0

    run(story, pools=pools(3))
