"""What commands, reports and time would change, and what their callers are told."""

from __future__ import annotations

import gc
import time
import tracemalloc
from random import Random

import pytest
import uuid_utils

from jobsvc import decisions, queue_snapshot, remembered_keys
from jobsvc.commands import Accepted, Cancel, Changed, Enqueue, PatchQueue, Pull, Pulled, QueuePatched, Retry
from jobsvc.decisions import backoff_seconds
from jobsvc.errors import Refusal
from jobsvc.jobs import HASH_TASK, Finished, JobOptions, NewJob, Outcome, State, encode

from .queue_world import HOUR, World, job_id, restored


def code(answer: object) -> str:
    assert isinstance(answer, Refusal), answer
    return answer.code


def enqueue_of(*numbers: int, key: str | None = None, fingerprint: bytes = b"f") -> Enqueue:
    return Enqueue([JobOptions("t")], [NewJob(job_id(n), 0, b"x") for n in numbers], key, fingerprint)


# --- delays and retries ---------------------------------------------------------------------------


def test_a_delayed_job_waits_for_its_time() -> None:
    # given a job for later
    world = World()
    [job] = world.enqueue(run_at=world.state.log_time + 10.0)
    # then nobody gets it before
    assert world.lease() == [] and world.after(9.9).promote() == []
    # and when its time has come, it is next by its acceptance
    world.enqueue()
    assert world.after(0.1).promote() == [job]
    assert world.lease() == [job]
    world.check()


def test_a_time_that_has_passed_is_now() -> None:
    world = World()
    [job] = world.enqueue(run_at=world.state.log_time)
    assert world.is_in(job) is State.QUEUED


def test_due_jobs_are_promoted_in_bounded_slices() -> None:
    world = World()
    ids = world.enqueue(5, run_at=world.state.log_time + 1.0)
    world.after(2.0)
    event = decisions.promote_due(world.state, count_max=3)
    assert event is not None and event.ids == ids[:3]
    world.record([event])
    assert world.promote() == ids[3:]
    assert decisions.next_due(world.state) is None
    world.check()


@pytest.mark.parametrize("failures", [1, 2, 3, 10, 1000])
def test_backoff_is_full_jitter(failures: int) -> None:
    # given many jobs at the same failure
    ceiling = min(300.0, 2.0 ** min(failures - 1, 60))
    delays = [backoff_seconds(job_id(n), failures, failures, 1.0, 300.0) for n in range(2000)]
    # then their delays are spread evenly over [0, ceiling)
    assert all(0 <= delay < ceiling for delay in delays)
    for tenth in range(10):
        inside = sum(tenth / 10 <= delay / ceiling < (tenth + 1) / 10 for delay in delays)
        assert 140 < inside < 260
    # and the same in every replay, but not the same in the next attempt
    again = [backoff_seconds(job_id(n), failures, failures, 1.0, 300.0) for n in range(2000)]
    assert again == delays
    assert backoff_seconds(job_id(1), 7, failures, 1.0, 300.0) != delays[1]


def test_a_job_that_raises_is_retried_after_its_backoff_and_at_most_max_attempts_times() -> None:
    world = World()
    [job] = world.enqueue(max_attempts=3)
    for failures in (1, 2):
        world.run(job, Outcome.RAISED)
        assert world.is_in(job) is State.SCHEDULED and world.job(job).failures == failures
        details = world.job(job).details
        assert details is not None and details.run_at is not None
        assert 0 <= details.run_at - world.state.log_time < 2.0 ** (failures - 1)
        world.check()
        world.after(5.0).promote()
    world.run(job, Outcome.RAISED)
    assert world.is_in(job) is State.FAILED and world.job(job).failures == 3
    world.check()


def test_without_backoff_a_retry_is_at_once() -> None:
    world = World()
    [job] = world.enqueue(backoff_base_seconds=0.0)
    world.run(job, Outcome.RAISED)
    assert world.is_in(job) is State.QUEUED


