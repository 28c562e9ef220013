"""The queue's state machine: what exists, how it changes, and nothing else.

Rules of this file
------------------
1. All state of jobs lives in `QueueState`, and all change to it in `apply`. The live leader, the standby
   and recovery run the same `apply` over the same events, so they cannot come to different states.
2. `apply(state, event, log_time)` is a pure function of its arguments: no clock, no randomness, no I/O,
   no iteration over sets. It does not refuse: `decisions.decide` has already checked.
3. How a job moves is data: `TRANSITIONS`. A missing pair is a defect and raises `IllegalTransition`
   before anything of that job has changed.

States and the collection in which a job of that state is found (every job is in `jobs` and `order`;
`segments` says how those that came together and wait are kept without an object for each)

    scheduled   `due`, a heap by run_at           waits for its time: a delay, or a backoff
    queued      its lane (`ready_lanes`)          waits for a worker
    running     `leases[worker]`                  one worker has the right to one attempt
    succeeded   `feed`                            terminal
    failed      `feed`                            terminal; may be revived by an operator
    cancelled   `feed`                            terminal; may be revived by an operator

Why one result per job (P3): an attempt ends only by an event that names a running job, the worker that
holds its lease and the attempt number of that lease. Attempt numbers grow by one with every lease and
are never reused, so a report of any earlier lease names a pair that will never match again.

Why nothing is lost (P1, P2): a job enters by `JobsEnqueued` and leaves only by `JobsRetired`, which
touches terminal jobs alone. Between the two every event moves it along an arrow of the table, and
every state that is not terminal has a way forward that does not depend on any one process: scheduled by
time, queued by any worker, running by its worker or by the leader that declares the worker lost.

The feed (`completion_feed`) has the finished jobs in the order of finishing; a place in it never changes its
job. A revived job's old place reads as empty, and it gets a new one when it finishes again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from .acceptance_order import AcceptanceOrder
from .commands import AUTOMATIC_KEY_PREFIX
from .completion_feed import CompletionFeed
from .events import (
    AttemptsEnded,
    Change,
    EpochBegan,
    Event,
    JobsCancelled,
    JobsEnqueued,
    JobsLeased,
    JobsPromoted,
    JobsPulled,
    JobsRetired,
    JobsRevived,
    KeyRemembered,
    QueuePaused,
)
from .failure_groups import FailureGroups
from .finished_groups import FinishedGroup
from .interned_options import InternedOptions
from .jobs import (
    HASH_TASK,
    TERMINAL,
    AttemptRecord,
    BlobRef,
    Details,
    Finished,
    Job,
    JobOptions,
    Lease,
    NewJob,
    Outcome,
    State,
)
from .pack_references import PackReferences
from .queue_counts import QueueCounts
from .ready_lanes import Lane, Lanes
from .recently_finished import End, RecentlyFinished, are_few, ended_together, options_if_plain
from .remembered_keys import FINGERPRINT_BYTES, KeyRecord, RememberedKeys
from .retention_lines import RetentionLines
from .segments import JobTable, neighbours
from .timed_jobs import drop_dead_due
from .transitions import TRANSITIONS, IllegalTransition
from .unpulled_jobs import UnpulledJobs, awaits_pull

RETIRED_REMEMBERED_MAX = 100_000  # ids that still answer "expired" instead of "never existed"
JUMP_SECONDS_MIN = 60.0  # less is a restart
GREAT_JUMP_SECONDS = 86_400.0
AGES_REST_SECONDS = 3_600.0
HISTORY_MAX = 20  # attempts kept in detail for one job; the first is kept, the oldest others go
_CHARGED = frozenset({Outcome.RAISED, Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.LOST})
_CRASHES = frozenset({Outcome.CRASHED, Outcome.LOST})


class QueueState:
    """Everything the service knows about jobs. Changed by `apply` alone."""

    def __init__(self) -> None:
        self.log_time = 0.0
        self.jumped_at = self.jump_seconds = 0.0  # when log time last did, and by how much
        self.ages_count_from = 0.0  # log time until which nothing is retired because of its age
        self.epoch = 0
        self.next_seq = 1
        self.jobs = JobTable()
        self.order = AcceptanceOrder(self.jobs)
        self.options = InternedOptions()
        self.paused: dict[str, bool] = {}  # those that are
        self.lanes = Lanes(self.jobs, self.paused)
        self.due: list[tuple[float, int, Job]] = []
        self.leases: dict[str, dict[bytes, Job]] = {}
        self.counts = QueueCounts()
        self.feed = CompletionFeed()
        self.failures = FailureGroups()
        self.retention = RetentionLines(self.feed)
        self.unpulled = UnpulledJobs()
        self.keys = RememberedKeys()
        self.automatic_keys = RememberedKeys()  # apart: they expire long before the others
        self.recent = RecentlyFinished(
            self.options, self.jobs, self.order, self.feed, self.counts, self.retention
        )
        self.packs = PackReferences()
        self.retired: dict[bytes, None] = {}
        self.retired_order: deque[bytes] = deque()

    # --- reading ---

    def total(self, state: State) -> int:
        return self.counts.totals[state]

    def totals(self) -> dict[State, int]:
        return dict(self.counts.totals)

    def ready_lanes(self, pool: str) -> list[Lane]:
        """The lanes from which a worker of this pool may be served now."""
        return self.lanes.ready(pool)

    def keys_like(self, key: str) -> RememberedKeys:
        """The table in which this idempotency key is remembered."""
        return self.automatic_keys if key.startswith(AUTOMATIC_KEY_PREFIX) else self.keys

    def lease_of(self, job: Job) -> Lease | None:
        return job.details.lease if job.details is not None else None


def apply(state: QueueState, event: Event, log_time: float) -> None:
    """Change the state by one event. `log_time` is that of the record which carries the event."""
    state.log_time = log_time
    _APPLIERS[type(event)](state, event)


# --- one function for each event -------------------------------------------------------------------


def _epoch_began(state: QueueState, event: EpochBegan) -> None:
    state.epoch = event.epoch
    if event.jump_seconds >= JUMP_SECONDS_MIN:
        state.jumped_at, state.jump_seconds = state.log_time, event.jump_seconds
    if event.jump_seconds >= GREAT_JUMP_SECONDS:
        state.ages_count_from = state.log_time + AGES_REST_SECONDS


def _jobs_enqueued(state: QueueState, event: JobsEnqueued) -> None:
    interned = [state.options.intern(options) for options in event.options]
    options = [each.options for each in interned]
    lanes = [state.lanes[each.queue, each.pool] for each in options]
    for chosen in options:
        state.counts.know(chosen.queue)
    uses = [0] * len(options)
    for group in neighbours(event.jobs, _option_of):
        option = group[0].option
        segment = state.jobs.freeze_new(group, options[option], state.next_seq, state.log_time)
        if segment is None:
            _add_each(state, group, options, lanes, uses)
            continue
        state.order.append(segment)
        lanes[option].add_new(segment)
        uses[option] += segment.size
        state.next_seq = segment.stop
    for each, used in zip(interned, uses, strict=True):
        state.counts.add(each.options.queue, State.QUEUED, used)
        each.jobs += used
    if not all(uses):
        state.options.forget_unused(options)
        for chosen in options:
            forget_if_unused(state, chosen.queue)


def _option_of(new: NewJob) -> int:
    return new.option


def _add_each(
    state: QueueState, group: list[NewJob], options: list[JobOptions], lanes: list[Lane], uses: list[int]
) -> None:
    now = state.log_time
    seq, jobs = state.next_seq, list[Job]()
    for new in group:
        chosen = options[new.option]
        job = Job(new.id, chosen, new.payload, seq, now)
        seq += 1
        jobs.append(job)
        uses[new.option] += 1
        if new.run_at is not None and new.run_at > now:
            job.state = State.SCHEDULED
            job.details = Details(run_at=new.run_at)
            heapq.heappush(state.due, (new.run_at, job.seq, job))
            state.counts.add(chosen.queue, State.SCHEDULED, 1)
            state.counts.add(chosen.queue, State.QUEUED, -1)  # the whole event is counted as queued
        else:
            lanes[new.option].add_new(job)
        if type(new.payload) is BlobRef:
            state.packs.add(new.payload)
    state.jobs.add(jobs)
    state.order.extend(jobs)
    state.next_seq = seq


def _jobs_promoted(state: QueueState, event: JobsPromoted) -> None:
    for job_id in event.ids:
        job = state.jobs[job_id]
        _move(state, job, Change.PROMOTE)
        lane_of(state, job.options).add_returned(job)
    drop_dead_due(state.due)


def _jobs_leased(state: QueueState, event: JobsLeased) -> None:
    held = state.leases.setdefault(event.worker, {})
    touched: dict[tuple[str, str], Lane] = {}
    for job in state.jobs.of(event.ids):
        _move(state, job, Change.LEASE)
        job.attempt += 1
        lease = Lease(event.worker, state.log_time)
        if job.details is None:
            job.details = Details(lease=lease)
        else:
            job.details.lease = lease
        held[job.id] = job
        touched[job.options.queue, job.options.pool] = lane_of(state, job.options)
    for lane in touched.values():
        lane.drop_dead_heads()


def _attempts_ended(state: QueueState, event: AttemptsEnded) -> None:
    held = state.leases.get(event.worker, {})
    jobs = state.jobs.of([each.job_id for each in event.finished])
    ends = zip(jobs, event.finished, event.changes, event.run_ats, strict=True)
    if are_few(jobs):
        _ended_one_by_one(state, ends, event, held)
    else:
        for some, alike in ended_together([*ends]):
            if alike and state.recent.take(some, event, state.log_time):
                for job, *_ in some:
                    held.pop(job.id, None)
            else:
                _ended_one_by_one(state, some, event, held)
    if not held:
        state.leases.pop(event.worker, None)


def _ended_one_by_one(
    state: QueueState, ends: Iterable[End], event: AttemptsEnded, held: dict[bytes, Job]
) -> None:
    recent, now = state.recent, state.log_time
    for job, finished, change, run_at in ends:
        plain = options_if_plain(job, finished, change, run_at)
        if not plain or not recent.take_one(job, finished, event, now):
            _attempt_ended(state, job, finished, change, run_at, event)
        held.pop(job.id, None)


def _attempt_ended(
    state: QueueState,
    job: Job,
    finished: Finished,
    change: Change,
    run_at: float | None,
    event: AttemptsEnded,
) -> None:
    _move(state, job, change)
    details = job.details
    assert details is not None
    details.lease = None
    details.run_at = run_at
    if finished.outcome in _CHARGED:
        job.failures += 1
    if finished.outcome in _CRASHES:
        job.crashes += 1
    _remember_attempt(state, details, finished, event)
    if change is Change.RETRY_LATER:
        assert run_at is not None
        heapq.heappush(state.due, (run_at, job.seq, job))
    elif change is Change.GIVE_BACK:
        lane_of(state, job.options).add_returned(job)
    else:
        details.result = finished.result
        if finished.result is not None:
            state.packs.add(finished.result.ref)
        _finish(state, job)


def _remember_attempt(state: QueueState, details: Details, finished: Finished, event: AttemptsEnded) -> None:
    never_started = finished.outcome is Outcome.RELEASED and finished.ended_at <= finished.started_at
    if never_started:
        return
    record = AttemptRecord(
        finished.attempt,
        event.worker,
        event.node,
        finished.started_at,
        finished.ended_at,
        finished.outcome,
        finished.error,
        finished.log_bytes,
        finished.log,
    )
    state.packs.add(finished.log)
    if len(details.history) >= HISTORY_MAX:
        state.packs.drop(details.history.pop(1).log)
        details.history_dropped += 1
    details.history = [*details.history, record]  # a new list: the default one is shared


def _jobs_cancelled(state: QueueState, event: JobsCancelled) -> None:
    touched: dict[tuple[str, str], Lane] = {}
    for job_id in event.ids:
        job = state.jobs[job_id]
        if job.state is State.RUNNING:
            lease = state.lease_of(job)
            assert lease is not None
            lease.cancel_requested = True
            continue
        if job.state is State.QUEUED:
            touched[job.options.queue, job.options.pool] = lane_of(state, job.options)
        _move(state, job, Change.CANCEL)
        if job.details is None:
            job.details = Details()
        job.details.run_at = None
        _finish(state, job)
    for lane in touched.values():
        lane.drop_cancelled()
    drop_dead_due(state.due)


def _jobs_revived(state: QueueState, event: JobsRevived) -> None:
    for job_id in event.ids:
        job = state.jobs[job_id]
        state.failures.drop(job)
        _move(state, job, Change.REVIVE)
        job.failures = job.crashes = 0
        details = job.details
        assert details is not None and details.finish_seq is not None
        state.feed.revive(details.finish_seq)
        state.retention.left(job.options.retention_seconds, 1)
        details.finish_seq = details.finished_at = None
        lane_of(state, job.options).add_returned(job)


def _jobs_pulled(state: QueueState, event: JobsPulled) -> None:
    for job_id in event.ids:
        details = state.jobs[job_id].details
        assert details is not None
        details.pulled = True
    state.recent.add(state.jobs.of(event.ids))
    state.unpulled.left(len(event.ids))


def _jobs_retired(state: QueueState, event: JobsRetired) -> None:
    gone: dict[tuple[int, State], tuple[JobOptions, int]] = {}
    places: list[int] = []
    seqs: list[int] = []
    unpulled = 0
    for entry, ids in state.jobs.pop(event.ids):
        if type(entry) is FinishedGroup:
            some_places, some_seqs = entry.retire(ids)
            places += some_places
            seqs += some_seqs
            if entry.rows == []:
                state.recent.close(entry)
        else:
            job = cast("Job", entry)
            unpulled += job.options.task == HASH_TASK and awaits_pull(job)
            places.append(_let_go(state, job))
            seqs.append(job.seq)
        key = id(entry.options), entry.state
        gone[key] = entry.options, gone.get(key, (entry.options, 0))[1] + len(ids)
    state.feed.retire_many(sorted(places))
    state.order.retire_many(seqs)
    state.retired.update(dict.fromkeys(event.ids))
    state.retired_order.extend(event.ids)
    while len(state.retired_order) > RETIRED_REMEMBERED_MAX:
        del state.retired[state.retired_order.popleft()]
    for (_, ended), (options, jobs) in gone.items():
        state.counts.add(options.queue, ended, -jobs)
        state.retention.left(options.retention_seconds, jobs)
        state.options.use(options, -jobs)
        state.options.forget_unused([options])
        forget_if_unused(state, options.queue)
    state.unpulled.left(unpulled)


def _let_go(state: QueueState, job: Job) -> int:
    """Take a job out of whatever else knows it; returns its place in the feed."""
    details = job.details
    assert job.state in TERMINAL and details is not None and details.finish_seq is not None
    place = details.finish_seq
    details.pulled = True  # leaves `unpulled`
    details.finish_seq = None
    state.failures.drop(job)
    state.packs.drop_all_of(job)
    return place


def _queue_paused(state: QueueState, event: QueuePaused) -> None:
    if event.paused:
        state.counts.know(event.queue)
        state.paused[event.queue] = True
        state.lanes.pause(event.queue)
    else:
        state.paused.pop(event.queue, None)
        state.lanes.resume(event.queue)
        forget_if_unused(state, event.queue)


def _key_remembered(state: QueueState, event: KeyRemembered) -> None:
    record = KeyRecord(event.fingerprint[:FINGERPRINT_BYTES], event.answer, event.expires_at)
    state.keys_like(event.key).remember(event.key, record, state.log_time)


_APPLIERS: dict[type, Callable[[QueueState, Any], None]] = {
    EpochBegan: _epoch_began,
    JobsEnqueued: _jobs_enqueued,
    JobsPromoted: _jobs_promoted,
    JobsLeased: _jobs_leased,
    AttemptsEnded: _attempts_ended,
    JobsCancelled: _jobs_cancelled,
    JobsRevived: _jobs_revived,
    JobsPulled: _jobs_pulled,
    JobsRetired: _jobs_retired,
    QueuePaused: _queue_paused,
    KeyRemembered: _key_remembered,
}


# --- parts that several events share ----------------------------------------------------------------


def _move(state: QueueState, job: Job, change: Change) -> None:
    """First the table accepts the move, then anything changes."""
    target = TRANSITIONS[job.state].get(change)
    if target is None:
        raise IllegalTransition(f"job {job.id.hex()}: {change.name} in state {job.state.value}")
    counts, totals, before = state.counts[job.options.queue], state.counts.totals, job.state
    counts[before] -= 1
    counts[target] += 1
    totals[before] -= 1
    totals[target] += 1
    job.state = target


def _finish(state: QueueState, job: Job) -> None:
    details = job.details
    assert details is not None
    details.finished_at = state.log_time
    details.finish_seq = state.feed.append(job)
    if job.state is State.FAILED:
        state.failures.add(job)
    state.retention.ended(job.options.retention_seconds, details.finish_seq, state.log_time)
    if job.options.task == HASH_TASK and job.state is State.SUCCEEDED and not details.pulled:
        state.unpulled.add(job)


def lane_of(state: QueueState, options: JobOptions) -> Lane:
    """The lane of jobs with these options."""
    return state.lanes[options.queue, options.pool]


def forget_if_unused(state: QueueState, queue: str) -> None:
    """A queue that is empty and not paused leaves nothing behind."""
    if queue in state.counts and queue not in state.paused and state.counts.is_empty(queue):
        del state.counts[queue]
        state.lanes.forget(queue)
