"""The worker in virtual time: a scripted leader, a runner without processes, a store in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import msgspec
import pytest

from jobsvc.errors import InvalidRequest
from jobsvc.job_frames import ReadyJob
from jobsvc.jobs import BlobRef, ErrorInfo, Finished, Outcome, WorkerReport
from jobsvc.object_store import MemoryObjectStore, PutOutcome, StoreError
from jobsvc.orphans import made_at
from jobsvc.settings import KIB, Settings
from jobsvc.simulated_runner import Plan, SimulatedRunner
from jobsvc.worker import Worker

from ..simulation import virtual_loop
from .leader_desk import LeaderDesk

START = 1_800_000_000.0
PLANS = {
    "quick": Plan(seconds=0.001),
    "second": Plan(seconds=1.0),
    "minute": Plan(seconds=60.0),
    "for_ever": Plan(seconds=1e6),
    "raises": Plan(outcome=Outcome.RAISED, error=ErrorInfo("ValueError", "no")),
    "large": Plan(content="raw", data=b"x" * (9 * KIB)),
    "talks": Plan(seconds=0.5, output=b"hello\n"),
}


class ShakyStore(MemoryObjectStore):
    """Fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failing_puts = 0
        self.failing_gets = 0

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        await asyncio.sleep(0.01)
        if self.failing_puts > 0:
            self.failing_puts -= 1
            return PutOutcome.UNKNOWN
        return await super().put_new(key, data)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        await asyncio.sleep(0.01)
        if self.failing_gets > 0:
            self.failing_gets -= 1
            raise StoreError("no answer")
        return await super().get(key, offset, length)


class World:
    """One worker and everything around it."""

    def __init__(self, seed: int = 1, plans: dict[str, Plan] | None = None, **settings: Any) -> None:
        loop = asyncio.get_running_loop()
        chosen = {**PLANS, **(plans or {})}
        self.leader = LeaderDesk()
        self.store = ShakyStore()
        self.payloads: dict[bytes, bytes] = {}
        self.settings = Settings(**settings)

        def wall() -> float:
            return START + loop.time()

        def plan(job: ReadyJob) -> Plan:
            self.payloads[job.job_id] = job.payload
            return chosen[job.task]

        self.runner = SimulatedRunner(plan, wall)
        self.worker = Worker(
            name="worker-1",
            session="life-1",
            pool="default",
            node="node-1",
            pid=1,
            settings=self.settings,
            store=self.store,
            leader=self.leader,
            runner=self.runner,
            wall=wall,
            random=Random(seed),
        )
        self.life = asyncio.create_task(self.worker.run())

    async def until(self, condition: Callable[[], object], seconds: float = 600.0) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            assert loop.time() < deadline, "it did not come true in time"
            assert not self.life.done() or self.life.result(), "the worker has ended"
            await asyncio.sleep(0.001)

    async def until_completed(self, *ids: bytes, seconds: float = 600.0) -> list[Outcome | None]:
        await self.until(lambda: all(self.leader.outcomes(*ids)), seconds)
        return self.leader.outcomes(*ids)

    async def until_runs(self, job_id: bytes) -> None:
        await self.until(lambda: (at := self.runner.current) is not None and at.job_id == job_id)

    async def outbox(self) -> list[Finished]:
        found: list[Finished] = []
        for key in await self.store.list("outbox/worker-1/life-1/"):
            data = await MemoryObjectStore.get(self.store, key)
            assert data is not None
            found += msgspec.msgpack.decode(data, type=list[Finished])
        return found

    def most_held(self) -> int:
        return max(len(report.holding) for report in self.leader.reports)


def now() -> float:
    return asyncio.get_running_loop().time()