# outcome -> (spent of max_attempts, spent of max_crashes, where a job with plenty to spend goes)
CHARGES = {
    Outcome.SUCCEEDED: (0, 0, State.SUCCEEDED),
    Outcome.RAISED: (1, 0, State.SCHEDULED),
    Outcome.TIMED_OUT: (1, 0, State.SCHEDULED),
    Outcome.CRASHED: (1, 1, State.SCHEDULED),
    Outcome.LOST: (1, 1, State.QUEUED),
    Outcome.CANCELLED: (0, 0, State.CANCELLED),
    Outcome.RELEASED: (0, 0, State.QUEUED),
}


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_each_outcome_spends(outcome: Outcome) -> None:
    world = World()
    [job] = world.enqueue(max_attempts=9, max_crashes=9)
    world.run(job, outcome)
    assert (world.job(job).failures, world.job(job).crashes, world.is_in(job)) == CHARGES[outcome]
    world.check()


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.LOST])
def test_crashes_end_a_job_before_its_attempts_are_spent(outcome: Outcome) -> None:
    world = World()
    [job] = world.enqueue(max_attempts=10, max_crashes=2)
    for _ in range(2):
        world.run(job, outcome)
        world.after(HOUR).promote()
    assert world.is_in(job) is State.FAILED and world.job(job).failures == 2
    # and an exception after a crash does not count as one
    [other] = world.enqueue(max_attempts=10, max_crashes=2)
    world.run(other, outcome)
    world.after(HOUR).promote()
    world.run(other, Outcome.RAISED)
    assert world.is_in(other) is State.SCHEDULED
    world.check()


def test_an_end_that_is_final_leaves_attempts_unspent_and_gets_no_other() -> None:
    world = World()
    [job] = world.enqueue(max_attempts=9)
    # when an attempt ends in a way that no other run would change
    world.lease("w1")
    world.settle([final(world.finished(job, Outcome.RAISED))])
    # then that was the only one, and the job may be put back by hand
    assert world.is_in(job) is State.FAILED and world.job(job).failures == 1
    world.check()
    assert world.do(Retry([job])) == Changed([State.QUEUED])
    # and who asked for its end gets that
    world.lease("w1")
    world.do(Cancel([job]))
    world.settle([final(world.finished(job, Outcome.RAISED))])
    assert world.is_in(job) is State.CANCELLED
    # and a result is a result
    [other] = world.enqueue()
    world.lease("w1")
    world.settle([final(world.finished(other, Outcome.SUCCEEDED))])
    assert world.is_in(other) is State.SUCCEEDED
    world.check()


def final(finished: Finished) -> Finished:
    finished.final = True
    return finished


# --- reports --------------------------------------------------------------------------------------


def test_a_completion_counts_once_and_only_from_the_lease_that_holds() -> None:
    world = World()
    [job] = world.enqueue()
    world.lease("w1")
    late = world.finished(job, Outcome.SUCCEEDED)
    # when another worker, another attempt, or an unknown job is reported, it is stale
    assert world.settle([late], "w2") == [(job, 1)]
    assert world.settle([Finished(job, 2, Outcome.SUCCEEDED, 1.0, 2.0)]) == [(job, 2)]
    assert world.settle([Finished(job, 0, Outcome.SUCCEEDED, 1.0, 2.0)]) == [(job, 0)]
    assert world.settle([Finished(job_id(99), 1, Outcome.SUCCEEDED, 1.0, 2.0)]) == [(job_id(99), 1)]
    # when the lease has gone to another worker, the first one's report is stale
    world.lose("w1", running=job)
    world.lease("w2")
    assert world.settle([late], "w1") == [(job, 1)]
    # when the same worker holds a later attempt, the report of the earlier one is stale
    assert world.settle([late], "w2") == [(job, 1)]
    assert world.is_in(job) is State.RUNNING
    # and the right one counts once, also when it comes twice in one report
    right = world.finished(job, Outcome.SUCCEEDED)
    assert world.settle([right, right], "w2") == [(job, 2)]
    assert world.settle([right], "w2") == [(job, 2)]
    assert len(world.state.feed) == 1
    world.check()


