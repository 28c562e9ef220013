"""Queries over the queue's state: what people and programs see of it. Reads only.

Every answer is bounded: pages have a limit, and a page that has to look at many jobs to find few stops
after `SCAN_MAX` and hands back a cursor. Counts come from the state machine, so they add up.
"""

from __future__ import annotations

from bisect import bisect_left

from . import commands as c
from .decisions import missing, result_of
from .errors import Refusal
from .jobs import Job, State
from .queue_state import QueueState

SCAN_MAX = 20_000
PAGE_MAX = 1_000


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
    if state.paused.get(job.options.queue, False):
        return f"queue {job.options.queue} is paused"
    return f"for a worker of pool {job.options.pool}"


def get_jobs(state: QueueState, query: c.GetJobs) -> c.Found:
    items: list[c.JobView | Refusal] = []
    for job_id in query.ids:
        job = state.jobs.get(job_id)
        items.append(missing(state, job_id) if job is None else job_view(state, job))
    return c.Found(items)


def get_payload(state: QueueState, query: c.GetPayload) -> c.Payload | Refusal:
    job = state.jobs.get(query.id)
    return missing(state, query.id) if job is None else c.Payload(job.options.content, job.payload)


def list_jobs(state: QueueState, query: c.ListJobs) -> c.JobPage:
    """Newest first, below the cursor."""
    order = state.order
    place = len(order) if query.before is None else bisect_left(order, query.before, key=_seq)
    stop = max(0, place - SCAN_MAX)
    found: list[c.JobView] = []
    limit = max(1, min(query.limit, PAGE_MAX))
    while place > stop and len(found) < limit:
        place -= 1
        job = order[place]
        if _matches(job, query) and state.jobs.get(job.id) is job:
            found.append(job_view(state, job))
    return c.JobPage(found, order[place].seq if place > 0 else None)


def _seq(job: Job) -> int:
    return job.seq


def _matches(job: Job, query: c.ListJobs) -> bool:
    return (
        (query.state is None or job.state is query.state)
        and (query.queue is None or job.options.queue == query.queue)
        and (query.task is None or job.options.task == query.task)
        and (query.batch is None or job.options.batch == query.batch)
    )


def read_feed(state: QueueState, query: c.ReadFeed) -> c.FeedPage:
    """Finished jobs after a place, in order of completion. A place below 0 means the end: no entries."""
    newest = state.next_finish_seq - 1
    if query.after < 0:
        return c.FeedPage([], newest, state.feed_first, newest)
    entries: list[c.FeedEntry] = []
    place = max(query.after + 1, state.feed_first)
    limit = min(query.limit, PAGE_MAX * 10)
    scanned_until = min(place + SCAN_MAX, state.next_finish_seq)
    while place < scanned_until and len(entries) < limit:
        job = state.feed[place - state.feed_first]
        if job is not None:
            entries.append(_feed_entry(job, place))
        place += 1
    return c.FeedPage(entries, max(place - 1, query.after), state.feed_first, newest)


def _feed_entry(job: Job, place: int) -> c.FeedEntry:
    details = job.details
    assert details is not None and details.finished_at is not None
    error = details.history[-1].error if details.history and job.state is not State.SUCCEEDED else None
    result = result_of(job) if job.state is State.SUCCEEDED else None
    return c.FeedEntry(
        place, job.id, job.state, job.options.task, details.finished_at, job.options.batch, result, error
    )


def get_queues(state: QueueState, finished_per_second: dict[str, float], pools: dict[str, str]) -> c.Queues:
    """Every queue that ever had a job or a setting. `pools` names the pool of a queue without jobs."""
    oldest: dict[str, float] = {}
    pool_of: dict[str, str] = {}
    for (queue, pool), lane in state.lanes.items():
        pool_of[queue] = pool
        job = lane.oldest()
        if job is not None:
            oldest[queue] = min(job.created_at, oldest.get(queue, job.created_at))
    queues = [
        c.QueueView(
            queue,
            pool_of.get(queue, pools.get(queue, "default")),
            state.paused.get(queue, False),
            {each.value: count for each, count in counts.items()},
            oldest.get(queue),
            finished_per_second.get(queue, 0.0),
        )
        for queue, counts in sorted(state.counts.items())
    ]
    return c.Queues(queues, state.log_time)
