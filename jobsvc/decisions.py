"""Decisions: what a command would change, and what its caller is told. Changes nothing.

`decide(state, command, limits)` returns events for `queue_state.apply` and the answer, or a refusal and
no events: nothing is ever half taken. "Now" is `state.log_time`, the time of the record that is being
filled, so that a decision depends on nothing that the journal does not hold. The backoff's jitter comes
from a hash of job id and attempt: uniform over jobs, the same in every replay.

Charges (P7). An exception or a timeout spends one of `max_attempts`; a crash, or the loss of the worker
while it ran the job, spends one of `max_attempts` and one of `max_crashes`; a lease that was given back
(drain, retirement, a worker lost before it had begun) spends nothing. A job whose cancel was asked for
while it ran never runs again, however the attempt ended.

A lost worker's job goes back to its queue at once: the backoff is there to spare what the task calls, and
the task did nothing wrong. `max_crashes` bounds a job that kills every worker it meets.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Container
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from . import commands as c
from .errors import Refusal
from .events import (
    AttemptsEnded,
    Change,
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
from .jobs import TASK_UNKNOWN, TERMINAL, ErrorInfo, Finished, Job, Outcome, Result, State, encode
from .pack_references import PackReferences
from .queue_state import QueueState
from .remembered_keys import FINGERPRINT_BYTES
from .selections import SUITS, next_slice

AUTOMATIC_KEY_SECONDS = 300.0  # far longer than any replica goes on sending one command
QUEUES_MAX = 100_000  # that hold jobs or are paused; others are not known
UNKNOWN_PAUSE_SECONDS_MAX = 60.0  # until a job whose task nobody has is tried again
CHANGED_AT_ONCE_MAX = 1_000  # by one ChangeMatching: about 20 ms
IDS_SHOWN = 5

_reply_decoder: msgspec.msgpack.Decoder[c.Reply] = msgspec.msgpack.Decoder(c.Reply)


class Limits(NamedTuple):
    """The settings that decisions depend on."""

    max_jobs: int
    idempotency_seconds: float
    retention_seconds: float
    retained_jobs_max: int


class Decision(NamedTuple):
    events: list[Event]
    answer: c.Reply


def decide(state: QueueState, command: c.Command, limits: Limits) -> Decision:
    """The events and the answer of one command."""
    if command.key is not None:
        keys = state.keys_like(command.key)
        known = keys.get(command.key)
        if known is not None and known.expires_at > state.log_time:
            return Decision([], _known_answer(known.fingerprint, known.answer, command))
    decision = _DECIDERS[type(command)](state, command, limits)
    if command.key is None or isinstance(decision.answer, Refusal):
        return decision
    automatic = command.key.startswith(c.AUTOMATIC_KEY_PREFIX)
    seconds = AUTOMATIC_KEY_SECONDS if automatic else limits.idempotency_seconds
    remembered = KeyRemembered(
        command.key, command.fingerprint, encode(decision.answer), state.log_time + seconds
    )
    return Decision([*decision.events, remembered], decision.answer)


def _known_answer(fingerprint: bytes, answer: bytes, command: c.Command) -> c.Reply:
    if fingerprint[:FINGERPRINT_BYTES] != command.fingerprint[:FINGERPRINT_BYTES]:
        return Refusal("key_reused", "this idempotency key was used for another request", "Idempotency-Key")
    reply = _reply_decoder.decode(answer)
    if isinstance(reply, c.Accepted) and isinstance(command, c.Enqueue):
        same_sender = reply.ids == [job.id for job in command.jobs]
        return c.Accepted(reply.ids, created=same_sender)
    return reply


def _refuse(code: str, detail: str, field: str | None = None, retry_after: float | None = None) -> Decision:
    return Decision([], Refusal(code, detail, field, retry_after))


# --- commands of callers ------------------------------------------------------------------------------


def _enqueue(state: QueueState, command: c.Enqueue, limits: Limits) -> Decision:
    ids = [job.id for job in command.jobs]
    if not ids:
        return _refuse("invalid", "at least one job is needed", "jobs")
    present = state.jobs.count_of(ids) + sum(map(state.retired.__contains__, ids))  # never in both
    if present == len(ids):  # sent again: it was taken the first time
        return Decision([], c.Accepted(ids, created=True))
    if present or len(set(ids)) != len(ids):
        return _refuse("invalid", "job ids must be new and different", "jobs")
    if len(state.jobs) + len(ids) > limits.max_jobs:
        detail = f"{len(state.jobs)} jobs are held, {limits.max_jobs} at most"
        return _refuse("too_many_jobs", detail, retry_after=1.0 if state.counts.ended else 5.0)
    if not all(0 <= job.option < len(command.options) for job in command.jobs):
        return _refuse("invalid", "a job names options that did not come with it", "options")
    if len(state.counts) + len(command.options) > QUEUES_MAX:
        new_queues = {options.queue for options in command.options} - state.counts.keys()
        if len(state.counts) + len(new_queues) > QUEUES_MAX:
            return _too_many_queues(state)
    return Decision([JobsEnqueued(command.options, command.jobs)], c.Accepted(ids, created=True))


def _too_many_queues(state: QueueState) -> Decision:
    """A queue whose jobs have all ended makes room; those that have jobs to run, or are paused, do not."""
    detail = f"{len(state.counts)} queues hold jobs or are paused, {QUEUES_MAX} at most"
    if any(map(state.counts.has_ended, state.counts)):
        return _refuse("too_many_jobs", detail, "queue", retry_after=1.0)
    return _refuse("invalid", detail, "queue")


def _cancel(state: QueueState, command: c.Cancel, limits: Limits) -> Decision:
    items: list[State | Refusal] = []
    ids: dict[bytes, None] = {}
    for job_id in command.ids:
        job = state.jobs.peek(job_id)
        if job is None:
            items.append(missing(state, job_id))
        elif job.state in TERMINAL and job.state is not State.CANCELLED:
            items.append(Refusal("wrong_state", f"the job has already {job.state.value}", "state"))
        else:
            lease = state.lease_of(job)
            if job.state is not State.CANCELLED and not (lease and lease.cancel_requested):
                ids[job_id] = None
            items.append(State.RUNNING if job.state is State.RUNNING else State.CANCELLED)
    return Decision([JobsCancelled(list(ids))] if ids else [], c.Changed(items))


def _retry(state: QueueState, command: c.Retry, limits: Limits) -> Decision:
    items: list[State | Refusal] = []
    ids: dict[bytes, None] = {}
    for job_id in command.ids:
        job = state.jobs.peek(job_id)
        if job is None:
            items.append(missing(state, job_id))
        elif job.state in (State.FAILED, State.CANCELLED):
            ids[job_id] = None
            items.append(State.QUEUED)
        else:
            detail = f"only failed and cancelled jobs can be retried; this one is {job.state.value}"
            items.append(Refusal("wrong_state", detail, "state"))
    return Decision([JobsRevived(list(ids))] if ids else [], c.Changed(items))


def _change_matching(state: QueueState, command: c.ChangeMatching, limits: Limits) -> Decision:
    suits = SUITS.get(command.action)
    if suits is None:
        return _refuse("invalid", f"must be one of {', '.join(SUITS)}", "action")
    limit = max(1, min(command.limit, CHANGED_AT_ONCE_MAX))
    jobs, before, _ = next_slice(state, command.where, command.before, limit, suits)
    ids = [job.id for job in jobs]
    answer = c.Matched(len(ids), before, state.next_seq, ids[:IDS_SHOWN])
    if not ids:
        return Decision([], answer)
    return Decision([JobsCancelled(ids) if command.action == "cancel" else JobsRevived(ids)], answer)


def missing(state: QueueState, job_id: bytes) -> Refusal:
    """The refusal for a job that is not in memory."""
    if job_id in state.retired:
        return Refusal("expired_job", "the job has finished and passed its retention", "id")
    return Refusal("unknown_job", "no job has this id", "id")


def _patch_queue(state: QueueState, command: c.PatchQueue, limits: Limits) -> Decision:
    answer = c.QueuePatched(command.queue, command.paused)
    if state.paused.get(command.queue, False) == command.paused:
        return Decision([], answer)
    if command.queue not in state.counts and len(state.counts) >= QUEUES_MAX:
        return _too_many_queues(state)
    return Decision([QueuePaused(command.queue, command.paused)], answer)


def _pull(state: QueueState, command: c.Pull, limits: Limits) -> Decision:
    jobs: list[Job] = []
    for job in state.unpulled.latest():
        if len(jobs) == command.count:
            break
        if job.options.task == command.task:
            jobs.append(job)
    pulled = [c.PulledJob(job.id, result_of(job)) for job in jobs]
    events: list[Event] = [JobsPulled([job.id for job in jobs])] if jobs else []
    return Decision(events, c.Pulled(pulled))


def result_of(job: Job) -> Result:
    result = job.details.result if job.details is not None else None
    return result if result is not None else Result("json", b"null")


_DECIDERS: dict[type, Callable[[QueueState, Any, Limits], Decision]] = {
    c.Enqueue: _enqueue,
    c.Cancel: _cancel,
    c.Retry: _retry,
    c.ChangeMatching: _change_matching,
    c.PatchQueue: _patch_queue,
    c.Pull: _pull,
}


# --- what workers report ------------------------------------------------------------------------------


class Settlement(NamedTuple):
    """Events for the attempts that count, and the (job id, attempt) of those that do not."""

    events: list[Event]
    stale: list[tuple[bytes, int]]


def settle(state: QueueState, worker: str, node: str, finished: list[Finished]) -> Settlement:
    """Accept each ended attempt from the worker that holds its lease, once; refuse the others."""
    accepted: list[Finished] = []
    changes: list[Change] = []
    run_ats: list[float | None] = []
    stale: list[tuple[bytes, int]] = []
    held = state.leases.get(worker, {})
    seen: set[bytes] = set()
    for each in finished:
        job = held.get(each.job_id)
        if job is None or job.attempt != each.attempt or each.job_id in seen:
            stale.append((each.job_id, each.attempt))
            continue
        seen.add(each.job_id)
        change, run_at = _after(state, job, each)
        accepted.append(each)
        changes.append(change)
        run_ats.append(run_at)
    if not accepted:
        return Settlement([], stale)
    return Settlement([AttemptsEnded(worker, node, accepted, changes, run_ats)], stale)


def settle_as_failed(state: QueueState, worker: str, node: str, finished: Finished) -> Settlement:
    """The same for one attempt that nothing else can be decided of: its job fails."""
    job = state.leases.get(worker, {}).get(finished.job_id)
    if job is None or job.attempt != finished.attempt:
        return Settlement([], [(finished.job_id, finished.attempt)])
    return Settlement([AttemptsEnded(worker, node, [finished], [Change.FAIL], [None])], [])


def _after(state: QueueState, job: Job, finished: Finished) -> tuple[Change, float | None]:
    """Where a running job goes when its attempt ends like this."""
    outcome = finished.outcome
    if outcome is Outcome.SUCCEEDED:
        return Change.SUCCEED, None
    lease = state.lease_of(job)
    if outcome is Outcome.CANCELLED or (lease is not None and lease.cancel_requested):
        return Change.CANCEL, None
    if outcome is Outcome.RELEASED and finished.error is not None and finished.error.type == TASK_UNKNOWN:
        return Change.RETRY_LATER, state.log_time + min(
            2.0 ** min(job.attempt, 60), UNKNOWN_PAUSE_SECONDS_MAX
        )
    if outcome is Outcome.RELEASED:
        return Change.GIVE_BACK, None
    if finished.final:
        return Change.FAIL, None
    failures = job.failures + 1
    crashed = outcome in (Outcome.CRASHED, Outcome.LOST)
    crashes = job.crashes + crashed
    options = job.options
    if failures >= options.max_attempts or (crashed and crashes >= options.max_crashes):
        return Change.FAIL, None
    if outcome is Outcome.LOST:
        return Change.GIVE_BACK, None
    delay = backoff_seconds(
        job.id, job.attempt, failures, options.backoff_base_seconds, options.backoff_cap_seconds
    )
    if delay <= 0:
        return Change.GIVE_BACK, None
    return Change.RETRY_LATER, state.log_time + delay


def backoff_seconds(job_id: bytes, attempt: int, failures: int, base: float, cap: float) -> float:
    """Exponential backoff with full jitter: uniform in [0, min(cap, base * 2^(failures - 1)))."""
    ceiling = min(cap, base * 2.0 ** min(failures - 1, 60))
    digest = hashlib.blake2b(job_id + attempt.to_bytes(8, "big"), digest_size=8).digest()
    return ceiling * (int.from_bytes(digest, "big") / 2.0**64)


def lose_worker(state: QueueState, worker: str, running: tuple[bytes, int] | None) -> list[Event]:
    """Give a lost worker's leases to others. Only the job that it was running is charged."""
    ended: list[Finished] = []
    held = state.leases.get(worker, {}).values()
    for job in sorted(held, key=lambda job: job.seq):  # the same after a restore, which knows no other order
        lease = state.lease_of(job)
        assert lease is not None
        if running == (job.id, job.attempt):
            began, ends = lease.leased_at, state.log_time
            error = ErrorInfo("WorkerLost", f"{worker}, which ran this job, ended or was silent for too long")
            ended.append(Finished(job.id, job.attempt, Outcome.LOST, began, ends, error=error))
        else:
            ended.append(Finished(job.id, job.attempt, Outcome.RELEASED, lease.leased_at, lease.leased_at))
    return settle(state, worker, "", ended).events


