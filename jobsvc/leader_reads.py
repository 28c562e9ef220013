"""What the leader answers from memory. Reads only; who tells others waits for `CommitLoop.settled` first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from . import commands as c
from . import job_views
from .errors import Refusal
from .jobs import State
from .queue_state import QueueState
from .scaling import since
from .settings import Settings
from .state_history import StateHistory
from .throughput import Throughput
from .unserved_tasks import UnservedTasks
from .worker_registry import KnownWorker, WorkerRegistry

STORE_ID_DIGITS = 12  # the last ones of the journal's cluster id, which are random


class LeaderReads:
    """Queries over the parts of one leadership."""

    def __init__(
        self,
        state: QueueState,
        registry: WorkerRegistry,
        throughput: Throughput,
        history: StateHistory,
        settings: Settings,
        pool_views: Mapping[str, c.PoolView],
        clock: Callable[[], float],
        now: Callable[[], float],
        cluster_id: bytes,
    ) -> None:
        self._state = state
        self._registry = registry
        self._throughput = throughput
        self._history = history
        self._settings = settings
        self._pool_views = pool_views
        self._clock = clock
        self._now = now  # log time
        self.unserved = UnservedTasks(state)
        self._store_id = cluster_id.hex()[-STORE_ID_DIGITS:]

    def answer(self, query: c.Query) -> c.Reply:
        """The answer of one query."""
        state = self._state
        match query:
            case c.GetJobs():
                found = job_views.get_jobs(state, query)
                self._add_workers(found.items)
                return found
            case c.GetPayload():
                return job_views.get_payload(state, query)
            case c.ListJobs():
                page = job_views.list_jobs(state, query)
                self._add_workers(page.jobs)
                return page
            case c.CountMatching():
                return job_views.count_matching(state, query)
            case c.GetFailures():
                return job_views.get_failures(state, query)
            case c.GetHistory():
                history = self._history.read(query.seconds)
                history.now = self._now()
                return history
            case c.ReadFeed():
                return job_views.read_feed(state, query, self._store_id)
            case c.GetQueues():
                finished = self._throughput.per_second(self._clock())
                return job_views.get_queues(state, finished, self._settings.queues, query)
            case c.GetWorkers():
                return self.workers()
        return Refusal("invalid", "unknown request")

    def is_at_the_end(self, query: c.ReadFeed) -> bool:
        """Whether a reader of this store stands where the next job that finishes will be."""
        return query.after == self._state.feed.newest and query.store in ("", self._store_id)

    def feed_with_jobs(self, query: c.ReadFeed) -> c.FeedPage:
        """A page for whoever waited for it."""
        return job_views.read_feed_with_jobs(self._state, query, self._store_id)

    def _add_workers(self, items: Iterable[c.JobView | Refusal]) -> None:
        """A queued job waits for a worker, and that perhaps for a machine; a running one has its worker."""
        for view in items:
            if isinstance(view, Refusal):
                continue
            if view.worker in self._registry.workers:
                view.actor = self._registry.workers[view.worker].actor
            if view.waiting is None or view.options.queue in self._state.paused:
                continue
            if self.unserved.lacks(view.options):
                view.waiting = (
                    f"for its task: the service's code has none named {view.options.task!r};"
                    " it is looked for each minute"
                )
            elif view.state is State.QUEUED:
                waiting = self._pool_waits(self._settings.pool_of(view.options.queue))
                if waiting is not None:
                    view.waiting += f": {waiting}"

    def workers(self) -> c.Workers:
        now = self._clock()
        silent = self._settings.heartbeat_seconds * 2
        views = [
            c.WorkerView(
                worker.name,
                worker.pid,
                worker.node,
                worker.pool,
                worker.state(now, silent),
                worker.current,
                len(self._state.leases.get(worker.name, ())),
                now - worker.seen_at,
                worker.actor,
                worker.held_back,
                worker.held_back_since if worker.held_back is not None else None,
            )
            for worker in sorted(self._registry.workers.values(), key=lambda worker: worker.name)
        ]
        return c.Workers(views, self.pools())

    def pools(self) -> list[c.PoolView]:
        """What the scaler says of each pool, with those of its workers that can run nothing."""
        return [
            msgspec.structs.replace(
                view, waiting=self._pool_waits(view.name), held_back=len(self._held_back(view.name))
            )
            for view in self._pool_views.values()
        ]

    def _held_back(self, pool: str) -> list[KnownWorker]:
        return [worker for worker in self._registry.here(pool) if worker.held_back is not None]

    def _pool_waits(self, pool: str) -> str | None:
        """What a pool waits for, in words: workers that are to come, and those that can run nothing."""
        view = self._pool_views.get(pool)
        parts = [view.waiting] if view is not None and view.waiting is not None else []
        held_back = self._held_back(pool)
        if held_back:
            first = min(held_back, key=lambda worker: worker.held_back_since)
            how_many = f"{len(held_back)} of {len(self._registry.here(pool))} workers"
            are = f"{how_many} {'is' if len(held_back) == 1 else 'are'} held back"
            parts.append(f"{are}{since(first.held_back_since)}: {first.held_back}")
        return "; ".join(parts) or None

    def pulse(self) -> c.Pulse:
        """What one look should tell, with what only the leader knows."""
        pulse = self._history.pulse(self._state)
        pulse.workers = self.worker_states()
        pulse.pools = self.pools()
        pulse.unserved = self.unserved.waiting
        return pulse

    def worker_states(self) -> dict[str, int]:
        now = self._clock()
        silent = self._settings.heartbeat_seconds * 2
        counts: dict[str, int] = {}
        for worker in self._registry.workers.values():
            state = worker.state(now, silent)
            counts[state] = counts.get(state, 0) + 1
        return counts
