"""Workers whose job processes cannot work: they take no jobs, say why, and nobody suffers for them."""

from __future__ import annotations

import asyncio

import pytest

from jobsvc import commands as c
from jobsvc import metrics
from jobsvc.client_tables import status_rows
from jobsvc.http_views import status_document
from jobsvc.jobs import TASK_UNKNOWN, ErrorInfo, Finished, Outcome, State
from jobsvc.metrics import ReplicaFigures
from jobsvc.scaling import while_held_back
from jobsvc.settings import PoolSettings
from jobsvc.tallies import Durations

from .manager_world import START, Pair, run, until
from .test_worker import World, told

BROKEN = "the module 't' cannot be imported: ConnectionError: no database"


# --- the worker -----------------------------------------------------------------------------------


@told
async def test_a_worker_that_can_run_nothing_gives_back_what_it_holds_and_asks_for_nothing() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("second", 2))
    running, waiting = world.leader.enqueue("second", 2)
    await world.until_runs(running)
    await world.until(lambda: (waiting, 1) in world.leader.leases)
    # when its processes cannot import their tasks any more
    calls = len(world.leader.reports)
    world.runner.hold_back(BROKEN)
    # then the leader hears it at once, and what has not started goes back without charge
    assert await world.until_completed(waiting, seconds=0.1) == [Outcome.RELEASED]
    released = world.leader.completed[waiting, 1]
    assert released.started_at == released.ended_at, "that is how a leader knows that it never ran"
    await world.until_completed(running)
    await asyncio.sleep(60.0)
    told = world.leader.reports[calls:]
    assert {report.can_take for report in told} == {0}
    assert told[-1].held_back == BROKEN and told[-1].held_back_since > 0
    assert len(told) < 60 / 5 + 10, "a worker that is held back has no more to say than an idle one"
    assert not any(
        count for report in told for count, seconds in report.busy_seconds.values() if seconds == 0.0
    ), "a job that never ran says nothing about how long jobs take"
    # and when it can work again it does so at once
    world.runner.hold_back(None)
    (after,) = world.leader.enqueue("quick")
    assert await world.until_completed(after, seconds=0.1) == [Outcome.SUCCEEDED]
    assert world.leader.reports[-1].held_back is None


@told
async def test_what_arrives_at_a_worker_that_is_held_back_returns() -> None:
    world = World()
    await asyncio.sleep(1.0)
    (job,) = world.leader.enqueue("quick")
    world.runner.hold_back(BROKEN)  # before the leader can hear of it
    assert await world.until_completed(job, seconds=1.0) == [Outcome.RELEASED]
    assert world.runner.started == []


# --- the leader -----------------------------------------------------------------------------------


def test_a_pool_all_of_whose_workers_are_held_back_starts_no_others_and_says_why() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given a pool with one worker, which can run nothing, and work for ten
        await pair.report(a, "worker-broken-1.7", pool="broken", held_back=BROKEN, held_back_since=START)
        ids = await pair.enqueue(a, *range(1, 101), queue="b", pool="broken")
        await pair.enqueue(a, 200)
        for _ in range(6):
            await pair.report(a, "worker-broken-1.7", pool="broken", held_back=BROKEN, held_back_since=START)
            await asyncio.sleep(1.0)
        # then no machine is asked for because of it, and the other pool goes on
        assert pair.fleet.started == ["worker-default-1.1"]
        # and whoever looks is told
        [found, workers] = await pair.ask(a, c.GetJobs(ids[:1]), c.GetWorkers())
        why = f"1 of 1 workers is held back since 13:46:40 UTC: {BROKEN}"
        assert found.items[0].waiting == f"for a worker of pool broken: {why}"
        [pool] = [each for each in workers.pools if each.name == "broken"]
        assert (pool.waiting, pool.held_back, pool.wanted) == (why, 1, 1)
        [worker] = [each for each in workers.workers if each.pool == "broken"]
        assert (worker.state, worker.held_back, worker.held_back_since) == ("held_back", BROKEN, START)
        # until it can work again
        await pair.report(a, "worker-broken-1.7", pool="broken")
        await until(lambda: len(pair.fleet.started) > 5)

    pools = {"default": PoolSettings(max_workers=1), "broken": PoolSettings(max_workers=10)}
    run(story, pools=pools, queues={"b": "broken"})


@pytest.mark.parametrize(
    ("wanted", "staying", "here", "held_back", "then"),
    [
        (8, 2, 2, 2, 2),  # nobody serves the backlog, and more would not either
        (8, 2, 2, 1, 8),  # one does
        (8, 2, 0, 0, 8),  # nobody has said anything yet
        (8, 3, 1, 1, 3),  # those that start are not ended, but not joined either
        (1, 2, 2, 2, 1),  # without work they may leave
        (8, 0, 0, 0, 8),
        (1, 1, 1, 1, 2),  # the least number is kept
    ],
)
def test_a_backlog_is_no_reason_for_more_of_what_cannot_work(
    wanted: int, staying: int, here: int, held_back: int, then: int
) -> None:
    pool = PoolSettings(min_workers=2 if then == 2 and wanted == 1 else 0, max_workers=8)
    assert while_held_back(pool, wanted, staying=staying, here=here, held_back=held_back) == then


def test_a_job_whose_task_nobody_has_waits_for_it_and_is_charged_nothing() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [job] = await pair.enqueue(a, 1)
        pauses = []
        for attempt in range(1, 10):
            orders = await pair.report(a, can_take=1, wait_seconds=100.0)
            assert [grant.attempt for grant in orders.grants] == [attempt]
            error = ErrorInfo(TASK_UNKNOWN, "no task is named 'demo.task' here")
            back = Finished(job, attempt, Outcome.RELEASED, START, START, error=error)
            await pair.report(a, finished=[back])
            details = a.state.jobs[job].details
            assert a.state.jobs[job].state is State.SCHEDULED and details is not None
            assert details.run_at is not None and details.history == []
            pauses.append(round(details.run_at - a.leader.commits.now()))  # type: ignore[union-attr]
        assert pauses[:3] == [2, 4, 8] and pauses[-1] == 60, "not in a circle, and not never"
        assert (a.state.jobs[job].failures, a.state.jobs[job].crashes) == (0, 0)

    run(story, heartbeat_seconds=100.0, lease_seconds=1000.0)


# --- what people see ------------------------------------------------------------------------------


def test_status_and_metrics_say_who_is_held_back_and_since_when() -> None:
    view = c.WorkerView("w1", 1, "n", "default", "held_back", None, 0, 0.1, "", BROKEN, START)
    pool = c.PoolView("default", 1, 1, 0, 8, "1 of 1 workers is held back", 1)
    workers = c.Workers([view], [pool])
    document = status_document("s", START + 60, [], workers, 10.0)
    assert document.workers is not None and document.pools is not None
    assert document.workers[0].held_back_since == "1970-01-12T13:46:40.000Z"
    assert document.pools[0].held_back == 1
    shown = {
        "ready": True,
        "managers": [],
        "commits": {"age_seconds": None},
        "counts": {},
        "pools": [],
        "workers": [
            {"name": "w1", "current_job": None, "state": "held_back"}
            | {"held_back": BROKEN, "held_back_since": "12:00"}
        ],
    }
    assert ("w1", f"held back since 12:00: {BROKEN}") in list(status_rows(shown))
    own = ReplicaFigures("r", Durations())
    text = metrics.render([], None, workers, own, START + 60).decode()
    assert 'jobsvc_workers{pool="default",state="held_back"} 1.0' in text
    assert 'jobsvc_workers_held_back_since_timestamp_seconds{pool="default"} 1e+06' in text
