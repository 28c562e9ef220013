"""No command, report or record ends one leadership after the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobsvc import commands as c
from jobsvc import commit_loop, decisions, queue_state
from jobsvc.errors import EventNotApplied, Refusal, Unavailable
from jobsvc.jobs import Outcome, State, encode
from jobsvc.settings import PoolSettings

from .manager_world import Pair, done, enqueue_of, run, until
from .queue_world import job_id

BAD = job_id(13)


def names_bad(what: Any) -> bool:
    return BAD in encode(what)


@pytest.fixture
def bad_to_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    right = decisions.decide

    def decide(state: Any, command: c.Command, limits: Any) -> decisions.Decision:
        if names_bad(command):
            raise ZeroDivisionError("a defect")
        return right(state, command, limits)

    monkeypatch.setattr(decisions, "decide", decide)


@pytest.fixture
def bad_to_apply(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    right = queue_state.apply

    def apply(state: Any, event: Any, log_time: float) -> None:
        if names_bad(event):
            raise ZeroDivisionError("a defect")
        right(state, event, log_time)

    monkeypatch.setattr(commit_loop, "apply", apply)
    return monkeypatch


def test_a_command_that_meets_a_defect_is_refused_alone_and_leaves_no_trace(bad_to_decide: None) -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        before = len(await pair.events())
        good, bad, query = await pair.ask(
            a, enqueue_of([job_id(1)]), enqueue_of([BAD]), c.GetJobs([job_id(1), BAD])
        )
        assert isinstance(good, c.Accepted)
        assert bad == Refusal(
            "internal", "Enqueue met a defect in the service: ZeroDivisionError: a defect", None, None
        )
        assert isinstance(query.items[0], c.JobView) and query.items[1].code == "unknown_job"
        assert len(await pair.events()) == before + 1
        # then it is named and counted, and the leader leads
        status = pair.status(a)
        assert [each.part for each in status.problems] == ["request Enqueue"] and status.healthy
        assert [each.value for each in status.counters if each.name == "part_failures"] == [1]

    run(story)


def test_a_report_that_cannot_be_settled_keeps_neither_its_worker_nor_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = decisions.settle

    def settle(state: Any, worker: str, node: str, finished: Any) -> decisions.Settlement:
        if any(each.job_id == BAD for each in finished):
            raise ZeroDivisionError("a defect")
        return right(state, worker, node, finished)

    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        good, bad = await pair.enqueue(a, 1, 13)
        orders = await pair.report(a, can_take=2)
        finished = [done(grant) for grant in orders.grants]
        monkeypatch.setattr(decisions, "settle", settle)
        # when the one report is refused again and again
        for _ in range(5):
            with pytest.raises(Unavailable, match="a defect"):
                await pair.report(a, finished=finished, can_take=2)
            assert a.state.jobs[good].state is State.SUCCEEDED and a.state.jobs[bad].state is State.RUNNING
        # then its job fails and says why, and the worker goes on
        await pair.report(a, finished=finished, can_take=2)
        job = a.state.jobs[bad]
        assert job.state is State.FAILED and job.details is not None and job.details.history[-1].error
        assert "met a defect in the service" in job.details.history[-1].error.message
        await pair.enqueue(a, 2)
        assert len((await pair.report(a, can_take=2)).grants) == 1
        assert (a.role, a.state.epoch) == ("leader", 1)

    run(story)


def test_a_lost_worker_whose_outbox_cannot_be_read_or_settled_gives_its_jobs_back() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [job] = await pair.enqueue(a, 1)
        await pair.report(a, can_take=1)
        await pair.store.put_new("outbox/w1/s/1", b"not a list of reports")
        pair.fleet.there.pop("w1")
        a.worker_gone("w1")
        await until(lambda: a.state.jobs[job].state is State.QUEUED)
        assert "outbox/w1/s/1" in pair.store_keys()
        assert "outbox outbox/w1/s/1" in [each.part for each in pair.status(a).problems]

    run(story)


def test_an_event_that_cannot_be_applied_ends_one_leadership_and_is_answered(
    bad_to_apply: pytest.MonkeyPatch,
) -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        await pair.enqueue(a, 1)
        good, bad, after = await pair.ask(
            a, enqueue_of([job_id(2)]), enqueue_of([BAD]), enqueue_of([job_id(3)])
        )
        # then who sent it is told, and the others that nothing is known
        assert bad.code == "internal" and "(JobsEnqueued) cannot be applied" in bad.detail
        assert (good.code, after.code) == ("unknown_outcome", "unknown_outcome")
        with pytest.raises(EventNotApplied, match=r"record 1/\d+, event 1 \(JobsEnqueued\)"):
            await pair.tasks["manager-a"]
        # and the next leader leads
        await until(lambda: b.role == "leader")
        await pair.enqueue(b, 2, 3)
        await asyncio.sleep(60.0)
        assert (b.role, b.state.epoch) == ("leader", 2)
        assert BAD not in b.state.jobs

    run(story)


def test_a_record_that_cannot_be_followed_stops_its_reader_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(pair: Pair) -> None:
        # given a journal with an event that the standby's version does not know
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1, 13)
        await until(lambda: len(pair.managers["manager-b"].state.jobs) == 2)
        number = a.leader.commits.mark.next_position.n - 1  # type: ignore[union-attr]
        pair.kill("manager-b")

        def apply(state: Any, event: Any, log_time: float) -> None:
            if names_bad(event):
                raise KeyError("unknown")
            queue_state.apply(state, event, log_time)

        from jobsvc import manager

        monkeypatch.setattr(manager, "apply", apply)
        pair.start("manager-b")
        with pytest.raises(EventNotApplied) as caught:
            await pair.tasks["manager-b"]
        assert f"record 1/{number}, event 0 (JobsEnqueued)" in str(caught.value)
        assert "Start the version that wrote it" in str(caught.value)
        # then the leader leads
        orders = await pair.report(a, can_take=2)
        await pair.report(a, finished=[done(grant, Outcome.SUCCEEDED) for grant in orders.grants])
        assert (a.role, a.state.epoch) == ("leader", 1)

    run(story, pools={"default": PoolSettings(max_workers=0)})
