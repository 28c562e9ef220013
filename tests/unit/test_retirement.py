"""Retirement: what has ended leaves as fast as it comes, each with a line of history, and stops nobody."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from typing import Any

import msgspec
import pytest

from jobsvc import commands as c
from jobsvc import decisions, history_lines
from jobsvc.errors import Refusal
from jobsvc.jobs import (
    AttemptRecord,
    BlobRef,
    Details,
    ErrorInfo,
    Job,
    JobOptions,
    Outcome,
    Result,
    State,
    id_text,
)
from jobsvc.manager import Manager
from jobsvc.object_store import PutOutcome, StoreError

from .manager_world import Pair, done, enqueue_of, run, until
from .queue_world import job_id

numbers = count(1)


async def round_trip(pair: Pair, manager: Manager, jobs: int, **finished: Any) -> list[bytes]:
    """Enqueue, lease and end so many jobs. Fails if one is refused."""
    ids = await pair.enqueue(manager, *(next(numbers) for _ in range(jobs)))
    left = jobs
    while left:
        grants = (await pair.report(manager, can_take=left)).grants
        ends = [done(grant) for grant in grants]
        for end in ends:
            for name, value in finished.items():
                setattr(end, name, value)
        await pair.report(manager, finished=ends)
        left -= len(grants)
    return ids


async def lines_of(pair: Pair) -> list[dict[str, Any]]:
    """All history, in the order of its objects."""
    found = []
    for key in await pair.store.list("finished/"):
        data = await pair.store.get(key)
        assert data is not None
        found += [msgspec.json.decode(line) for line in data.splitlines()]
    return found


def test_the_rate_stays_when_the_limits_are_reached() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        loop = asyncio.get_running_loop()
        seconds, ids = [], []
        # given limits that are full after a few batches
        for _ in range(40):
            began = loop.time()
            ids += await round_trip(pair, a, 500)
            seconds.append(loop.time() - began)
            # then no batch is refused, and what is held stays within the limits
            assert len(a.state.jobs) <= 3_000
        # and the last ones take as long as the first
        assert sum(seconds[-10:]) < 1.2 * sum(seconds[:10])
        # and of all that is gone there is a line, once
        await until(lambda: len(a.state.jobs) <= 1_000, 5.0)
        lines = Counter([line["id"] for line in await lines_of(pair)])
        assert set(lines.values()) == {1}
        assert set(lines) == {id_text(job) for job in ids} - {id_text(job) for job in a.state.jobs}

    run(story, max_jobs=3_000, retained_jobs_max=1_000)


def test_retirement_by_number_begins_as_soon_as_the_number_is_exceeded() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await round_trip(pair, a, 10)
        await asyncio.sleep(10.0)
        assert len(a.state.jobs) == 10
        await round_trip(pair, a, 5)
        await until(lambda: len(a.state.jobs) == 10, 0.5)

    run(story, retained_jobs_max=10)


def test_a_trickle_costs_one_put_a_second_at_most() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await round_trip(pair, a, 10)
        for _ in range(100):
            await round_trip(pair, a, 1)
            await asyncio.sleep(0.05)
        await until(lambda: len(a.state.jobs) == 10, 2.0)
        assert len(await pair.store.list("finished/")) <= 10
        assert len(await lines_of(pair)) == 100

    run(story, retained_jobs_max=10)


@pytest.mark.parametrize("retained", [0, 90, 1_000_000])
def test_jobs_that_have_ended_never_keep_new_ones_out(retained: int) -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given as many jobs as there may be, all of which have ended
        await round_trip(pair, a, 100)
        # when as many come again
        batch = enqueue_of([job_id(next(numbers)) for _ in range(100)])
        [answer] = await pair.ask(a, batch)
        if isinstance(answer, c.Accepted):
            return
        # then they are told to come back, and taken when they do
        assert answer.code == "too_many_jobs" and answer.retry_after_seconds
        await asyncio.sleep(answer.retry_after_seconds)
        [answer] = await pair.ask(a, batch)
        assert isinstance(answer, c.Accepted)

    run(story, max_jobs=100, retained_jobs_max=retained)


def test_jobs_that_wait_do_keep_new_ones_out() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        ids = await pair.enqueue(a, *(next(numbers) for _ in range(100)))
        for _ in range(3):
            [answer] = await pair.ask(a, enqueue_of([job_id(next(numbers))]))
            assert answer.code == "too_many_jobs"
            await asyncio.sleep(6.0)
        assert all(job in a.state.jobs for job in ids)

    run(story, max_jobs=100)


def test_objects_go_with_their_jobs_a_thousand_at_a_time() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        deleted: list[int] = []
        whole = pair.store.delete_many

        async def counted(keys: list[str]) -> None:
            deleted.append(len(keys))
            await whole(keys)

        pair.store.delete_many = counted  # type: ignore[method-assign]
        for number in range(2_000):
            key = f"results/{number:05}"
            await pair.store.put_new(key, b"x")
        grants = []
        await pair.enqueue(a, *(next(numbers) for _ in range(2_000)))
        while len(grants) < 2_000:
            grants += (
                await pair.report(a, can_take=2_000, holding=[(g.job_id, g.attempt) for g in grants])
            ).grants
        ends = [done(grant) for grant in grants]
        for number, end in enumerate(ends):
            end.result = Result("raw", ref=BlobRef(f"results/{number:05}", 0, 1))
        await pair.report(a, finished=ends)
        await until(lambda: not [key for key in pair.store_keys() if key.startswith("results/")], 5.0)
        assert len(deleted) <= 3

    run(story, retained_jobs_max=0)


def test_a_job_that_is_revived_while_its_line_is_written_stays() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1, max_attempts=1)
        [grant] = (await pair.report(a, can_take=1)).grants
        # given lines that take long to write
        writing = asyncio.Event()
        whole = pair.store.put_new

        async def slow(key: str, data: bytes) -> PutOutcome:
            if key.startswith("finished/"):
                writing.set()
                await asyncio.sleep(2.0)
            return await whole(key, data)

        pair.store.put_new = slow  # type: ignore[method-assign]
        await pair.report(a, finished=[done(grant, Outcome.RAISED)])
        await asyncio.wait_for(writing.wait(), 5.0)
        # when somebody puts the job back, and it succeeds before they are there
        await pair.ask(a, c.Retry([job_id(1)]))
        [grant] = (await pair.report(a, can_take=1)).grants
        await pair.report(a, finished=[done(grant)])
        assert job_id(1) in a.state.jobs
        # then it leaves with a line of its own that says so
        await until(lambda: job_id(1) not in a.state.jobs, 10.0)
        assert [line["state"] for line in await lines_of(pair)] == ["failed", "succeeded"]

    run(story, retained_jobs_max=0)


def test_a_leader_that_dies_after_the_lines_leaves_no_job_without_one() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        # given a leader whose records do not land any more once the lines are written
        whole = pair.store.put_new

        async def stuck(key: str, data: bytes) -> PutOutcome:
            outcome = await whole(key, data)
            if key.startswith("finished/"):
                pair.kill("manager-a")
                pair.store.put_new = whole  # type: ignore[method-assign]
                await asyncio.sleep(3600.0)
            return outcome

        pair.store.put_new = stuck  # type: ignore[method-assign]
        ids = await round_trip(pair, a, 50)
        # then its successor lets the same jobs go, with the same lines
        await until(lambda: b.role == "leader" and not len(b.state.jobs), 60.0)
        lines = await lines_of(pair)
        assert {line["id"] for line in lines} == {id_text(job) for job in ids}

    run(story, retained_jobs_max=0)


def test_deletes_that_fail_are_tried_again() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.store.put_new("results/x", b"x")
        whole, failures = pair.store.delete_many, iter(range(1_000))

        async def flaky(keys: list[str]) -> None:
            if next(failures) < 3:
                raise StoreError("away")
            await whole(keys)

        pair.store.delete_many = flaky  # type: ignore[method-assign]
        await round_trip(pair, a, 1, result=Result("raw", ref=BlobRef("results/x", 0, 1)))
        await until(lambda: "results/x" not in pair.store_keys(), 30.0)
        assert a.role == "leader"

    run(story, retained_jobs_max=0)


def broken_for(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, stuck: set[bytes]) -> None:
    """A function over jobs that meets a defect with some of them."""
    whole = getattr(module, name)

    def broken(*arguments: Any) -> Any:
        if stuck & {job.id for job in arguments[-1]}:
            raise TypeError("not as it should be")
        return whole(*arguments)

    monkeypatch.setattr(module, name, broken)


@pytest.mark.parametrize(("module", "name"), [(history_lines, "ndjson"), (decisions, "retired")])
def test_a_job_that_cannot_leave_is_named_and_the_others_go_past_it(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        stuck: set[bytes] = set()
        broken_for(monkeypatch, module, name, stuck)
        # given the oldest job of all, which meets a defect as it leaves
        first = (await pair.enqueue(a, next(numbers)))[0]
        stuck.add(first)
        [grant] = (await pair.report(a, can_take=1)).grants
        await pair.report(a, finished=[done(grant)])
        # when others end after it, then those go, time after time
        others = []
        for _ in range(3):
            others += await round_trip(pair, a, 30)
            await until(lambda: len(a.state.jobs) == 1, 10.0)
        assert first in a.state.jobs
        # and it is named
        [problem] = [each for each in a.describe().problems if each.part.startswith("retirement")]
        assert problem.part == f"retirement {id_text(first)}"
        assert problem.text == "TypeError: not as it should be"
        # it is tried again, ever later, and goes when it can, and each has a line
        tries = problem.times
        await asyncio.sleep(300.0)
        [problem] = [each for each in a.describe().problems if each.part.startswith("retirement")]
        assert tries < problem.times < tries + 12
        stuck.clear()
        await until(lambda: first not in a.state.jobs, 120.0)
        assert not [each for each in a.describe().problems if each.part.startswith("retirement")]
        lines = Counter(line["id"] for line in await lines_of(pair))
        assert set(lines) == {id_text(each) for each in (first, *others)}

    run(story, retained_jobs_max=0)


def test_a_defect_that_meets_every_job_is_that_of_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        stuck: set[bytes] = set()
        broken_for(monkeypatch, history_lines, "ndjson", stuck)
        ids = await pair.enqueue(a, *(next(numbers) for _ in range(100)))
        stuck.update(ids)
        grants = (await pair.report(a, can_take=100)).grants
        await pair.report(a, finished=[done(grant) for grant in grants])
        await until(lambda: bool(a.describe().problems), 10.0)
        await asyncio.sleep(30.0)
        # it is not named a hundred times, and does not run in circles
        problems = [each for each in a.describe().problems if each.part.startswith("retirement")]
        assert "retirement" in {each.part for each in problems} and len(problems) < 30
        assert max(each.times for each in problems if each.part == "retirement") < 10
        assert len(a.state.jobs) == 100 and a.role == "leader"
        stuck.clear()
        await until(lambda: not a.state.jobs, 120.0)

    run(story, retained_jobs_max=0)


def test_a_line_tells_what_the_job_was_and_how_it_ended() -> None:
    attempt = AttemptRecord(
        2, "w1", "node", 1_000_000.0005, 1_000_001.9999999, Outcome.RAISED, ErrorInfo("E", "no\nluck")
    )
    options = JobOptions("t.x", "images", labels=(("a", "b"),), batch="b1")
    job = Job(job_id(7), options, b"{}", 1, 999_999.25, State.FAILED)
    job.details = Details(finished_at=1_000_002.0, finish_seq=1, history=[attempt])
    [line] = history_lines.ndjson([job]).splitlines()
    assert msgspec.json.decode(line) == {
        "id": id_text(job_id(7)),
        "task": "t.x",
        "queue": "images",
        "state": "failed",
        "created_at": "1970-01-12T13:46:39.250Z",
        "finished_at": "1970-01-12T13:46:42.000Z",
        "labels": {"a": "b"},
        "batch": "b1",
        "attempts": [
            {
                "number": 2,
                "worker": "w1",
                "started_at": "1970-01-12T13:46:40.000Z",
                "ended_at": "1970-01-12T13:46:42.000Z",
                "outcome": "raised",
                "error": "no\nluck",
            }
        ],
    }


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1e9, 1e300])
def test_a_worker_whose_clock_is_mad_stops_no_history(odd: float) -> None:
    job = Job(job_id(7), JobOptions("t.x"), b"{}", 1, 1.0, State.SUCCEEDED)
    attempt = AttemptRecord(1, "w1", "node", odd, odd, Outcome.SUCCEEDED)
    job.details = Details(finished_at=2.0, finish_seq=1, history=[attempt])
    [line] = history_lines.ndjson([job]).splitlines()
    assert msgspec.json.decode(line)["attempts"][0]["ended_at"] == "1970-01-01T00:00:00.000Z"


def test_what_becomes_too_old_leaves_at_the_rate_at_which_it_came() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        for _ in range(12):
            await round_trip(pair, a, 2_500)
        await until(lambda: not len(a.state.jobs), 9.0)

    run(story, retention_seconds=2.0)


def test_queues_whose_jobs_have_ended_never_keep_new_ones_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "QUEUES_MAX", 50)

    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given more names than there may be queues, each used once
        for number in range(120):
            batch = enqueue_of([job_id(next(numbers))], queue=f"user-{number}")
            [answer] = await pair.ask(a, batch)
            if isinstance(answer, Refusal):
                # then who is refused is taken a second later
                assert (answer.code, answer.retry_after_seconds) == ("too_many_jobs", 1.0)
                await asyncio.sleep(1.0)
                [answer] = await pair.ask(a, batch)
            assert isinstance(answer, c.Accepted)
            [grant] = (await pair.report(a, can_take=1)).grants
            await pair.report(a, finished=[done(grant)])
        assert len(a.state.counts) <= 50

    run(story)
