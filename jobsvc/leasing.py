"""Leasing: which worker gets which jobs, and when.

A worker that asks gets leases with its answer. When a change makes jobs ready and workers wait, they are
leased in the same batch, so that an idle service needs one record from the enqueue to the worker. Few jobs
are spread over the workers that wait instead of all going to the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from . import decisions
from .bulkheads import Bulkheads
from .commit_loop import CommitLoop
from .events import Event
from .jobs import Grant, Job, JobOptions, WorkerOrders, WorkerReport
from .queue_state import QueueState
from .tallies import Tallies
from .worker_registry import KnownWorker, WorkerRegistry

PART = "leasing"


class Leasing:
    """One leadership's leases. Each pool is served alone: what raises for one costs that one."""

    def __init__(
        self,
        state: QueueState,
        registry: WorkerRegistry,
        commits: CommitLoop,
        tallies: Tallies,
        bulkheads: Bulkheads,
        apply_events: Callable[[list[Event]], None],
    ) -> None:
        self._state = state
        self._registry = registry
        self._commits = commits
        self._tallies = tallies
        self._bulkheads = bulkheads
        self._apply_events = apply_events

    def serve(self, worker: KnownWorker, report: WorkerReport, orders: WorkerOrders) -> None:
        """Lease new jobs to a worker that asks for them."""
        count = report.can_take - len(orders.grants)
        if count <= 0 or worker.retiring or worker.being_lost or report.leaving:
            return
        with self._bulkheads.alone(PART, worker.pool):
            jobs = self._lease(worker, count)
            grant(jobs, orders)

    def serve_waiting(self, but: str = "") -> None:
        """Lease to workers that wait, in the same record as what made the jobs ready."""
        for pool in self._registry.polled_pools():
            with self._bulkheads.alone(PART, pool):
                self._serve_pool(pool, but)

    def _serve_pool(self, pool: str, but: str) -> None:
        if not decisions.has_ready(self._state, pool):
            return  # most reports of many idle workers end here
        workers = [worker for worker in self._registry.waiting(pool) if worker.name != but]
        ready = self._ready_for(pool, workers)
        for position, worker in enumerate(workers):
            share = min(worker.can_take, max(1, -(-ready // (len(workers) - position))))
            jobs = self._lease(worker, share)
            if not jobs:
                break
            ready -= len(jobs)
            worker.wake()

    def _lease(self, worker: KnownWorker, count: int) -> list[Job]:
        """An idle worker begins with the first of them: if it dies before it says so, that job is charged."""
        self._commits.stamp()
        leased = decisions.lease(self._state, worker.name, worker.pool, count)
        if leased is None:
            return []
        self._apply_events([leased])
        jobs = self._state.jobs.of(leased.ids)
        worker.can_take = 0
        worker.idle_since = None
        if worker.running is None:
            worker.begins((leased.ids[0], jobs[0].attempt), asyncio.get_running_loop().time())
        self._bulkheads.count(self._tallies.leased, jobs)
        return jobs

    def _ready_for(self, pool: str, workers: list[KnownWorker]) -> int:
        """How many jobs there are for these workers, counted no further than they can take.

        Counted once for all of them: counting for each is quadratic in the workers."""
        count = max((worker.can_take for worker in workers), default=0) * len(workers)
        return self._state.lanes.count_ready(pool, count) if count > 1 else count


def grant(jobs: list[Job], orders: WorkerOrders) -> None:
    """Put leases into the orders; options travel once."""
    numbers: dict[JobOptions, int] = {options: n for n, options in enumerate(orders.options)}
    for job in jobs:
        number = numbers.get(job.options)
        if number is None:
            number = numbers[job.options] = len(orders.options)
            orders.options.append(job.options)
        orders.grants.append(Grant(job.id, job.attempt, number, job.payload))