def lease(state: QueueState, worker: str, pool: str, count: int) -> JobsLeased | None:
    """The next jobs for a worker of this pool, or None if nothing is ready."""
    if count <= 0:
        return None
    jobs = state.lanes.next_jobs(pool, count)
    return JobsLeased(worker, [job.id for job in jobs]) if jobs else None


def has_ready(state: QueueState, pool: str) -> bool:
    """Whether a worker of this pool would get anything."""
    return bool(state.lanes.next_jobs(pool, 1))


# --- what time brings ---------------------------------------------------------------------------------


def promote_due(state: QueueState, count_max: int = 10_000) -> JobsPromoted | None:
    """Scheduled jobs whose time has come."""
    ids: dict[bytes, None] = {}
    borrowed = []
    while state.due and state.due[0][0] <= state.log_time and len(ids) < count_max:
        entry = heapq.heappop(state.due)
        job = entry[2]
        if job.state is State.SCHEDULED and job.details is not None and job.details.run_at == entry[0]:
            ids[job.id] = None
            borrowed.append(entry)
    for entry in borrowed:
        heapq.heappush(state.due, entry)
    return JobsPromoted(list(ids)) if ids else None


def next_due(state: QueueState) -> float | None:
    """Log time of the next promotion, or None. May be earlier than needed, never later."""
    return state.due[0][0] if state.due else None


