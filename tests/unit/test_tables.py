"""Tables that grow with what callers make up: each is filled, and keeps its bound. The guide names them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from jobsvc import attempts, bulkheads, prefetch, ready_lanes, scaling, settling, throughput
from jobsvc.attempts import UnsettledReports
from jobsvc.bulkheads import Bulkheads
from jobsvc.commands import PatchQueue
from jobsvc.jobs import Finished, Outcome, Result
from jobsvc.prefetch import Prefetch
from jobsvc.scaling import TaskSeconds
from jobsvc.throughput import Throughput

from .manager_world import Pair, done, run
from .queue_world import World, job_id

GUIDE = Path(__file__).parent.parent.parent / "docs" / "operate.md"


def test_rates_of_queues_that_are_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "QUEUES_MAX", 100)
    rates, now, names = Throughput(0.0), 0.0, itertools.count()
    # given five minutes in which each job has a queue of its own
    for _ in range(3_000):
        now += 0.1
        for _ in range(10):
            rates.add(f"user-{next(names)}", now)
    # then a slot has no more than its bound, and a minute has no more than its slots
    held = rates.per_second(now)
    slots = throughput.WINDOW_SECONDS / throughput.SLOT_SECONDS + 1
    assert max(len(counts) for _, counts in rates._slots) == 100
    assert 1_000 < len(held) <= 100 * slots and len(rates._slots) <= slots
    # and a queue that was there before the slot was full is counted on
    rates = Throughput(0.0)
    rates.add("mine", 1.0)
    for number in range(1_000):
        rates.add(f"user-{number}", 1.0)
    rates.add("mine", 1.0, jobs=9)
    assert rates.per_second(10.0)["mine"] == 1.0


def test_options_go_with_the_last_job_that_has_them() -> None:
    world = World(retained_jobs_max=10)
    # given two thousand batches, each with options of its own
    for number in range(2_000):
        labels = (("number", str(number)),)
        [job] = world.enqueue(batch=f"b{number}", labels=labels, retention_seconds=number + 1.0)
        world.run(job)
        if number % 100 == 0:
            world.retire()
            assert len(world.state.options) <= 10
    world.retire()
    state = world.state
    # then what is kept is that of the jobs that are held
    assert len(state.options) == len(state.jobs) == len(state.retention.held()) == 10
    assert len(state.retention) < 2_100 and not state.recent._open
    world.check()


def test_queues_that_are_forgotten_leave_nothing_behind_one_that_waits() -> None:
    world = World(retained_jobs_max=0)
    # given a job that waits in a paused queue
    world.do(PatchQueue("paused", True))
    [stays] = world.enqueue(queue="paused")
    # and thousands of names, each used once
    for number in range(3_000):
        [job] = world.enqueue(queue=f"user-{number}")
        world.run(job)
        world.retire()
        assert world.state.lanes.oldest() is not None
    # then no lane is left of them
    lanes = world.state.lanes
    assert list(world.state.jobs) == [stays] and len(lanes) == 1
    assert len(lanes._oldest) <= 2 * (len(lanes) + 1) + ready_lanes.VOID_MIN
    assert all(len(order._heap) <= 2 + ready_lanes.VOID_MIN for order in lanes._ready.values())
    world.check()


def test_tasks_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_TASKS_MAX", 100)
    monkeypatch.setattr(scaling, "TASKS_MAX", 100)
    worker, pool = Prefetch(0.25, 100, 1.0), TaskSeconds()
    for number in range(1_000):
        for name in ("often", f"task-{number}"):
            worker.ended(name, 0.01)
            pool.add(name, 1, 0.01)
    assert len(worker._seconds) == len(pool._by_task) == 100
    # the one that goes is the one that was used the longest ago
    assert "often" in worker._seconds and pool.of("often") < 1.0 and pool.of("task-1") > 1.0


def test_attempts_that_a_worker_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "SETTLED_MAX", 100)

    async def story(pair: Pair) -> None:
        reports = UnsettledReports("w1", "s", None)  # type: ignore[arg-type]  # nothing is stored here
        for number in range(1_000):
            end = Finished(job_id(number), 1, Outcome.SUCCEEDED, 0.0, 1.0, Result("json", b"1"))
            reports.add(end, 0.0, 0.0)
            reports.settle([end])
        assert len(reports) == 0 and len(reports._settled) == 100
        assert (job_id(999), 1) in reports and (job_id(1), 1) not in reports

    run(story)


def test_reports_that_met_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "REFUSED_MAX", 10)

    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        assert a.leader is not None
        await pair.enqueue(a, *range(1, 51))
        for grant in (await pair.report(a, can_take=50)).grants:
            assert a.leader.settling._refuse(done(grant))
        assert len(a.leader.settling._refusals) == 10

    run(story)


def test_parts_that_have_failed() -> None:
    parts = Bulkheads(lambda: 0.0, lambda: 0.0)
    for number in range(1_000):
        parts.failed("loss of a worker", ValueError("x"), f"worker-{number}")
    assert len(parts.problems()) == bulkheads.TROUBLES_MAX
    assert parts.problems()[-1].part == "loss of a worker worker-999"


def test_the_guide_names_each_table() -> None:
    text = GUIDE.read_text()
    table = text[text.index("## What is kept") : text.index("## Who gets in")].lower()
    for words in (
        "queue names", "idempotency keys", "options", "rates", "retention", "tasks that were measured",
        "attempts that a worker", "reports that met a defect", "parts that failed", "kinds of failures",
        "put back", "metrics", "pushed", "event loops",
    ):  # fmt: skip
        assert words in table, f"{words}: no row in the guide"
    rows = re.findall(r"^\|.*\|$", text[text.index("## What is kept") : text.index("## Who gets in")], re.M)
    assert all(row.count("|") == 4 for row in rows)