def told(story: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        virtual_loop.run(story())

    run.__name__, run.__doc__ = story.__name__, story.__doc__
    return run


# --- work -----------------------------------------------------------------------------------------


@told
async def test_an_idle_worker_waits_at_the_leader_and_is_quick() -> None:
    world = World()
    await asyncio.sleep(12.0)
    assert len(world.leader.reports) <= 4, "idle, it asks once in a heartbeat"
    enqueued = now()
    (job,) = world.leader.enqueue("quick")
    assert await world.until_completed(job) == [Outcome.SUCCEEDED]
    assert now() - enqueued < 0.02
    report = world.leader.completed[job, 1]
    assert report.result is not None and report.result.data == b"null"
    assert START < report.started_at <= report.ended_at


@told
async def test_the_report_says_what_a_leader_wants_to_know() -> None:
    world = World()
    first, second = world.leader.enqueue("second", 2)
    await world.until_completed(first)
    reports = world.leader.reports
    assert all(
        (each.worker, each.session, each.pool) == ("worker-1", "life-1", "default") for each in reports
    )
    busy = [each for each in reports if each.busy]
    assert busy[0].holding == [(first, 1)]
    assert busy[0].current == "second 00000000-0000-0000-0000-000000000001"
    await world.until_completed(second)
    counts = [each.busy_seconds["second"] for each in world.leader.reports if each.busy_seconds]
    assert sum(count for count, _ in counts) == 2
    assert sum(seconds for _, seconds in counts) == pytest.approx(2.0)
    assert world.worker.describe() == "idle"


@told
async def test_errors_are_reported_like_results() -> None:
    world = World()
    (job,) = world.leader.enqueue("raises")
    assert await world.until_completed(job) == [Outcome.RAISED]
    error = world.leader.completed[job, 1].error
    assert error is not None and error.type == "ValueError"


@told
async def test_prefetch_grows_with_measured_quickness_and_keeps_the_worker_busy() -> None:
    world = World()
    jobs = world.leader.enqueue("quick", 3000)
    began = now()
    await world.until_completed(*jobs)
    first = [len(report.holding) + len(report.finished) for report in world.leader.reports[:3]]
    assert first[0] == 0 and first[1] <= 1, "the first job is taken alone"
    assert 100 <= world.most_held() <= 200, "then about 200 ms of work"
    assert now() - began < 3000 * 0.001 * 1.3
    assert len(world.leader.reports) < 400, "reports travel together"


@told
async def test_prefetch_never_passes_its_bound() -> None:
    world = World(prefetch_jobs_max=7)
    await world.until_completed(*world.leader.enqueue("quick", 200))
    assert max(len(report.finished) for report in world.leader.reports) in (6, 7)
    assert max(report.can_take + len(report.holding) for report in world.leader.reports) <= 7


@told
async def test_the_end_of_a_job_is_told_at_once_unless_others_end_about_then() -> None:
    world = World()
    # given jobs of a second each, one of them ahead
    first, second = world.leader.enqueue("second", 2)
    await world.until_runs(second)
    ended = now()
    await world.until(lambda: (first, 1) in world.leader.completed)
    assert now() - ended < 0.01
    # and when many short jobs end, each waits for others, but not for long
    await world.until_completed(second)
    jobs = world.leader.enqueue("quick", 2000)
    await world.until(lambda: sum((job, 1) in world.leader.completed for job in jobs) > 1000)
    told = [len(report.finished) for report in world.leader.reports if report.finished][-5:]
    assert 20 < min(told) <= max(told) < 100


@told
async def test_of_long_jobs_one_is_held_ahead() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("second", 5))
    assert world.most_held() == 2


@told
async def test_a_job_does_not_wait_behind_one_that_goes_on_and_on() -> None:
    """Another worker may be free: what waits is given back, and no more is asked for."""
    world = World()
    warm = world.leader.enqueue("second", 3)
    await world.until_completed(*warm)
    long, waiting = world.leader.enqueue("minute")[0], world.leader.enqueue("second")[0]
    await world.until_runs(long)
    await world.until(lambda: world.leader.outcomes(waiting) == [Outcome.RELEASED], seconds=10)
    released = world.leader.completed[waiting, 1]
    assert released.started_at == released.ended_at, "that is how a leader knows that it never ran"
    world.leader.enqueue("second")
    await asyncio.sleep(30)
    assert list(world.leader.leases) == [(long, 1)]
    assert (waiting, 1) not in world.runner.started


@told
async def test_a_handful_that_turns_out_to_be_slow_is_given_back() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("quick", 500))
    slow = world.leader.enqueue("second", 100)
    await world.until(lambda: Outcome.RELEASED in world.leader.outcomes(*slow), seconds=10)
    assert world.leader.outcomes(*slow).count(Outcome.RELEASED) > 50


# --- orders ---------------------------------------------------------------------------------------


@told
async def test_cancel_kills_what_runs_and_spares_what_has_not_started() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("second", 2))
    running, waiting = world.leader.enqueue("for_ever")[0], world.leader.enqueue("second")[0]
    await world.until_runs(running)
    await world.until(lambda: (waiting, 1) in world.leader.leases)
    calls = len(world.leader.reports)
    world.leader.cancel(running, waiting)
    assert await world.until_completed(running, waiting, seconds=1) == [Outcome.CANCELLED] * 2
    assert (waiting, 1) not in world.runner.started
    assert len(world.leader.reports) - calls < 10


