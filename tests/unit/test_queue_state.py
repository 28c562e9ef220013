"""The table of transitions, and what `apply` keeps true about its collections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobsvc import queue_snapshot, queue_state
from jobsvc.commands import Accepted, Cancel, Enqueue, PatchQueue, Pull, Retry
from jobsvc.errors import Refusal
from jobsvc.events import (
    AttemptsEnded,
    Change,
    Event,
    JobsCancelled,
    JobsLeased,
    JobsPromoted,
    JobsRevived,
)
from jobsvc.jobs import HASH_TASK, TERMINAL, BlobRef, Finished, JobOptions, NewJob, Outcome, State
from jobsvc.queue_snapshot import fingerprint
from jobsvc.queue_state import TRANSITIONS, IllegalTransition, apply

from .queue_world import HOUR, World, job_id

LEGAL = {
    (State.SCHEDULED, Change.PROMOTE): State.QUEUED,
    (State.SCHEDULED, Change.CANCEL): State.CANCELLED,
    (State.QUEUED, Change.LEASE): State.RUNNING,
    (State.QUEUED, Change.CANCEL): State.CANCELLED,
    (State.RUNNING, Change.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Change.FAIL): State.FAILED,
    (State.RUNNING, Change.RETRY_LATER): State.SCHEDULED,
    (State.RUNNING, Change.GIVE_BACK): State.QUEUED,
    (State.RUNNING, Change.CANCEL): State.CANCELLED,
    (State.FAILED, Change.REVIVE): State.QUEUED,
    (State.CANCELLED, Change.REVIVE): State.QUEUED,
}
OUTCOMES = {
    Change.SUCCEED: Outcome.SUCCEEDED,
    Change.FAIL: Outcome.RAISED,
    Change.RETRY_LATER: Outcome.RAISED,
    Change.GIVE_BACK: Outcome.RELEASED,
    Change.CANCEL: Outcome.CANCELLED,
}


def a_job_in(state: State) -> tuple[World, bytes]:
    world = World()
    run_at = world.state.log_time + HOUR if state is State.SCHEDULED else None
    [job] = world.enqueue(run_at=run_at, max_attempts=2)
    if state is State.RUNNING:
        world.lease()
    elif state is State.SUCCEEDED:
        world.run(job)
    elif state is State.FAILED:
        world.do(Cancel([job]))
        world.do(Retry([job]))
        world.lease()
        world.record([ended(world, job, Change.FAIL)])
    elif state is State.CANCELLED:
        world.do(Cancel([job]))
    assert world.is_in(job) is state
    return world, job


def ended(world: World, job: bytes, change: Change) -> AttemptsEnded:
    now = world.state.log_time
    finished = Finished(job, world.job(job).attempt, OUTCOMES[change], now - 1.0, now)
    run_at = now + 9.0 if change is Change.RETRY_LATER else None
    return AttemptsEnded("w1", "node", [finished], [change], [run_at])


def event_for(world: World, job: bytes, change: Change, state: State) -> Event:
    direct: dict[Change, Callable[[], Event]] = {
        Change.PROMOTE: lambda: JobsPromoted([job]),
        Change.LEASE: lambda: JobsLeased("w1", [job]),
        Change.REVIVE: lambda: JobsRevived([job]),
    }
    if change is Change.CANCEL and state is not State.RUNNING:
        return JobsCancelled([job])
    return direct[change]() if change in direct else ended(world, job, change)


@pytest.mark.parametrize("change", list(Change))
@pytest.mark.parametrize("state", list(State))
def test_every_pair_of_the_table(state: State, change: Change) -> None:
    # given a job in this state
    world, job = a_job_in(state)
    before = fingerprint(world.state)
    event = event_for(world, job, change, state)
    if (state, change) in LEGAL:
        # when the move is legal, then it is made, and every collection agrees
        world.record([event])
        assert world.is_in(job) is LEGAL[state, change]
        world.check()
    else:
        # when it is not, then it raises and nothing has changed
        with pytest.raises(IllegalTransition):
            apply(world.state, event, world.state.log_time)
        assert fingerprint(world.state) == before
        world.check()


def test_the_table_is_what_is_written_here() -> None:
    assert {(s, ch): t for s, row in TRANSITIONS.items() for ch, t in row.items()} == LEGAL
    assert set(TRANSITIONS) == set(State)
    for state in State:  # what is not terminal has a way forward, and a way to every end
        assert (state in TERMINAL) == (not set(TRANSITIONS[state]) - {Change.REVIVE})


def test_counts_add_up_whatever_happens() -> None:
    # given jobs in every state
    world = World()
    ids = world.enqueue(6)
    world.enqueue(run_at=world.state.log_time + HOUR)
    assert world.lease("w1", 3) == ids[:3]
    world.report(ids[0])
    world.report(ids[1], Outcome.CANCELLED)
    # then the counts are those of the jobs
    totals = world.state.totals()
    assert totals == {
        State.SCHEDULED: 1,
        State.QUEUED: 3,
        State.RUNNING: 1,
        State.SUCCEEDED: 1,
        State.FAILED: 0,
        State.CANCELLED: 1,
    }
    assert sum(totals.values()) == len(world.state.jobs)
    world.check()


def test_attempt_numbers_are_never_reused() -> None:
    # given a job that was given back, retried and revived
    world = World()
    [job] = world.enqueue(max_attempts=1)
    seen = []
    for outcome in (Outcome.RELEASED, Outcome.RAISED):
        world.lease()
        seen.append(world.job(job).attempt)
        world.report(job, outcome)
    world.do(Retry([job]))
    world.lease()
    seen.append(world.job(job).attempt)
    # then each lease had a number of its own
    assert seen == [1, 2, 3]
    assert (world.job(job).failures, world.job(job).crashes) == (0, 0)
    world.check()


def test_history_is_bounded_and_keeps_the_first_attempt() -> None:
    # given a job that was run 30 times
    world = World()
    [job] = world.enqueue()
    for _ in range(30):
        world.lease()
        world.report(job, Outcome.RELEASED)
    # then the first and the latest are kept, and the number of the others
    details = world.job(job).details
    assert details is not None
    numbers = [attempt.number for attempt in details.history]
    assert numbers == [1, *range(12, 31)]
    assert len(numbers) == queue_state.HISTORY_MAX
    assert details.history_dropped == 10
    world.check()


def test_a_lease_that_never_started_leaves_no_history() -> None:
    world = World()
    [job] = world.enqueue()
    world.lease()
    world.lose("w1")
    details = world.job(job).details
    assert details is not None and details.history == []
    world.check()


def test_payload_packs_are_freed_when_the_last_job_goes() -> None:
    # given two jobs whose payloads share an object
    world = World()
    first, second = world.enqueue(2, payload=BlobRef("payloads/a", 0, 5))
    world.run(first)
    world.after(49 * HOUR)
    # when the first retires, the object is still needed
    assert world.retire() == []
    assert world.state.packs == {"payloads/a": 1}
    world.check()
    # when the second has gone too, it is not
    world.run(second)
    world.after(49 * HOUR)
    assert world.retire() == ["payloads/a"]
    assert world.state.packs == {}
    world.check()


def test_two_jobs_that_retire_together_free_their_pack_once() -> None:
    world = World()
    for job in world.enqueue(2, payload=BlobRef("payloads/a", 0, 5)):
        world.run(job)
    world.after(49 * HOUR)
    assert world.retire() == ["payloads/a"]
    world.check()


def test_options_that_no_job_uses_are_not_kept() -> None:
    # given a batch with options that none of its jobs names, one of them twice in the list
    world = World()
    used, unused = JobOptions("used"), JobOptions("unused")
    world.do(Enqueue([unused, used, used], [NewJob(job_id(1), 2, b"x")]))
    # then only those in use are held
    assert list(world.state.options) == [used]
    world.check()
    # and a batch of delayed jobs holds its own once
    world.do(Enqueue([unused], [NewJob(job_id(2), 0, b"x", world.state.log_time + HOUR)]))
    assert {each.task: use.jobs for each, use in world.state.options.items()} == {"used": 1, "unused": 1}
    world.check()


def test_what_is_cancelled_while_no_worker_comes_leaves_the_lanes_and_the_heap() -> None:
    # given jobs that are cancelled and retired again and again, and never a lease
    world = World(retained_jobs_max=0)
    for _ in range(5):
        ids = world.enqueue(10) + world.enqueue(10, run_at=world.state.log_time + 1000 * HOUR)
        world.do(Cancel(ids))
        world.retire()
    # then nothing of them is left
    lane = world.state.lanes["default", "default"]
    assert not any(line.fresh or line.returned for line in lane.lines.values())
    assert world.state.due == []
    assert world.state.jobs == {} and world.state.options == {}
    world.check()


def test_retired_jobs_do_not_linger_for_ever() -> None:
    # given a service that runs and forgets, beside a few jobs that stay
    world = World(retained_jobs_max=0)
    stay = world.enqueue(3, queue="paused", task=HASH_TASK)
    world.do(PatchQueue("paused", True))
    for _ in range(50):
        for job in world.enqueue(4, task=HASH_TASK):
            world.run(job)
        world.retire()
    # then what it holds is in proportion to what it has
    assert len(world.state.order) <= 2 * len(world.state.jobs) + 4
    assert len(world.state.unpulled) <= len(world.state.order) and len(world.state.feed) == 0
    assert list(world.state.jobs) == stay
    world.check()


def test_the_front_of_a_long_feed_is_cut_off_while_its_end_is_kept() -> None:
    # given 1,500 finished jobs of which the last ones stay
    world = World(retained_jobs_max=10)
    ids = world.enqueue(1500)
    world.lease("w1", 1500)
    world.settle([world.finished(job, Outcome.SUCCEEDED) for job in ids])
    world.retire()
    # then places still mean the same jobs
    assert world.state.feed.first == 1491 and world.state.feed.next_place == 1501
    assert [job.id for job in world.state.feed] == ids[-10:]
    queue_snapshot.check_invariants(world.state)


def test_the_newest_retired_ids_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    # given room for two ids
    monkeypatch.setattr(queue_state, "RETIRED_REMEMBERED_MAX", 2)
    world = World(retained_jobs_max=0)
    ids = world.enqueue(3)
    for job in ids:
        world.run(job)
    world.retire()
    # then the oldest of three is forgotten
    assert list(world.state.retired) == ids[1:]
    world.check()


def test_a_stale_entry_of_a_revived_job_does_not_hide_those_behind_it() -> None:
    # given a failed job with a retention of its own that was revived, and waits
    world = World()
    [revived] = world.enqueue(max_attempts=1, retention_seconds=10.0)
    world.run(revived, Outcome.RAISED)
    [other] = world.enqueue(retention_seconds=20.0, priority=1)
    world.run(other)
    world.do(Retry([revived]))
    # then its place in the heap of retentions is gone, and the other one retires in time
    assert world.state.retention.held() == {20.0: 1}
    world.after(21.0).retire()
    assert list(world.state.jobs) == [revived]
    assert world.state.retention.held() == {} and len(world.state.retention) <= 2
    world.check()


def test_unpulled_is_the_order_of_completion() -> None:
    # given hash jobs that finish in another order than they came
    world = World()
    first, second, third = world.enqueue(3, task=HASH_TASK)
    world.lease("w1", 3)
    for job in (second, third, first):
        world.report(job)
    # then the latest completion is pulled first, once
    assert [each.id for each in world.do(Pull(HASH_TASK, 2)).jobs] == [first, third]
    world.check()
    assert [each.id for each in world.do(Pull(HASH_TASK, 2)).jobs] == [second]
    assert world.do(Pull(HASH_TASK, 2)).jobs == []
    world.check()


def test_keys_that_a_replica_made_go_before_those_of_callers() -> None:
    # given a caller's key that lives for a day, and after it many automatic ones
    world = World()
    world.do(Enqueue([JobOptions("t")], [NewJob(job_id(1), 0, b"x")], "mine", b"f"))
    for number in range(10):
        world.after(60.0)
        world.do(Pull(HASH_TASK, 1, f"~{number}", b"f"))
    # then the automatic ones did not wait for the caller's to expire
    assert list(world.state.automatic_keys) == ["~5", "~6", "~7", "~8", "~9"]
    assert list(world.state.keys) == ["mine"]
    world.check()


def test_a_retired_job_cannot_be_enqueued_under_its_id() -> None:
    world = World(retained_jobs_max=0)
    [job] = world.enqueue()
    world.run(job)
    world.retire()
    answer = world.do(Enqueue([JobOptions("t")], [NewJob(job, 0, b"x")]))
    assert answer == Accepted([job], created=True)  # it was taken, and it has run
    assert world.state.jobs == {}
    mixed = world.do(Enqueue([JobOptions("t")], [NewJob(job, 0, b"x"), NewJob(job_id(9), 0, b"x")]))
    assert isinstance(mixed, Refusal)
    assert world.state.jobs == {}
    world.check()