def test_a_lost_worker_gives_back_all_and_only_the_running_job_is_charged() -> None:
    world = World()
    ids = world.enqueue(3)
    world.lease("w1", 3)
    world.lose("w1", running=ids[0])
    assert [world.job(each).failures for each in ids] == [1, 0, 0]
    assert [world.job(each).crashes for each in ids] == [1, 0, 0]
    assert world.lease("w2", 3) == ids  # at once, in the old order
    world.check()


def test_a_lost_worker_whose_running_job_is_of_an_old_lease_is_charged_for_nothing() -> None:
    world = World()
    [job] = world.enqueue()
    world.lease("w1")
    world.record(decisions.lose_worker(world.state, "w1", (job, 7)))
    assert world.job(job).failures == 0 and world.is_in(job) is State.QUEUED


def test_a_job_whose_worker_was_lost_says_so() -> None:
    world = World()
    [job] = world.enqueue()
    world.lease("w1")
    world.lose("w1", running=job)
    details = world.job(job).details
    assert details is not None
    error = details.history[-1].error
    assert error is not None and (error.type, "w1" in error.message) == ("WorkerLost", True)


def test_losing_a_worker_without_leases_changes_nothing() -> None:
    assert decisions.lose_worker(World().state, "nobody", None) == []


# --- cancel, retry, pause -------------------------------------------------------------------------


def test_cancel_is_at_once_for_what_does_not_run() -> None:
    world = World()
    [queued] = world.enqueue()
    [scheduled] = world.enqueue(run_at=world.state.log_time + 5.0)
    answer = world.do(Cancel([queued, scheduled, queued]))
    assert answer == Changed([State.CANCELLED] * 3)
    assert world.lease() == [] and world.after(6.0).promote() == []
    assert [job.id for job in world.state.feed] == [queued, scheduled]
    world.check()


def test_cancel_of_a_running_job_is_requested_until_its_worker_confirms() -> None:
    world = World()
    [job] = world.enqueue()
    world.lease()
    assert world.do(Cancel([job])) == Changed([State.RUNNING])
    lease = world.state.lease_of(world.job(job))
    assert lease is not None and lease.cancel_requested
    world.check()
    # asked again, it changes nothing
    length = len(world.log)
    assert world.do(Cancel([job])) == Changed([State.RUNNING]) and len(world.log) == length
    # and when the worker confirms, it is cancelled
    world.report(job, Outcome.CANCELLED)
    assert world.is_in(job) is State.CANCELLED
    world.check()


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.SUCCEEDED])
def test_a_job_that_was_to_be_cancelled_never_runs_again(outcome: Outcome) -> None:
    world = World()
    [job] = world.enqueue()
    world.lease()
    world.do(Cancel([job]))
    world.report(job, outcome)
    assert world.is_in(job) is State.CANCELLED
    world.check()


def test_a_result_that_came_before_the_kill_counts() -> None:
    world = World()
    [job] = world.enqueue()
    world.lease()
    world.do(Cancel([job]))
    world.report(job)
    assert world.is_in(job) is State.SUCCEEDED


@pytest.mark.parametrize("was_running", [True, False])
def test_a_worker_that_dies_while_a_cancel_is_requested_confirms_it(was_running: bool) -> None:
    world = World()
    [job] = world.enqueue()
    world.lease()
    world.do(Cancel([job]))
    world.lose("w1", job if was_running else None)
    assert world.is_in(job) is State.CANCELLED and world.state.leases == {}
    world.check()


def test_cancel_and_retry_say_why_not() -> None:
    world = World(retained_jobs_max=1)
    gone, done, waiting = world.enqueue(3)
    world.run(gone)
    world.run(done)
    world.retire()
    answer = world.do(Cancel([gone, done, job_id(77)]))
    assert [code(item) for item in answer.items] == ["expired_job", "wrong_state", "unknown_job"]
    answer = world.do(Retry([gone, done, waiting, job_id(77)]))
    assert [code(item) for item in answer.items] == [
        "expired_job",
        "wrong_state",
        "wrong_state",
        "unknown_job",
    ]
    world.check()