@told
async def test_a_cancel_that_takes_its_time_is_not_asked_about_in_a_circle() -> None:
    world = World(plans={"for_ever": Plan(seconds=1e6, kill_seconds=3.0)})
    (job,) = world.leader.enqueue("for_ever")
    await world.until_runs(job)
    calls = len(world.leader.reports)
    world.leader.cancel(job)
    assert await world.until_completed(job) == [Outcome.CANCELLED]
    assert len(world.leader.reports) - calls < 12


@told
async def test_what_is_dropped_is_forgotten() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("second", 2))
    running, waiting = world.leader.enqueue("for_ever")[0], world.leader.enqueue("second")[0]
    await world.until_runs(running)
    await world.until(lambda: (waiting, 1) in world.leader.leases)
    world.leader.take_away(running, waiting)
    (after,) = world.leader.enqueue("quick")
    await world.until_completed(after)
    assert world.leader.outcomes(running, waiting) == [None, None]
    assert world.leader.refused == []
    assert world.worker.statistics()["held"] == 0


@told
async def test_a_stale_report_is_settled_and_counted() -> None:
    world = World()
    (job,) = world.leader.enqueue("second")
    await world.until_runs(job)
    world.leader.away = True
    await asyncio.sleep(3)
    world.leader.take_away(job)
    world.leader.away = False
    await world.until(lambda: world.leader.refused == [(job, 1)])
    await asyncio.sleep(0.1)
    statistics = world.worker.statistics()
    assert (statistics["stale_reports"], statistics["unsettled"]) == (1, 0)


@told
async def test_a_grant_that_comes_twice_runs_once() -> None:
    world = World()
    world.leader.loses_answers = 2
    jobs = world.leader.enqueue("quick", 1)
    await world.until_completed(*jobs)
    settled = world.leader.completed[jobs[0], 1]
    # an overtaken answer, late: it grants what has long been settled
    world.leader.leases[jobs[0], 1] = world.leader._give(_orders(), (jobs[0], 1), b"")
    world.leader._changed.set()
    await asyncio.sleep(20)
    assert world.runner.started == [(jobs[0], 1)]
    assert world.leader.completed[jobs[0], 1] is settled


@told
async def test_who_was_replaced_and_does_not_know_it_is_not_obeyed() -> None:
    world = World()
    (long,) = world.leader.enqueue("minute")
    await world.until_runs(long)
    # given a leader that was replaced before the job was leased, and tells the worker to drop it
    world.leader.ignorant = True
    calls = len(world.leader.reports)
    await asyncio.sleep(30)
    assert len(world.leader.reports) > calls + 3
    assert world.worker.statistics()["held"] == 1
    # and that calls the result stale
    await asyncio.sleep(40)
    assert (world.worker.statistics()["unsettled"], world.worker.statistics()["stale_reports"]) == (1, 0)
    assert [each.outcome for each in await world.outbox()] == [Outcome.SUCCEEDED]
    # then the job has run once and its result counts
    world.leader.ignorant = False
    assert await world.until_completed(long) == [Outcome.SUCCEEDED]
    assert world.runner.started == [(long, 1)]


@told
async def test_what_was_dropped_is_not_taken_from_an_overtaken_answer() -> None:
    world = World()
    (running,) = world.leader.enqueue("for_ever")
    await world.until_runs(running)
    grant = world.leader.leases[running, 1]
    world.leader.take_away(running)
    await world.until(lambda: world.worker.statistics()["held"] == 0)
    world.leader.leases[running, 1] = grant
    world.leader._changed.set()
    await asyncio.sleep(10)
    assert world.runner.started == [(running, 1)]


def _orders() -> Any:
    from jobsvc.jobs import WorkerOrders

    return WorkerOrders()


@told
async def test_a_retired_worker_finishes_its_job_and_gives_back_the_rest() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("second", 2))
    running, waiting = world.leader.enqueue("second", 2)
    await world.until_runs(running)
    await world.until(lambda: (waiting, 1) in world.leader.leases)
    calls = len(world.leader.reports)
    world.leader.retire_worker()
    assert await world.life == "retired"
    assert world.leader.outcomes(running, waiting) == [Outcome.SUCCEEDED, Outcome.RELEASED]
    assert world.leader.reports[-1].leaving and world.leader.reports[-1].holding == []
    assert all(each.can_take == 0 for each in world.leader.reports[calls + 1 :])
    assert len(world.leader.reports) - calls < 10


