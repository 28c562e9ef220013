"""No long job waits behind another while its pool may grow: real workers, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from jobsvc.errors import Unavailable
from jobsvc.job_frames import ReadyJob
from jobsvc.jobs import TERMINAL, WorkerOrders, WorkerReport
from jobsvc.settings import PoolSettings
from jobsvc.simulated_runner import Plan, SimulatedRunner
from jobsvc.worker import Worker

from .manager_world import START, FakeFleet, Pair, run, until

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
    """Its workers are real, and their jobs take as long as their task's name says."""

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
            return Plan(float(job.task.removeprefix("task.")))

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
        await until(lambda: all(job.state in TERMINAL for job in a.state.jobs.values()), 40_000.0)
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
        await until(lambda: all(job.state in TERMINAL for job in a.state.jobs.values()))
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