def test_a_dead_job_is_put_back_unspent() -> None:
    world = World()
    [failed] = world.enqueue(max_attempts=1, max_crashes=1)
    world.run(failed, Outcome.CRASHED)
    [cancelled] = world.enqueue()
    world.do(Cancel([cancelled]))
    assert world.do(Retry([cancelled, failed, failed])) == Changed([State.QUEUED] * 3)
    assert (world.job(failed).failures, world.job(failed).crashes) == (0, 0)
    assert world.lease("w1", 5) == [failed, cancelled]  # oldest first, once
    world.check()


def test_a_job_that_is_cancelled_and_revived_in_its_lane_is_leased_once() -> None:
    world = World()
    ids = world.enqueue(3)
    for _ in range(3):
        world.do(Cancel([ids[1]]))
        world.do(Retry([ids[1]]))
    assert world.lease("w1", 2) == ids[:2]
    assert world.lease("w1", 9) == ids[2:]
    world.check()


def test_a_paused_queue_gives_nothing_out_and_takes_everything_in() -> None:
    world = World()
    [before] = world.enqueue(queue="q")
    assert world.do(PatchQueue("q", True)) == QueuePatched("q", True)
    world.enqueue(queue="q")
    [other] = world.enqueue(queue="other")
    assert world.lease("w1", 9) == [other]
    length = len(world.log)
    world.do(PatchQueue("q", True))
    assert len(world.log) == length  # nothing new
    world.check()
    world.do(PatchQueue("q", False))
    assert world.lease("w1", 1) == [before]
    # a queue may be paused before it has a job
    world.do(PatchQueue("later", True))
    world.enqueue(queue="later")
    world.check()
    assert [world.job(each).options.queue for each in world.lease("w2", 9)] == ["q"]


# --- enqueue, keys, bounds ------------------------------------------------------------------------


def test_an_enqueue_is_idempotent_by_its_ids() -> None:
    world = World()
    command = enqueue_of(1, 2)
    assert world.do(command) == world.do(command) == Accepted([job_id(1), job_id(2)], True)
    assert len(world.state.jobs) == 2
    world.check()


@pytest.mark.parametrize(
    "command",
    [
        enqueue_of(),
        enqueue_of(5, 5),
        enqueue_of(1, 5),
        Enqueue([], [NewJob(job_id(5), 0, b"x")]),
        Enqueue([JobOptions("t")], [NewJob(job_id(5), 0, b"x"), NewJob(job_id(6), 1, b"x")]),
        Enqueue([JobOptions("t")], [NewJob(job_id(5), -1, b"x")]),
    ],
    ids=["empty", "twice the same", "half known", "no options", "no such option", "negative option"],
)
def test_a_batch_is_taken_whole_or_not_at_all(command: Enqueue) -> None:
    world = World()
    world.do(enqueue_of(1))
    length = len(world.log)
    assert code(world.do(command)) == "invalid"
    assert len(world.log) == length and list(world.state.jobs) == [job_id(1)]
    world.check()


def test_max_jobs_is_a_wall_for_the_whole_batch() -> None:
    world = World(max_jobs=3)
    world.do(enqueue_of(1, 2))
    refusal = world.do(enqueue_of(3, 4, key="k"))
    assert code(refusal) == "too_many_jobs" and refusal.retry_after_seconds is not None
    assert len(world.state.jobs) == 2 and not len(world.state.keys)  # a refusal is not remembered
    # what was taken before is still answered, and room is used to the last place
    assert isinstance(world.do(enqueue_of(1, 2)), Accepted)
    assert isinstance(world.do(enqueue_of(3)), Accepted)
    world.check()


def test_the_number_of_queues_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "QUEUES_MAX", 1)
    world = World()
    world.enqueue(queue="only")
    options = [JobOptions("t", queue="only"), JobOptions("t", queue="more")]
    assert code(world.do(Enqueue(options, [NewJob(job_id(9), 0, b"x")]))) == "invalid"
    assert code(world.do(PatchQueue("more", True))) == "invalid"
    world.enqueue(queue="only")
    world.check()