# --- nobody answers -------------------------------------------------------------------------------


@told
async def test_a_short_absence_costs_nothing() -> None:
    world = World()
    jobs = world.leader.enqueue("second", 3)
    await world.until_runs(jobs[0])
    world.leader.away = True
    await asyncio.sleep(4)
    world.leader.away = False
    await world.until_completed(*jobs)
    assert await world.outbox() == []
    assert len(world.runner.started) == 3


@told
async def test_reports_without_a_leader_go_to_the_outbox_once_each_and_to_the_next_leader() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("quick", 300))
    jobs = world.leader.enqueue("talks", 100)
    await world.until(lambda: len(world.leader.leases) > 10)
    world.leader.away = True
    held = sorted(world.leader.leases)
    await asyncio.sleep(20)
    written = await world.outbox()
    assert len(written) >= 5
    assert max(Counter((each.job_id, each.attempt) for each in written).values()) == 1
    calls = len(world.leader.reports)
    world.leader.away = False
    await world.until(lambda: not set(held) & set(world.leader.leases))
    told_again = [each for report in world.leader.reports[calls:] for each in report.finished]
    assert {(each.job_id, each.attempt) for each in written} <= {
        (each.job_id, each.attempt) for each in told_again
    }
    assert world.leader.refused == []
    await world.until(
        lambda: set(world.leader.outcomes(*jobs)) <= {Outcome.SUCCEEDED, Outcome.RELEASED, None}
    )


@told
async def test_the_outbox_is_written_although_the_store_stumbles() -> None:
    world = World()
    (job,) = world.leader.enqueue("second")
    await world.until_runs(job)
    world.leader.away = True
    world.store.failing_puts = 5
    await world.until(lambda: world.store.requests["put"] > 0)
    assert [each.job_id for each in await world.outbox()] == [job]


@told
async def test_a_new_leader_hears_what_is_held() -> None:
    world = World()
    (long,) = world.leader.enqueue("minute")
    await world.until_runs(long)
    world.leader.away = True
    await asyncio.sleep(45)
    world.leader.away = False
    calls = len(world.leader.reports)
    await world.until(lambda: len(world.leader.reports) > calls)
    report = world.leader.reports[-1]
    assert (report.holding, report.busy) == ([(long, 1)], True)
    assert await world.until_completed(long) == [Outcome.SUCCEEDED], (
        "longer silence than the lease: it ran on"
    )


@told
async def test_an_orphan_writes_everything_down_and_ends() -> None:
    world = World(orphan_seconds=30.0)
    await world.until_completed(*world.leader.enqueue("second", 2))
    done, running = world.leader.enqueue("second")[0], world.leader.enqueue("for_ever")[0]
    await world.until_runs(done)
    await world.until(lambda: (running, 1) in world.leader.leases)
    world.leader.away = True
    left = now()
    assert await world.life == "orphaned"
    assert 25 < now() - left < 45
    written = {each.job_id: each.outcome for each in await world.outbox()}
    assert written == {done: Outcome.SUCCEEDED, running: Outcome.RELEASED}


@told
async def test_a_leader_that_hangs_is_called_again_and_again_but_not_all_at_once() -> None:
    world = World()
    jobs = world.leader.enqueue("second", 2)
    await world.until_runs(jobs[0])
    world.leader.silent = True
    calls = len(world.leader.reports)
    await asyncio.sleep(60)
    assert 3 < len(world.leader.reports) - calls < 40
    world.leader.silent = False
    assert set(await world.until_completed(*jobs, seconds=30)) <= {Outcome.SUCCEEDED, Outcome.RELEASED}


# --- draining -------------------------------------------------------------------------------------


@told
async def test_a_drain_lets_the_running_job_finish_if_it_can() -> None:
    world = World()
    await world.until_completed(*world.leader.enqueue("second", 2))
    running, waiting = world.leader.enqueue("second", 2)
    await world.until_runs(running)
    await world.until(lambda: (waiting, 1) in world.leader.leases)
    drained = now()
    world.worker.drain(120)
    await world.until(lambda: world.leader.outcomes(waiting) == [Outcome.RELEASED])
    assert now() - drained < 0.1, "what has not started goes back at once"
    assert await world.life == "drained"
    assert world.leader.outcomes(running) == [Outcome.SUCCEEDED]
    assert world.leader.farewell.is_set()


