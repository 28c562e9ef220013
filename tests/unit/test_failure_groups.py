"""Failed jobs, grouped by what went wrong, and the jobs that a filter means."""

from __future__ import annotations

import time

import pytest

from jobsvc import commands as c
from jobsvc import decisions, failure_groups, job_views, selections
from jobsvc.errors import Refusal
from jobsvc.jobs import ErrorInfo, Outcome, State
from jobsvc.queue_state import apply

from .queue_world import HOUR, World

TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line {}, in step\n    boom()\n'


def failed(world: World, error: ErrorInfo, **options: object) -> bytes:
    """A job that has failed like this."""
    [job] = world.enqueue(max_attempts=1, **options)  # type: ignore[arg-type]
    assert world.lease("runner") == [job]
    finished = world.finished(job, Outcome.RAISED)
    finished.error = error
    assert world.settle([finished], "runner") == []
    return job


def groups(world: World) -> list[c.FailureGroup]:
    return job_views.get_failures(world.state, c.GetFailures()).groups


def test_alike_is_what_failed_at_the_same_place_with_the_same_type() -> None:
    world = World()
    for line in (3, 4):
        failed(world, ErrorInfo("ValueError", f"bad {line}", TRACEBACK.format(line)))
    failed(world, ErrorInfo("KeyError", "bad", TRACEBACK.format(3)))
    failed(world, ErrorInfo("ValueError", "bad", TRACEBACK.format(3)), task="another.task")
    assert [(group.task, group.type, group.count) for group in groups(world)] == [
        ("demo.task", "ValueError", 2),
        ("demo.task", "KeyError", 1),
        ("another.task", "ValueError", 1),
    ]
    assert groups(world)[0].place == 'File "a.py", in step'
    assert groups(world)[0].message == "bad 4"


def test_without_a_traceback_the_message_counts_but_not_its_numbers() -> None:
    world = World()
    for seconds in ("2.9", "3.1"):
        failed(world, ErrorInfo("TimedOut", f"killed after {seconds} s"))
    failed(world, ErrorInfo("TimedOut", "never began"))
    assert [group.count for group in groups(world)] == [2, 1]


def test_the_groups_add_up_to_the_count_through_revival_retirement_and_replay() -> None:
    world = World(retention_seconds=HOUR)
    first = failed(world, ErrorInfo("A", "x"))
    failed(world, ErrorInfo("A", "x"))
    failed(world, ErrorInfo("B", "y"))
    world.do(c.Retry([first]))
    view = job_views.get_failures(world.state, c.GetFailures())
    assert (view.jobs, sum(group.count for group in view.groups)) == (2, 2)
    world.check()
    world.after(2 * HOUR).retire()
    assert groups(world) == []
    world.check()


def test_there_is_a_bound_of_groups_and_the_rest_is_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_groups, "GROUPS_MAX", 2)
    world = World()
    jobs = [failed(world, ErrorInfo(kind, "x")) for kind in "ABCD"]
    assert sorted((group.fingerprint == "other", group.count) for group in groups(world)) == [
        (False, 1),
        (False, 1),
        (True, 2),
    ]
    found = world.do(c.ChangeMatching("retry", c.Selection(failure="other")))
    assert found.count == 2 and world.is_in(jobs[3]) is State.QUEUED
    world.check()


# --- actions on all that match --------------------------------------------------------------------


def work_through(world: World, action: str, where: c.Selection, **fields: int) -> tuple[int, int]:
    """Slice after slice to the end: (jobs that were changed, slices)."""
    count, slices, before = 0, 0, None
    while True:
        matched = world.do(c.ChangeMatching(action, where, before, **fields))
        count, slices, before = count + matched.count, slices + 1, matched.before
        if before is None:
            return count, slices


def counted(world: World, action: str, where: c.Selection) -> int:
    count, before = 0, None
    while True:
        matched = job_views.count_matching(world.state, c.CountMatching(action, where, before))
        assert isinstance(matched, c.Matched)
        count, before = count + matched.count, matched.before
        if before is None:
            return count