def test_the_same_key_and_request_get_the_same_jobs() -> None:
    # given a request under a key
    world = World()
    assert world.do(enqueue_of(1, 2, key="k")) == Accepted([job_id(1), job_id(2)], True)
    # when the same command comes again (its sender never got the answer), it is told what it was told
    assert world.do(enqueue_of(1, 2, key="k")) == Accepted([job_id(1), job_id(2)], True)
    # when the caller sends the request again (the edge gives it new ids), it finds the first jobs
    assert world.do(enqueue_of(3, 4, key="k")) == Accepted([job_id(1), job_id(2)], False)
    # when another request comes under the key, it is refused
    assert code(world.do(enqueue_of(5, key="k", fingerprint=b"other"))) == "key_reused"
    assert code(world.do(Cancel([job_id(1)], "k", b"cancel"))) == "key_reused"
    assert len(world.state.jobs) == 2
    world.check()


def test_a_key_expires_by_log_time() -> None:
    world = World(idempotency_seconds=100.0)
    world.do(enqueue_of(1, key="k"))
    assert world.after(99.9).do(enqueue_of(2, key="k")) == Accepted([job_id(1)], False)
    assert world.after(0.1).do(enqueue_of(2, key="k", fingerprint=b"other")) == Accepted([job_id(2)], True)
    kept = world.state.keys.get("k")
    assert kept is not None and kept.expires_at == world.state.log_time + 100.0
    world.check()


def test_an_automatic_key_lives_for_minutes() -> None:
    world = World()
    [job] = world.enqueue()
    world.do(Cancel([job], "~k", b"f"))
    world.do(Retry([job]))
    # within minutes it is the same command: the job stays revived
    assert world.after(299.0).do(Cancel([job], "~k", b"f")) == Changed([State.CANCELLED])
    assert world.is_in(job) is State.QUEUED
    # later it is a new one
    world.after(1.0).do(Cancel([job], "~k", b"f"))
    assert world.is_in(job) is State.CANCELLED
    world.check()


def test_of_a_full_table_of_keys_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_keys, "KEYS_MAX", 2)
    world = World(idempotency_seconds=100.0)
    for number, key in ((1, "a"), (2, "b"), (3, "c")):
        assert isinstance(world.do(enqueue_of(number, key=key)), Accepted)
    assert list(world.state.keys) == ["b", "c"]
    assert world.do(enqueue_of(2, key="b")) == Accepted([job_id(2)], True)  # known ones are answered
    assert isinstance(world.do(PatchQueue("q", True, "another")), QueuePatched)
    world.after(100.0)
    assert isinstance(world.do(enqueue_of(4, key="d")), Accepted)
    assert list(world.state.keys) == ["d"]
    world.check()


def test_keys_are_bounded_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_keys, "KEYS_BYTES_MAX", 10_000)
    world = World()
    for number in range(20):
        batch = [1_000 * number + each for each in range(100)]
        world.do(enqueue_of(*batch, key=f"batch {number}"))
        assert world.state.keys.bytes <= 10_000
    assert 1 < len(world.state.keys) < 6 and "batch 19" in world.state.keys
    world.check()


@pytest.mark.parametrize("length", [0, 1, 1_023, 1_024, 1_025, 1_041, 40_000])
def test_an_answer_is_told_as_it_was_however_it_is_kept(length: int) -> None:
    # given answers of any length, of which the long ones are compressed
    answer = Random(length).randbytes(length)
    record = remembered_keys.KeyRecord(b"print", answer, 1e9)
    keys, again = remembered_keys.RememberedKeys(), remembered_keys.RememberedKeys()
    keys.remember("k", record, 0.0)
    # then they are found as they came, also from a snapshot, and count with the bytes that they have then
    assert keys.get("k") == record
    [some] = keys.slices()
    assert len([*again.restore(some)]) == 0
    assert again.get("k") == record
    assert keys.bytes == again.bytes == remembered_keys.ENTRY_BYTES + len("k") + len(b"print") + length