@told
async def test_a_drain_gives_back_what_would_take_too_long() -> None:
    world = World()
    (long,) = world.leader.enqueue("for_ever")
    await world.until_runs(long)
    drained = now()
    world.worker.drain(20)
    assert await world.life == "drained"
    assert 10 < now() - drained <= 20
    assert world.leader.outcomes(long) == [Outcome.RELEASED]
    ran = world.leader.completed[long, 1]
    assert ran.ended_at > ran.started_at


@told
async def test_a_drain_without_a_leader_ends_in_time_with_everything_in_the_outbox() -> None:
    world = World()
    (long,) = world.leader.enqueue("for_ever")
    await world.until_runs(long)
    world.leader.away = True
    drained = now()
    world.worker.drain(10)
    assert await world.life == "drained"
    assert now() - drained < 12
    assert [(each.job_id, each.outcome) for each in await world.outbox()] == [(long, Outcome.RELEASED)]


@told
async def test_a_grant_that_arrives_while_leaving_goes_straight_back() -> None:
    world = World()
    (long,) = world.leader.enqueue("second")
    await world.until_runs(long)
    world.worker.drain(60)
    key = (b"late" * 4, 1)
    world.leader.options[key] = world.leader.options[long, 1]
    world.leader.leases[key] = world.leader._give(_orders(), key, b"")
    world.leader.attempts[key[0]] = 1
    assert await world.life == "drained"
    assert world.leader.outcomes(key[0]) == [Outcome.RELEASED]


# --- the store ------------------------------------------------------------------------------------


@told
async def test_a_large_result_is_stored_before_it_is_reported() -> None:
    world = World()
    world.store.failing_puts = 3
    (job,) = world.leader.enqueue("large")
    await world.until_completed(job)
    result = world.leader.completed[job, 1].result
    assert result is not None and result.data is None and result.ref is not None
    assert (result.ref.offset, result.ref.length) == (0, 9 * KIB)
    assert made_at(result.ref.key) == pytest.approx(START, abs=10.0)
    assert await world.store.get(result.ref.key) == b"x" * (9 * KIB)


@told
async def test_a_result_that_cannot_be_stored_gives_the_job_back() -> None:
    world = World(orphan_seconds=20.0)
    world.store.failing_puts = 1_000_000
    (job,) = world.leader.enqueue("large")
    assert await world.until_completed(job, seconds=30) == [Outcome.RELEASED]
    assert world.leader.completed[job, 1].result is None


@told
async def test_output_is_stored_and_counted() -> None:
    world = World()
    (job,) = world.leader.enqueue("talks")
    await world.until_completed(job)
    finished = world.leader.completed[job, 1]
    assert finished.log is not None and finished.log_bytes == 6
    assert await world.store.get(finished.log.key) == b"hello\n"


@told
async def test_output_that_cannot_be_stored_costs_no_result() -> None:
    world = World()
    world.store.failing_puts = 1_000_000
    (job,) = world.leader.enqueue("talks")
    assert await world.until_completed(job, seconds=30) == [Outcome.SUCCEEDED]
    assert world.leader.completed[job, 1].log_bytes == 0


@told
async def test_what_ends_fast_shares_packs_and_no_more_are_put_than_the_pace_allows() -> None:
    # given a service whose leader gives this worker one PUT in two seconds
    world = World(plans={"prints": Plan(seconds=0.001, content="raw", data=b"r" * 9 * KIB, output=b"said\n")})
    world.leader.put_interval_seconds = 2.0
    await world.until(lambda: world.leader.reports)
    # when hundreds of jobs end, each with output and a large result
    began = asyncio.get_running_loop().time()
    jobs = world.leader.enqueue("prints", 400)
    assert set(await world.until_completed(*jobs)) == {Outcome.SUCCEEDED}
    seconds = asyncio.get_running_loop().time() - began
    # then they share few objects, and everything is where the reports say
    keys = set()
    for job in jobs:
        finished = world.leader.completed[job, 1]
        assert finished.result is not None and finished.result.ref is not None and finished.log is not None
        assert finished.log_bytes == finished.log.length == 5
        for ref, expected in ((finished.result.ref, b"r" * 9 * KIB), (finished.log, b"said\n")):
            assert await world.store.get(ref.key, ref.offset, ref.length) == expected
            keys.add(ref.key)
    assert len(keys) <= seconds / 2.0 + 4
    # and the leader has been told of every PUT
    await world.until(lambda: sum(report.puts for report in world.leader.reports) == len(keys))


