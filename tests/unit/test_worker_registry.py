"""Who waits for work, without looking at all there are; and how jobs are spread over many who wait."""

from __future__ import annotations

import asyncio

import pytest

from jobsvc.jobs import WorkerOrders, WorkerReport
from jobsvc.ready_lanes import Lane
from jobsvc.worker_registry import KnownWorker, WorkerRegistry

from .manager_world import Pair, run


def poll_of(registry: WorkerRegistry, name: str, now: float) -> KnownWorker:
    worker = registry.known(name, "default", now)
    worker.note(WorkerReport(name, "s", "default", "n", 1, can_take=1), now)
    registry.opens_poll(worker, asyncio.get_running_loop().create_future())
    return worker


def test_those_who_wait_longest_idle_first() -> None:
    async def story() -> None:
        registry = WorkerRegistry()
        first, second, third = (poll_of(registry, name, now) for now, name in enumerate("abc"))
        assert registry.waiting("default") == [first, second, third]
        assert registry.waiting("other") == [] and registry.polled_pools() == ["default"]
        registry.closes_poll(second)
        poll_of(registry, "a", 9.0)  # a newer call
        assert registry.waiting("default") == [third, first]
        registry.forget("c")
        assert registry.waiting("default") == [first]

    asyncio.run(story())


def test_many_who_wait_are_served_evenly_and_jobs_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: Pair) -> None:
        leader, _ = await world.leader_and_standby()
        calls = [
            asyncio.create_task(world.report(leader, f"w{number}", can_take=10, wait_seconds=5.0))
            for number in range(100)
        ]
        await asyncio.sleep(0.1)
        asked: list[int] = []
        heads = Lane.heads
        monkeypatch.setattr(Lane, "heads", lambda lane, count: asked.append(count) or heads(lane, count))
        await world.enqueue(leader, *range(250))
        orders: list[WorkerOrders] = await asyncio.gather(*calls)
        assert sorted(len(each.grants) for each in orders) == [2] * 50 + [3] * 50
        assert sum(asked) < 2_000  # 100 times as many, if each who waits had them counted

    run(story)
