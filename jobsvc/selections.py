"""Which jobs a filter means, in bounded slices: for lists, counts and actions on all that match.

A slice looks at no more than `SCAN_MAX` jobs (about 8 ms), newest first below a cursor, and hands back the
cursor of the next one: so that a filter over a million jobs never holds up the leader.

A frozen segment (`segments`) is one look: its jobs are alike in all that a filter asks for, so all of them
match or none. Those that match are copied as far as they are to be shown, and else only counted.

Where few jobs can match (those that run, wait for their time, or failed), only they are looked at, however
many others there are: a list of ten failures among a million successes is one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import NamedTuple

from .commands import Selection
from .finished_groups import FinishedGroup
from .jobs import TERMINAL, Job, State
from .queue_state import QueueState
from .segments import Segment

SCAN_MAX = 20_000
INDEX_MAX = 20_000

_REVIVABLE = frozenset({State.FAILED, State.CANCELLED})


class Slice(NamedTuple):
    """Jobs that match, newest first, and the cursor for what comes after; None at the end.

    `others` match, too, and were only counted."""

    jobs: list[Job]
    before: int | None
    others: int = 0


def next_slice(
    state: QueueState,
    where: Selection,
    before: int | None,
    limit: int,
    suits: Callable[[Job], bool] | None = None,
    shown: int | None = None,
) -> Slice:
    """Up to `limit` matching jobs below the cursor. May be short, even empty, with a cursor.

    More than `shown` are not wanted: where that is cheaper, those after are counted."""
    few = _indexed(state, where)
    if few is not None:
        return _of_few(state, where, few, before, limit, suits)
    group = None if where.failure is None else state.failures.of(where.failure)
    cursor = state.next_seq if before is None else before
    found: list[Job] = []
    others = 0
    last: FinishedGroup | None = None
    fits = False
    for entry in islice(state.order.newest_first(cursor), SCAN_MAX):
        room = limit - len(found) - others
        if room <= 0:
            break
        if isinstance(entry, Segment):
            stop, cursor = min(cursor, entry.stop), entry.seq
            like = Job(entry.first, entry.options, b"", entry.seq, entry.created_at)
            if group is None and matches(like, where) and (suits is None or suits(like)):
                cursor = max(entry.seq, stop - room)
                copied = cursor if shown is None else max(cursor, stop - max(0, shown - len(found)))
                found += reversed(entry.between(copied, stop))
                others += copied - cursor
            continue
        if isinstance(entry, tuple):
            of, cursor = entry
            if of is not last:
                last, fits = of, group is None and _fits(of, where, suits)
            if fits:
                found.append(of.job_with_seq(cursor))
            continue
        cursor = entry.seq
        if (group is None or entry.id in group) and matches(entry, where) and (suits is None or suits(entry)):
            found.append(entry)
    oldest = state.order.oldest_seq
    return Slice(found, cursor if oldest is not None and oldest < cursor else None, others)


def _fits(group: FinishedGroup, where: Selection, suits: Callable[[Job], bool] | None) -> bool:
    """Whether the jobs of a group match: they are alike in all that a filter asks for."""
    like = Job(b"", group.options, b"", 0, 0.0, State.SUCCEEDED)
    return matches(like, where) and (suits is None or suits(like))


def _of_few(
    state: QueueState,
    where: Selection,
    few: Iterable[Job],
    before: int | None,
    limit: int,
    suits: Callable[[Job], bool] | None,
) -> Slice:
    found = {
        job.seq: job
        for job in few
        if (before is None or job.seq < before)
        and matches(job, where)
        and state.jobs.holds(job)
        and (suits is None or suits(job))
    }
    seqs = sorted(found, reverse=True)
    shown = [found[seq] for seq in seqs[:limit]]
    return Slice(shown, shown[-1].seq if len(seqs) > limit else None)


def _indexed(state: QueueState, where: Selection) -> Iterable[Job] | None:
    """A small collection that holds all that can match, or None if there is none."""
    if where.failure is not None:
        group = state.failures.of(where.failure)
        return group.values() if len(group) <= INDEX_MAX else None
    if where.state is State.FAILED and state.total(State.FAILED) <= INDEX_MAX:
        return chain.from_iterable(group.values() for group in state.failures.all())
    if where.state is State.RUNNING and state.total(State.RUNNING) <= INDEX_MAX:
        return chain.from_iterable(held.values() for held in state.leases.values())
    if where.state is State.SCHEDULED and len(state.due) <= INDEX_MAX:
        return [job for _, _, job in state.due]
    return None


def matches(job: Job, where: Selection) -> bool:
    """All but the failure group, which is a collection of its own."""
    options = job.options
    return (
        (where.state is None or job.state is where.state)
        and (where.queue is None or options.queue == where.queue)
        and (where.task is None or options.task == where.task)
        and (where.batch is None or options.batch == where.batch)
    )


def can_cancel(job: Job) -> bool:
    lease = job.details.lease if job.details is not None else None
    return job.state not in TERMINAL and not (lease is not None and lease.cancel_requested)


def can_retry(job: Job) -> bool:
    return job.state in _REVIVABLE


SUITS: dict[str, Callable[[Job], bool]] = {"cancel": can_cancel, "retry": can_retry}
