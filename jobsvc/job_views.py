"""Queries over the queue's state: what people and programs see of it. Reads only.

Every answer is bounded: pages have a limit, and a page that has to look at many jobs to find few stops
after `SCAN_MAX` and hands back a cursor. Counts come from the state machine, so they add up.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import chain
from typing import cast

from . import commands as c
from .decisions import IDS_SHOWN, missing, result_of
from .errors import Refusal
from .failure_groups import error_of, place_of
from .finished_groups import FinishedGroup
from .jobs import Job, State
from .queue_state import QueueState
from .selections import SCAN_MAX, SUITS, next_slice

PAGE_MAX = 1_000
FEED_JOBS_MAX = 8  # finished at the same time: for more, whoever waits asks for its own


def job_view(state: QueueState, job: Job) -> c.JobView:
    """Everything about one job but its payload."""
    view = c.JobView(
        job.id,
        job.options,
        job.state,
        job.seq,
        job.created_at,
        job.attempt,
        job.failures,
        job.crashes,
        len(job.payload) if isinstance(job.payload, bytes) else job.payload.length,
    )
    details = job.details
    if details is not None:
        view.run_at = details.run_at
        view.history = details.history
        view.finished_at = details.finished_at
        view.finish_seq = details.finish_seq
        view.pulled = details.pulled
        if details.lease is not None:
            view.worker = details.lease.worker
            view.leased_at = details.lease.leased_at
            view.cancel_requested = details.lease.cancel_requested
        if job.state is State.SUCCEEDED:
            view.result = result_of(job)
    view.waiting = _why_it_waits(state, job)
    return view


def _why_it_waits(state: QueueState, job: Job) -> str | None:
    if job.state is State.SCHEDULED:
        return "for its next attempt" if job.attempt else "for its time to come"
    if job.state is not State.QUEUED:
        return None
    if job.options.queue in state.paused:
        return f"queue {job.options.queue} is paused"
    return f"for a worker of pool {state.lanes.pool_of(job.options.queue, job.options.pool)}"


def get_jobs(state: QueueState, query: c.GetJobs) -> c.Found:
    items: list[c.JobView | Refusal] = []
    for job_id in query.ids:
        job = state.jobs.peek(job_id)
        if job is None:
            items.append(missing(state, job_id))
            continue
        view = job_view(state, job)
        if query.place and job.state is State.QUEUED:
            ahead = state.lanes[job.options.queue, job.options.pool].ahead(job)
            if ahead:
                view.waiting = f"{view.waiting}, behind about {ahead:,} other{'s' * (ahead > 1)}"
        items.append(view)
    return c.Found(items)


def get_payload(state: QueueState, query: c.GetPayload) -> c.Payload | Refusal:
    job = state.jobs.peek(query.id)
    return missing(state, query.id) if job is None else c.Payload(job.options.content, job.payload)


def list_jobs(state: QueueState, query: c.ListJobs) -> c.JobPage:
    """Newest first, below the cursor."""
    limit = max(1, min(query.limit, PAGE_MAX))
    jobs, before, _ = next_slice(state, query.where, query.before, limit)
    return c.JobPage([job_view(state, job) for job in jobs], before, state.next_seq)


def count_matching(state: QueueState, query: c.CountMatching) -> c.Matched | Refusal:
    """How many jobs an action would change, in the jobs of one slice."""
    suits = SUITS.get(query.action)
    if suits is None:
        return Refusal("invalid", f"must be one of {', '.join(SUITS)}", "action")
    jobs, before, others = next_slice(state, query.where, query.before, state.next_seq, suits, IDS_SHOWN)
    return c.Matched(len(jobs) + others, before, state.next_seq, [job.id for job in jobs[:IDS_SHOWN]])


def get_failures(state: QueueState, query: c.GetFailures) -> c.Failures:
    """Groups of failed jobs, the largest first."""
    groups = [
        _failure_group(fingerprint, group)
        for fingerprint, group in state.failures.largest(max(1, min(query.limit, PAGE_MAX)))
    ]
    return c.Failures(groups, len(state.failures), state.total(State.FAILED), state.log_time)


def _failure_group(fingerprint: str, group: dict[bytes, Job]) -> c.FailureGroup:
    first, last = next(iter(group.values())), next(reversed(group.values()))
    error = error_of(last)
    return c.FailureGroup(
        fingerprint,
        last.options.task,
        error.type,
        error.message,
        place_of(error),
        len(group),
        _finished_at(first),
        _finished_at(last),
        last.id,
    )


def _finished_at(job: Job) -> float:
    return job.details.finished_at or 0.0 if job.details is not None else 0.0


def read_feed(state: QueueState, query: c.ReadFeed, store: str = "") -> c.FeedPage:
    """Finished jobs after a place, in order of completion. A place below 0 means the end: no entries.

    A place of another store, or beyond the end, names nothing that this feed has: the page says so, and
    begins at the beginning of what is kept.
    """
    feed = state.feed
    if query.after < 0:
        return c.FeedPage([], feed.newest, feed.first, feed.newest, store=store)
    reset = None
    if query.store not in ("", store):
        reset = c.FEED_OTHER_STORE
    elif query.after > feed.newest:
        reset = c.FEED_AHEAD
    after = query.after if reset is None else 0
    found, end = feed.after(after, min(query.limit, PAGE_MAX * 10), SCAN_MAX)
    holes = feed.holes(after, [*chain.from_iterable(places for _, places in found)], end)
    entries: list[c.FeedEntry] = []
    for entry, places in found:
        if type(entry) is FinishedGroup:
            entries += _feed_entries(entry, places)
        else:
            entries.append(_feed_entry(cast("Job", entry), places[0]))
    return c.FeedPage(entries, end, feed.first, feed.newest, [], holes, reset, store)


def read_feed_with_jobs(state: QueueState, query: c.ReadFeed, store: str = "") -> c.FeedPage:
    """For those who wait for a job: with a short page the jobs come along, and nobody has to ask again."""
    page = read_feed(state, query, store)
    if len(page.entries) <= FEED_JOBS_MAX:
        page.jobs = [job_view(state, state.jobs[entry.id]) for entry in page.entries]
    return page


def _feed_entries(group: FinishedGroup, places: Sequence[int]) -> list[c.FeedEntry]:
    """Straight from the columns: every replica reads every job that ends."""
    state, task, batch = group.state, group.options.task, group.options.batch
    return [
        c.FeedEntry(place, job_id, state, task, finished_at, batch, result)
        for place, (job_id, finished_at, result) in zip(places, group.completions_at(places), strict=True)
    ]


def _feed_entry(job: Job, place: int) -> c.FeedEntry:
    details = job.details
    assert details is not None and details.finished_at is not None
    error = details.history[-1].error if details.history and job.state is not State.SUCCEEDED else None
    result = result_of(job) if job.state is State.SUCCEEDED else None
    return c.FeedEntry(
        place, job.id, job.state, job.options.task, details.finished_at, job.options.batch, result, error
    )


def get_queues(
    state: QueueState,
    finished_per_second: dict[str, float],
    pools: dict[str, str],
    query: c.GetQueues | None = None,
) -> c.Queues:
    """The queues that have a job or are paused. `pools` names the pool of a queue in which nothing waits."""
    query = c.GetQueues() if query is None else query
    limit = max(1, min(query.limit, PAGE_MAX))
    if query.queue is not None:
        names = [query.queue] if query.queue in state.counts else []
    elif len(state.counts) <= limit:
        names = list(state.counts)
    else:
        names = heapq.nlargest(limit, state.counts, key=lambda queue: sum(state.counts[queue].values()))
    views = [_queue_view(state, queue, finished_per_second, pools) for queue in sorted(names)]
    if query.queue is not None or len(names) == len(state.counts):
        return c.Queues(views, state.log_time)
    others = {
        each.value: state.total(each) - sum(state.counts[queue][each] for queue in names) for each in State
    }
    return c.Queues(views, state.log_time, len(state.counts) - len(names), others)


def _queue_view(
    state: QueueState, queue: str, finished_per_second: dict[str, float], pools: dict[str, str]
) -> c.QueueView:
    pool, oldest = pools.get(queue, "default"), None
    for lane in state.lanes.of_queue(queue):
        first = lane.oldest()
        if first is not None and (oldest is None or first.created_at < oldest):
            pool, oldest = state.lanes.pool_of(queue, lane.pool), first.created_at
    return c.QueueView(
        queue,
        pool,
        queue in state.paused,
        {each.value: count for each, count in state.counts[queue].items()},
        oldest,
        finished_per_second.get(queue, 0.0),
    )