@pytest.mark.parametrize("automatic", [False, True])
def test_a_snapshot_of_format_1_has_its_keys_in_the_header_as_they_are_told(automatic: bool) -> None:
    # given a snapshot as version 0.1 has written it
    told = {str(n): remembered_keys.KeptKey(b"", Random(n).randbytes(n * 400), 1e9) for n in range(20)}
    both = ({}, told) if automatic else (told, {})
    header = queue_snapshot.Header(1, 0.0, 1, 1, 1, 0, [], {}, [], both[0], [], 0, both[1])
    # when it is restored, and written as it is today
    *_, state = queue_snapshot.restore(queue_snapshot._framed(encode(header)))
    # then each key is answered as it was
    for each in (state, restored(state)):
        table = each.automatic_keys if automatic else each.keys
        assert [*table] == [*told]
        assert all(table.get(key) == old.record() for key, old in told.items())
        assert table.bytes == sum(250 + len(key) + len(old.answer) for key, old in told.items())


def test_the_ids_of_large_batches_take_a_third_of_their_length() -> None:
    ids = [uuid_utils.uuid7().bytes for _ in range(2_000)]
    answer = encode(Accepted(ids, True))
    keys = remembered_keys.RememberedKeys()
    tracemalloc.start()
    try:
        for number in range(100):
            keys.remember(str(number), remembered_keys.KeyRecord(b"", answer, 1e9), 0.0)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100 * len(answer) / 3


def test_keys_go_into_a_snapshot_and_come_out_of_it_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    # given more answers than may be compressed or restored in one breath
    monkeypatch.setattr(remembered_keys, "SLICE_BYTES", 10_000)
    records = {str(n): remembered_keys.KeyRecord(b"", Random(n).randbytes(n * 40), 1e9) for n in range(100)}
    keys = remembered_keys.RememberedKeys()
    for key, record in records.items():
        keys.remember(key, record, 0.0)
    # then no slice has more than that and one answer, and together they are all, in the order of age
    slices = [*keys.slices()]
    longest = 10_000 + 100 * 40 + 300
    assert all(sum(len(each.answer) + 250 for each in some.values()) <= longest for some in slices)
    assert [key for some in slices for key in some] == [*records]
    # and a restart takes no more breaths, also where they have to be compressed first
    told = {key: remembered_keys.KeptKey(b"", each.answer, 1e9) for key, each in records.items()}
    for kept, least in ([told], len(slices) - 1), (slices, 0):
        again = remembered_keys.RememberedKeys()
        assert least <= sum(len([*again.restore(some)]) for some in kept) <= len(slices)
        assert [*again] == [*records] and all(again.get(key) == each for key, each in records.items())


def test_a_snapshot_with_many_keys_is_made_and_read_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_keys, "SLICE_BYTES", 300)
    world = World()
    for number in range(20):
        ids = range(100 * number + 1, 100 * number + 101)
        world.do(enqueue_of(*ids, key=f"{'~' if number % 2 else ''}{number}"))
    # when a snapshot is made, its maker pauses for each answer, and so does its reader
    parts = [*queue_snapshot.parts(world.state)]
    assert parts.count(b"") == 20
    states = [*queue_snapshot.restore(b"".join(parts))]
    assert len(states) > 20
    # then the same answers are told
    assert [*states[-1].keys.slices()] == [*world.state.keys.slices()]
    assert [*states[-1].automatic_keys.slices()] == [*world.state.automatic_keys.slices()]
    world.check()


def test_a_key_that_is_used_again_is_as_young_as_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered_keys, "KEYS_MAX", 2)
    world = World(idempotency_seconds=100.0)
    # given a key that has expired and is used again, after a longer lived one came
    world.do(enqueue_of(1, key="a"))
    world.limits = world.limits._replace(idempotency_seconds=1_000.0)
    world.do(enqueue_of(2, key="b"))
    world.after(100.0).do(enqueue_of(3, key="a"))
    assert list(world.state.keys) == ["b", "a"]
    # then it is not the oldest
    world.do(enqueue_of(4, key="c"))
    assert list(world.state.keys) == ["a", "c"]
    world.do(enqueue_of(5, key="d"))
    assert list(world.state.keys) == ["c", "d"]
    world.check()