def test_all_that_match_are_cancelled_in_slices_and_nothing_else() -> None:
    world = World()
    images = world.enqueue(25, queue="images")
    others = world.enqueue(5, queue="mail")
    [running] = world.lease("w1")
    where = c.Selection(queue="images")
    assert counted(world, "cancel", where) == 25
    assert work_through(world, "cancel", where, limit=10) == (25, 3)
    assert counted(world, "cancel", where) == 0
    assert {world.is_in(job) for job in images} == {State.CANCELLED, State.RUNNING}
    assert {world.is_in(job) for job in others} == {State.QUEUED}
    lease = world.state.lease_of(world.job(running))
    assert lease is not None and lease.cancel_requested
    world.check()


def test_what_came_after_the_count_is_left_alone() -> None:
    world = World()
    world.enqueue(3)
    counted_at = job_views.count_matching(world.state, c.CountMatching("cancel", c.Selection()))
    assert isinstance(counted_at, c.Matched)
    late = world.enqueue(2)
    matched = world.do(c.ChangeMatching("cancel", c.Selection(), counted_at.top))
    assert matched.count == 3
    assert {world.is_in(job) for job in late} == {State.QUEUED}


def test_a_group_of_failures_is_retried() -> None:
    world = World()
    ours = [failed(world, ErrorInfo("A", "x")) for _ in range(3)]
    theirs = failed(world, ErrorInfo("B", "y"))
    fingerprint = failure_groups.fingerprint_of(world.job(ours[0]))
    assert work_through(world, "retry", c.Selection(failure=fingerprint), limit=2) == (3, 2)
    assert {world.is_in(job) for job in ours} == {State.QUEUED}
    assert world.is_in(theirs) is State.FAILED
    world.check()


def test_a_slice_sent_again_under_its_key_is_answered_as_before() -> None:
    world = World()
    world.enqueue(4)
    command = c.ChangeMatching("cancel", c.Selection(), limit=3, key="k", fingerprint=b"f")
    first = world.do(command)
    assert world.do(command) == first
    assert world.state.total(State.CANCELLED) == 3


@pytest.mark.parametrize("action", ["delete", ""])
def test_an_unknown_action_is_refused(action: str) -> None:
    world = World()
    assert isinstance(world.do(c.ChangeMatching(action, c.Selection())), Refusal)
    assert isinstance(job_views.count_matching(world.state, c.CountMatching(action, c.Selection())), Refusal)


# --- a few among many -----------------------------------------------------------------------------


def test_few_among_many_are_found_at_once() -> None:
    world = World()
    lost = failed(world, ErrorInfo("A", "x"))
    [later] = world.enqueue(run_at=world.state.log_time + HOUR)
    [running] = world.enqueue()
    assert world.lease("w1") == [running]
    world.enqueue(selections.SCAN_MAX * 2)
    for state, job in ((State.FAILED, lost), (State.SCHEDULED, later), (State.RUNNING, running)):
        page = job_views.list_jobs(world.state, c.ListJobs(state=state))
        assert ([view.id for view in page.jobs], page.before) == ([job], None)


def test_pages_of_an_index_follow_each_other() -> None:
    world = World()
    jobs = [failed(world, ErrorInfo("A", "x")) for _ in range(5)]
    found, before = [], None
    while True:
        page = job_views.list_jobs(world.state, c.ListJobs(state=State.FAILED, before=before, limit=2))
        found += [view.id for view in page.jobs]
        before = page.before
        if before is None:
            break
    assert found == jobs[::-1]


def test_no_slice_takes_long_among_many_jobs() -> None:
    """The bound is loose, as this machine may be busy; the slices are what keeps it."""
    world = World()
    world.enqueue(200_000)
    longest = 0.0
    before = None
    limits = world.limits
    for action in ("cancel", "retry"):
        for _ in range(20):
            command = c.ChangeMatching(action, c.Selection(), before, decisions.CHANGED_AT_ONCE_MAX)
            began = time.process_time()
            decision = decisions.decide(world.state, command, limits)
            for event in decision.events:
                apply(world.state, event, world.state.log_time)
            longest = max(longest, time.process_time() - began)
            assert isinstance(decision.answer, c.Matched)
            before = decision.answer.before
        before = None
    assert longest < 0.25