@told
async def test_output_of_a_long_job_is_stored_while_it_runs_at_the_same_pace() -> None:
    world = World(plans={"chats": Plan(seconds=60.0, output=b"x", output_every_seconds=0.1)})
    world.leader.put_interval_seconds = 5.0
    await world.until(lambda: world.leader.reports)
    (job,) = world.leader.enqueue("chats")
    await world.until_completed(job)
    chunks = await world.store.list("logs/")
    assert 8 <= len(chunks) <= 60 / 5 + 4
    finished = world.leader.completed[job, 1]
    stored = sum([len(await world.store.get(key) or b"") for key in chunks])
    assert finished.log is not None and finished.log_bytes == stored + finished.log.length == 599


@told
async def test_payloads_of_one_pack_are_read_together() -> None:
    world = World()
    pack = b"".join(bytes([n]) * 1000 for n in range(100))
    await world.store.put_new("payloads/p", pack)
    await world.until_completed(*world.leader.enqueue("quick", 300))
    gets = world.store.requests["get"]
    jobs = [
        world.leader.enqueue("quick", payload=BlobRef("payloads/p", n * 1000, 1000))[0] for n in range(100)
    ]
    await world.until_completed(*jobs)
    assert [world.payloads[each] for each in jobs] == [bytes([n]) * 1000 for n in range(100)]
    assert world.store.requests["get"] - gets < 10


@told
async def test_a_payload_that_is_gone_for_good_is_the_jobs_error() -> None:
    world = World()
    await world.store.put_new("payloads/short", b"12345")
    missing = world.leader.enqueue("quick", payload=BlobRef("payloads/none", 0, 5))[0]
    short = world.leader.enqueue("quick", payload=BlobRef("payloads/short", 3, 5))[0]
    assert await world.until_completed(missing, short) == [Outcome.RAISED] * 2
    for job, words in ((missing, "does not exist"), (short, "ends before byte 8")):
        error = world.leader.completed[job, 1].error
        assert error is not None and error.type == "PayloadMissing" and words in error.message


@told
async def test_a_store_that_does_not_answer_is_not_the_jobs_fault() -> None:
    world = World()
    await world.store.put_new("payloads/p", b"12345")
    world.store.failing_gets = 1_000_000
    job = world.leader.enqueue("quick", payload=BlobRef("payloads/p", 0, 5))[0]
    assert await world.until_completed(job) == [Outcome.RELEASED]
    assert world.runner.started == []


@told
async def test_a_job_whose_payload_is_on_its_way_can_be_cancelled() -> None:
    world = World()
    world.store.failing_gets = 5
    await world.store.put_new("payloads/p", b"12345")
    job = world.leader.enqueue("quick", payload=BlobRef("payloads/p", 0, 5))[0]
    await world.until(lambda: (job, 1) in world.leader.leases)
    await asyncio.sleep(0.05)
    world.leader.cancel(job)
    assert await world.until_completed(job, seconds=2) == [Outcome.CANCELLED]
    await asyncio.sleep(30)
    assert world.runner.started == []


# --- the whole ------------------------------------------------------------------------------------


@told
async def test_a_defect_ends_the_worker_loudly() -> None:
    world = World()
    world.leader.enqueue("no plan for this task")
    with pytest.raises(KeyError):
        await world.life


def _story(seed: int) -> list[WorkerReport]:
    async def story() -> list[WorkerReport]:
        world = World(seed)
        jobs = world.leader.enqueue("quick", 200) + world.leader.enqueue("talks", 20)
        await asyncio.sleep(0.5)
        world.leader.away = True
        await asyncio.sleep(7)
        world.leader.away = False
        await asyncio.sleep(20)
        world.leader.cancel(*jobs[-3:])
        world.leader.retire_worker()
        await world.life
        return world.leader.reports

    return virtual_loop.run(story())


def test_one_seed_tells_one_story() -> None:
    assert [msgspec.msgpack.encode(each) for each in _story(7)] == [
        msgspec.msgpack.encode(each) for each in _story(7)
    ]


def test_settings_hold_heartbeats_well_inside_the_lease() -> None:
    with pytest.raises(InvalidRequest):
        Settings(heartbeat_seconds=20.0, lease_seconds=30.0)