def test_a_table_of_keys_that_turns_over_stays_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = remembered_keys.RememberedKeys()
    monkeypatch.setattr(remembered_keys, "KEYS_MAX", 200_000)
    for number in range(200_000):
        keys.remember(str(number), remembered_keys.KeyRecord(b"", b"", 1e9), 0.0)

    def seconds(first: int) -> float:
        began = time.process_time()  # neither the neighbours nor the collector are the table's
        for number in range(first, first + 20_000):
            keys.remember(str(number), remembered_keys.KeyRecord(b"", b"", 1e9), 0.0)
        return time.process_time() - began

    gc.disable()
    try:
        times = [seconds(200_000 + 20_000 * turn) for turn in range(20)]
    finally:
        gc.enable()
    assert len(keys) == 200_000
    assert max(times) < 10 * min(times)


# --- pull -----------------------------------------------------------------------------------------


def test_pull_hands_out_each_hash_once_newest_first() -> None:
    world = World()
    ids = world.enqueue(4, task=HASH_TASK)
    [other] = world.enqueue()
    for job in [*ids, other]:
        world.run(job, Outcome.CANCELLED if job == ids[0] else Outcome.SUCCEEDED)
    pulled = world.do(Pull(HASH_TASK, 2, "k", b"f"))
    assert [each.id for each in pulled.jobs] == [ids[3], ids[2]]
    # the same key, the same answer; what finished meanwhile is for the next pull
    [late] = world.enqueue(task=HASH_TASK)
    world.run(late)
    assert world.do(Pull(HASH_TASK, 2, "k", b"f")) == pulled
    assert [each.id for each in world.do(Pull(HASH_TASK, 9)).jobs] == [late, ids[1]]
    assert world.do(Pull(HASH_TASK, 9)) == Pulled([])
    world.check()


# --- retention ------------------------------------------------------------------------------------


def test_only_what_is_terminal_retires_oldest_first() -> None:
    world = World(retention_seconds=100.0)
    queued, running, done = world.enqueue(3)
    world.do(Cancel([done]))
    world.do(PatchQueue("default", True))
    world.enqueue(run_at=world.state.log_time + 1_000_000.0, queue="q")
    world.do(PatchQueue("default", False))
    assert world.lease() == [queued]
    world.after(99.9).retire()
    assert done in world.state.jobs
    world.after(0.1).retire()
    assert done not in world.state.jobs and {queued, running} < set(world.state.jobs)
    world.after(10 * HOUR).retire()
    assert len(world.state.jobs) == 3
    world.check()


def test_beyond_the_number_the_oldest_finished_go_first() -> None:
    world = World(retained_jobs_max=2)
    ids = world.enqueue(5)
    for job in ids:
        world.run(job)
    world.retire()
    assert list(world.state.jobs) == ids[3:]
    world.check()


def test_a_retention_of_its_own_may_be_shorter_or_longer() -> None:
    world = World(retention_seconds=100.0)
    [long], [short], [plain] = (world.enqueue(retention_seconds=each) for each in (1000.0, 10.0, None))
    for job in (long, short, plain):
        world.run(job)
    world.check()
    world.after(10.0).retire()
    assert list(world.state.jobs) == [long, plain]
    world.after(90.0).retire()
    assert list(world.state.jobs) == [long]
    world.check()
    world.after(900.0).retire()
    assert world.state.jobs == {}
    world.check()


def test_a_revived_job_counts_its_retention_from_its_new_end() -> None:
    world = World(retention_seconds=100.0)
    for own in (None, 100.0):
        [job] = world.enqueue(max_attempts=1, retention_seconds=own)
        world.run(job, Outcome.RAISED)
        world.after(90.0)
        world.do(Retry([job]))
        world.run(job)
        world.after(20.0).retire()
        assert world.is_in(job) is State.SUCCEEDED
        world.check()
        world.after(80.0).retire()
        assert world.state.jobs == {}
    world.check()


