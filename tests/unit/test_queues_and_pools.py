"""Where a queue's jobs run is the settings' business when they are leased, not when they were enqueued."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from jobsvc import commands as c
from jobsvc.jobs import State
from jobsvc.settings import PoolSettings

from .manager_world import Pair, done, run, until

POOLS = {"default": PoolSettings(max_workers=0), "slow": PoolSettings(max_workers=0)}


async def restart(pair: Pair, **changes: object) -> None:
    """Everything ends and starts again with other settings, on the same store."""
    for name in list(pair.managers):
        pair.kill(name)
    pair.fleet.there.clear()
    pair.settings = msgspec.structs.replace(pair.settings, **changes)
    await pair.leader_and_standby()


@pytest.mark.parametrize("count", [1, 3_000])
@pytest.mark.parametrize("snapshot_records", [1, 20_000])
def test_jobs_of_a_pool_that_is_no_more_run_in_the_pool_that_serves_their_queue_now(
    count: int, snapshot_records: int
) -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        old = await pair.enqueue(a, *range(1, count + 1), queue="slow", pool="slow")
        await asyncio.sleep(5.0)
        # when the service starts without that pool
        await restart(pair, pools={"default": PoolSettings(max_workers=0)}, queues={})
        a = pair.managers["manager-a"]
        new = await pair.enqueue(a, 9_001, queue="slow", pool="default")
        [found] = await pair.ask(a, c.GetJobs([old[0]], True))
        assert found.items[0].waiting == "for a worker of pool default"
        [queues] = await pair.ask(a, c.GetQueues())
        assert [(each.name, each.pool) for each in queues.queues] == [("slow", "default")]
        # then a worker of the other pool gets the old jobs, and then the new one
        ran: list[bytes] = []
        finished = []
        while len(ran) < count + 1:
            orders = await pair.report(a, finished=finished, can_take=1_000, wait_seconds=2.0)
            finished = [done(grant) for grant in orders.grants]
            ran += [grant.job_id for grant in orders.grants]
        assert ran == [*old, *new]

    run(story, pools=POOLS, queues={"slow": "slow"}, snapshot_records=snapshot_records)


def test_a_queue_that_moves_between_pools_takes_what_waits_with_it() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [moved] = await pair.enqueue(a, 1, queue="q", pool="default")
        await pair.ask(a, c.PatchQueue("q", True))
        await restart(pair, queues={"q": "slow"})
        a = pair.managers["manager-a"]
        await pair.ask(a, c.PatchQueue("q", False))
        assert not (await pair.report(a, "worker-default-1.1", pool="default", can_take=5)).grants
        orders = await pair.report(a, "worker-slow-1.1", pool="slow", can_take=5)
        assert [grant.job_id for grant in orders.grants] == [moved]

    run(story, pools=POOLS)


def test_a_pool_grows_for_jobs_that_were_enqueued_for_another() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1, 2, 3, queue="slow", pool="slow")
        await restart(pair, pools={"default": PoolSettings(max_workers=2)}, queues={})
        await until(lambda: "default" in pair.fleet.there.values())

    run(story, pools=POOLS, queues={"slow": "slow"})


def test_workers_of_a_pool_that_is_no_more_are_asked_to_leave() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given a worker of such a pool that holds a job, and one that never speaks
        await pair.enqueue(a, 1, queue="q", pool="default")
        pair.fleet.there["worker-gone-1.2"] = "gone"
        pair.fleet.there["worker-gone-1.1"] = "gone"
        await pair.report(a, "worker-gone-1.1", pool="gone", can_take=1)
        orders = await pair.report(a, "worker-gone-1.1", pool="gone", can_take=1, wait_seconds=5.0)
        assert orders.retire and not orders.grants
        assert pair.fleet.ended == ["worker-gone-1.2"]
        assert a.state.totals()[State.QUEUED] == 1

    run(story, pools=POOLS)