def excess(state: QueueState, limits: Limits, room: int = 0) -> int:
    """How many jobs that have ended are beyond the limit, or in the way of `room` new ones."""
    terminal = state.counts.ended
    crowded = len(state.jobs) + room - limits.max_jobs if room else 0
    return max(terminal - limits.retained_jobs_max, min(crowded, terminal))


def retire(
    state: QueueState,
    limits: Limits,
    count_max: int = 5_000,
    room: int = 0,
    wall: float = math.inf,
    but: Container[bytes] = (),
) -> list[Job]:
    """Terminal jobs past their retention, oldest first: by time, and by number beyond the limit.

    `but`: those that cannot leave now; others go in their place.

    After a jump of log time nobody knows how old the jobs of before are: the clock may have been wrong that
    made it jump. If the clock is behind log time now, it was; then their age is by the clock. And for a while
    after a great jump none goes because of its age, so that whoever set the clock wrong can set it right.
    """
    now = state.log_time if state.log_time >= state.ages_count_from else -math.inf

    def is_old(finished_at: float, seconds: float) -> bool:
        return finished_at + seconds <= (now if finished_at >= state.jumped_at else min(now, wall))

    beyond = min(excess(state, limits, room), count_max)
    can_leave = (job for job in state.feed if job.id not in but)
    jobs = {job.id: job for job in islice(can_leave, beyond)} if beyond > 0 else {}
    for job in state.retention.old(limits.retention_seconds, now, is_old, count_max - len(jobs), but):
        jobs[job.id] = job
    return list(jobs.values())


def retired(state: QueueState, jobs: list[Job]) -> tuple[JobsRetired, list[str]]:
    """The event that retires these jobs, and the shared objects that nobody will need after it."""
    uses = PackReferences()
    for job in jobs if state.packs else ():
        uses.add_all_of(job)
    free = [key for key, count in uses.items() if state.packs.get(key) == count]
    return JobsRetired([job.id for job in jobs]), free