def test_a_revived_job_is_not_retired_by_its_earlier_end() -> None:
    # given a job that waits again, whose earlier end is still somewhere in the heap of retentions
    world = World()
    [first] = world.enqueue(retention_seconds=10.0)
    world.run(first)
    [revived] = world.enqueue(max_attempts=1, retention_seconds=20.0)
    world.run(revived, Outcome.RAISED)
    world.do(Retry([revived]))
    assert world.state.retention.held() == {10.0: 1}
    # when both times have passed, then only what has ended goes
    world.after(30.0).retire()
    assert list(world.state.jobs) == [revived] and world.state.retention.held() == {}
    world.check()


def test_one_round_of_retiring_is_bounded() -> None:
    world = World(retained_jobs_max=0)
    for job in world.enqueue(7):
        world.run(job)
    assert len(decisions.retire(world.state, world.limits, count_max=5)) == 5


@pytest.mark.parametrize("paused", [True, False])
def test_millions_of_live_keys_keep_nobody_out(paused: bool) -> None:
    world = World()
    record = remembered_keys.KeptKey(b"", b"", world.state.log_time + 24 * HOUR)
    for _ in world.state.keys.restore({str(number): record for number in range(remembered_keys.KEYS_MAX)}):
        pass
    assert isinstance(world.do(PatchQueue("q", paused, "new")), QueuePatched)
    assert isinstance(world.do(enqueue_of(1, key="newer")), Accepted)
    assert len(world.state.keys) == remembered_keys.KEYS_MAX
    assert "0" not in world.state.keys and "newer" in world.state.keys


def test_an_empty_queue_that_is_not_paused_is_forgotten() -> None:
    world = World(retained_jobs_max=0)
    # given queues that were used once, one of them in two pools, and one that is paused
    for number in range(50):
        for job in world.enqueue(queue=f"q{number}"):
            world.run(job)
    [gpu] = world.enqueue(queue="q0", pool="gpu")
    world.do(Cancel([gpu]))
    world.do(PatchQueue("held", True))
    assert len(world.state.counts) == 51
    # when their last jobs are retired
    world.retire()
    # then they leave nothing behind
    assert list(world.state.counts) == ["held"] and not world.state.lanes
    world.check()
    # and neither does the paused one when it is resumed, nor one that is only named
    world.do(PatchQueue("held", False))
    world.do(PatchQueue("never", False))
    assert world.state.counts == {} and world.state.paused == {}
    world.check()


def test_a_paused_queue_gives_nothing_however_it_came_to_have_jobs() -> None:
    world = World()
    world.do(PatchQueue("q", True))
    [first] = world.enqueue(queue="q")
    assert world.lease() == []
    world.do(PatchQueue("q", False))
    assert world.lease() == [first]
    world.do(PatchQueue("q", True))
    world.report(first, Outcome.RELEASED)
    [second] = world.enqueue(queue="q")
    world.check()
    assert world.lease() == []
    world.do(PatchQueue("q", False))
    world.check()
    assert world.lease("w1", 9) == [first, second]
    world.check()


def test_queues_whose_jobs_have_ended_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "QUEUES_MAX", 2)
    world = World()
    [ended] = world.enqueue(queue="ended")
    world.run(ended)
    world.enqueue(queue="live")
    refusal = world.do(Enqueue([JobOptions("t", queue="more")], [NewJob(job_id(9), 0, b"x")]))
    assert code(refusal) == "too_many_jobs" and refusal.retry_after_seconds == 1.0
    world.check()


def test_what_is_asked_for_each_job_looks_at_no_other_queue() -> None:
    # given thousands of queues: paused ones with jobs, and some whose jobs wait for their time or have ended
    world = World()
    for number in range(3_000):
        queue = f"q{number}"
        match number % 3:
            case 0:
                world.do(PatchQueue(queue, True))
                world.enqueue(queue=queue)
            case 1:
                world.enqueue(queue=queue, run_at=world.state.log_time + HOUR)
            case 2:
                world.run(*world.enqueue(queue=queue))
    # then a worker's question looks at one lane
    [job] = world.enqueue(queue="mine")
    assert [lane.queue for lane in world.state.ready_lanes("default")] == ["mine"]
    assert world.lease() == [job]
    assert world.state.ready_lanes("default") == []
    queue_snapshot.check_invariants(world.state)
