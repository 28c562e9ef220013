"""Leading: what the leader does with commands, queries, reports, and time.

Commands and reports come in as calls. Each is decided against the state in memory, its events go into
the open batch of the `CommitLoop`, and the call waits until what its answer depends on is durable. When a
change makes jobs ready and workers wait, they are leased in the same batch, so that an idle service
needs one record from the enqueue to the worker.

Leases have no timers in the journal. A worker that is silent for `lease_seconds`, or whose process is seen to
die, is lost: the leader reads its outbox, settles what it had finished, and gives back the rest. After a
takeover every worker gets the full time again.

A worker that has run dry and reports its last results would come again at once to wait for work. Its answer
is held back for a moment instead: under a steady load the next jobs are there by then, for one call instead
of two.

What a worker holds is compared in every report: leases that it does not name are granted again (an answer
got lost, or its leader died before answering; the worker knows repetitions by their token), and what it
names without a lease it is told to drop. That, and that a report is stale, is said without any commit: a
leader that was replaced and has not noticed may say it, of leases that are newer than its epoch. So orders
carry the epoch, and a worker obeys nobody older than whom it has obeyed before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from . import commands as c
from . import decisions, job_views, orphans
from .commit_loop import CommitLoop, Peer
from .errors import Refusal
from .events import EpochBegan, Event, JobsCancelled
from .insistence import insist
from .jobs import Finished, Grant, Job, JobOptions, State, WorkerOrders, WorkerReport
from .journal import LogWriter
from .leader_reads import LeaderReads
from .object_store import ObjectStore
from .put_pace import worker_interval_seconds
from .queue_state import QueueState
from .retirement import Retirement
from .scaling import JobSeconds
from .settings import Settings
from .state_history import StateHistory
from .tallies import Tallies
from .throughput import Throughput
from .worker_registry import KnownWorker, WorkerRegistry

TICK_SECONDS = 1.0
HEALTH_SECONDS = 10.0
RAN_DRY_SECONDS = 0.05

_outbox_decoder = msgspec.msgpack.Decoder(list[Finished])


class Leader:
    """One leadership. Made when a takeover has been won; used by the manager until it ends."""

    def __init__(
        self,
        *,
        name: str,
        state: QueueState,
        writer: LogWriter,
        store: ObjectStore,
        settings: Settings,
        peer: Peer,
        wall: Callable[[], float],
        history: StateHistory | None = None,
    ) -> None:
        self.name = name
        self.state = state
        self.registry = WorkerRegistry()
        self.tallies = Tallies()
        self.pool_views: dict[str, c.PoolView] = {}
        self.job_seconds: dict[str, JobSeconds] = {}
        self._store = store
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._limits = decisions.Limits(
            settings.max_jobs,
            settings.idempotency_seconds,
            settings.retention_seconds,
            min(settings.retained_jobs_max, settings.max_jobs // 2),
        )
        self.commits = CommitLoop(state, writer, settings, peer, wall)
        self._tick = asyncio.Event()
        self._finish_grew = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._next_tick_at = 0.0
        self._throughput = Throughput(self._loop.time())
        self.history = history if history is not None else StateHistory()
        self.reads = LeaderReads(
            state,
            self.registry,
            self._throughput,
            self.history,
            settings,
            self.pool_views,
            self._loop.time,
        )
        self._failed_jobs = 0
        self._retirement = Retirement(state, self.commits, store, self._limits)

    # --- the life of a leadership ---

    async def run(self) -> None:
        """Lead until something fatal happens; raises it."""
        self.commits.append(EpochBegan(self.commits.epoch, self.name))
        for worker, held in self.state.leases.items():
            pool = next(iter(held.values())).options.pool
            self.registry.known(worker, pool, self._loop.time())
        for name, part in (
            ("commit", self.commits.run),
            ("push", self.commits.push),
            ("tick", self._ticks),
            ("retirement", self._retirement.run),
            ("orphans", self._delete_orphans),
        ):
            self.begin(part(), name)
        try:
            await self._failed
        finally:
            for task in self._tasks:
                task.cancel()

    def begin(self, part: Coroutine[Any, Any, None], name: str) -> None:
        """Start a side task whose failure ends the leadership."""
        task = self._loop.create_task(part, name=f"leader {name}")
        self._tasks.add(task)
        task.add_done_callback(self._side_task_ended)

    def _side_task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self._failed.done():
            return
        error = task.exception()
        if error is not None:
            self._failed.set_exception(error)

    def apply_events(self, events: list[Event]) -> None:
        """Put decided events into the open batch, and wake who waits for what they bring."""
        finished_before = self.state.next_finish_seq
        for event in events:
            self.commits.append(event)
        if self.state.next_finish_seq != finished_before:
            self._count_finished(finished_before)
            self._finish_grew.set()
            self._finish_grew = asyncio.Event()
            self._retirement.look()
        due = self.state.due
        if due and due[0][0] < self._next_tick_at:
            self._tick.set()

    def _count_finished(self, first: int) -> None:
        now = self._loop.time()
        for job in self.state.feed[first - self.state.feed_first :]:
            if job is not None:
                self._throughput.add(job.options.queue, now)
                self.tallies.job_finished(job)
                self._failed_jobs += job.state is State.FAILED

    # --- calls of replicas ---

    async def flight(self, requests: list[c.Request], puts: int = 0) -> list[c.Reply]:
        """Answer one flight. Returns when every answer is durable."""
        self.commits.note_puts(puts)
        replies: list[c.Reply] = []
        for request in requests:
            replies.append(self._answer(request))
        self.serve_waiting()
        self.commits.hurry()
        await self.commits.settled()
        return replies

    def _answer(self, request: c.Request) -> c.Reply:
        if isinstance(request, c.Command):
            self.commits.stamp()
            decision = decisions.decide(self.state, request, self._limits)
            self.apply_events(decision.events)
            self.tallies.command(request, decision.answer)
            if isinstance(request, c.Enqueue) and isinstance(decision.answer, Refusal):
                self._make_room(request, decision.answer)
            for event in decision.events:
                if isinstance(event, JobsCancelled):
                    self._wake_holders(event.ids)
            return decision.answer
        return self.read(request)

    def _make_room(self, request: c.Enqueue, refusal: Refusal) -> None:
        if refusal.code == "too_many_jobs":
            self._retirement.make_room(len(request.jobs))

    def read(self, query: c.Query) -> c.Reply:
        """Answer from memory; whoever tells others waits for `commits.settled` first."""
        return self.reads.answer(query)

    def workers(self) -> c.Workers:
        return self.reads.workers()

    async def wait_feed(self, after: int, wait_seconds: float) -> c.FeedPage:
        """The feed after a place; waits for the first entry at most this long."""
        if after >= self.state.next_finish_seq - 1 and wait_seconds > 0:
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._finish_grew.wait()
            except TimeoutError:
                pass  # an empty page is the answer
        page = job_views.read_feed_with_jobs(self.state, after)
        await self.commits.settled()
        return page

    # --- calls of workers ---

    async def report(self, report: WorkerReport) -> WorkerOrders:
        """Settle what a worker finished, and give it what it may do next."""
        worker = self.registry.known(report.worker, report.pool, self._loop.time())
        if worker.session not in ("", report.session):
            await self.lose_worker(report.worker)  # an earlier life under the same name
            worker = self.registry.known(report.worker, report.pool, self._loop.time())
        worker.wake()  # a newer call ends an older one
        worker.note(report, self._loop.time())
        self.commits.note_puts(report.puts)
        mine: asyncio.Future[None] = self._loop.create_future()
        self.registry.opens_poll(worker, mine)
        stale = self._settle(report)
        orders = self._orders(worker, report)
        self._lease(worker, report, orders)
        if not (orders.grants or orders.drop or orders.cancel or orders.retire):
            await _wait_for(mine, _patience_seconds(report))
            overtaken = worker.waiting is not mine
            orders = self._no_orders() if overtaken else self._orders(worker, report)
        if worker.waiting is mine:
            self.registry.closes_poll(worker)
        orders.stale = stale
        if not report.holding:
            self.commits.hurry()
        await self.commits.settled()
        if report.leaving:
            self.begin(self.lose_worker(report.worker), f"farewell {report.worker}")
        return orders

    def _settle(self, report: WorkerReport) -> list[tuple[bytes, int]]:
        if report.busy_seconds:
            seconds = self.job_seconds.setdefault(report.pool, JobSeconds())
            for jobs, busy in report.busy_seconds.values():
                seconds.add(jobs, busy)
        if not report.finished:
            return []
        self.commits.stamp()
        settlement = decisions.settle(self.state, report.worker, report.node, report.finished)
        self.apply_events(settlement.events)
        self.tallies.attempts_ended(self.state.jobs, report.finished, settlement.stale)
        self.serve_waiting(but=report.worker)
        return settlement.stale

    def _no_orders(self) -> WorkerOrders:
        settings = self._settings
        interval = worker_interval_seconds(settings.record_interval_seconds, len(self.registry.workers))
        return WorkerOrders(
            lease_seconds=settings.lease_seconds, put_interval_seconds=interval, epoch=self.commits.epoch
        )

    def _orders(self, worker: KnownWorker, report: WorkerReport) -> WorkerOrders:
        """Leases that the worker does not name, and what it must stop."""
        orders = self._no_orders()
        orders.retire = worker.retiring
        held = self.state.leases.get(worker.name, {})
        holding = set(report.holding)
        missing: list[Job] = []
        for job_id, job in held.items():
            lease = self.state.lease_of(job)
            if lease is not None and lease.cancel_requested:
                orders.cancel.append((job_id, job.attempt))
            if (job_id, job.attempt) not in holding:
                missing.append(job)
        missing.sort(key=lambda job: (-job.options.priority, job.seq))  # restored leases have no order
        self._grant(missing, orders)
        for job_id, attempt in report.holding:
            own = held.get(job_id)
            if own is None or own.attempt != attempt:
                orders.drop.append((job_id, attempt))
        return orders

    def _grant(self, jobs: list[Job], orders: WorkerOrders) -> None:
        """Put leases into the orders; options travel once."""
        numbers: dict[JobOptions, int] = {options: n for n, options in enumerate(orders.options)}
        for job in jobs:
            number = numbers.get(job.options)
            if number is None:
                number = numbers[job.options] = len(orders.options)
                orders.options.append(job.options)
            orders.grants.append(Grant(job.id, job.attempt, number, job.payload))

    def _lease(self, worker: KnownWorker, report: WorkerReport, orders: WorkerOrders) -> None:
        """Lease new jobs to a worker that asks for them."""
        count = report.can_take - len(orders.grants)
        if count <= 0 or worker.retiring or worker.being_lost or report.leaving:
            return
        self.commits.stamp()
        leased = decisions.lease(self.state, worker.name, worker.pool, count)
        if leased is None:
            return
        self.apply_events([leased])
        self._grant(self.state.jobs.of(leased.ids), orders)
        self._note_leased(worker, leased.ids)

    def _note_leased(self, worker: KnownWorker, ids: list[bytes]) -> None:
        """An idle worker begins with the first of them: if it dies before it says so, that job is charged."""
        worker.can_take = 0
        worker.idle_since = None
        if worker.running is None:
            worker.running = (ids[0], self.state.jobs[ids[0]].attempt)
        self.tallies.leased(self.state.jobs.of(ids))

    def serve_waiting(self, but: str = "") -> None:
        """Lease to workers that wait, in the same record as what made the jobs ready."""
        for pool in self.registry.polled_pools():
            if not decisions.has_ready(self.state, pool):
                continue  # most reports of many idle workers end here
            workers = [worker for worker in self.registry.waiting(pool) if worker.name != but]
            ready = self._ready_for(pool, workers)
            for position, worker in enumerate(workers):
                # Few jobs are spread over the idle workers instead of all going to the first.
                share = min(worker.can_take, max(1, -(-ready // (len(workers) - position))))
                self.commits.stamp()
                leased = decisions.lease(self.state, worker.name, pool, share)
                if leased is None:
                    break
                ready -= len(leased.ids)
                self.apply_events([leased])
                self._note_leased(worker, leased.ids)
                worker.wake()

    def _ready_for(self, pool: str, workers: list[KnownWorker]) -> int:
        """How many jobs there are for these workers, counted no further than they can take.

        Counted once for all of them: counting for each is quadratic in the workers."""
        count = max((worker.can_take for worker in workers), default=0) * len(workers)
        return sum(len(lane.heads(count)) for lane in self.state.ready_lanes(pool)) if count > 1 else count

    def _wake_holders(self, ids: list[bytes]) -> None:
        for job_id in ids:
            job = self.state.jobs.get(job_id)
            lease = self.state.lease_of(job) if job is not None else None
            if lease is not None and lease.worker in self.registry.workers:
                self.registry.workers[lease.worker].wake()

    async def lose_worker(self, name: str) -> None:
        """A worker is gone: settle what its outbox holds, give back the rest."""
        worker = self.registry.known(name, "", self._loop.time())
        if worker.being_lost:
            return
        worker.being_lost = True
        running = worker.running  # as it was: a next life under this name may report while the store is read
        keys, finished = await self._read_outbox(name)
        self.commits.stamp()
        settlement = decisions.settle(self.state, name, worker.node, finished)
        self.apply_events(settlement.events)
        self.tallies.attempts_ended(self.state.jobs, finished, settlement.stale)
        self.tallies.count("leases_expired", len(self.state.leases.get(name, ())))
        self.commits.stamp()
        self.apply_events(decisions.lose_worker(self.state, name, running))
        if self.registry.workers.get(name) is worker:
            self.registry.forget(name)
        self.serve_waiting()
        if not keys:
            await self.commits.settled()
            return
        await self.commits.proved()  # a leader that was replaced knows nothing of some of these reports
        for key in keys:
            await insist(self._store.delete, key)

    async def _read_outbox(self, name: str) -> tuple[list[str], list[Finished]]:
        keys = await insist(self._store.list, f"outbox/{name}/")
        finished: list[Finished] = []
        for key in keys:
            data = await insist(self._store.get, key)
            if data is not None:
                finished.extend(_outbox_decoder.decode(data))
        return keys, finished

    # --- time ---

    async def _ticks(self) -> None:
        while True:
            now = self.commits.now()
            due = decisions.next_due(self.state)
            wait = TICK_SECONDS if due is None else min(TICK_SECONDS, max(0.01, due - now))
            self._next_tick_at = now + wait
            try:
                async with asyncio.timeout(wait):
                    await self._tick.wait()
            except TimeoutError:
                pass
            self._tick.clear()
            await self._on_tick()

    async def _on_tick(self) -> None:
        workers = self.reads.worker_states()
        self.history.sample(
            self.state,
            self.commits.now(),
            failed=self._failed_jobs,
            workers=sum(workers.values()),
            busy=workers.get("busy", 0),
        )
        due = decisions.next_due(self.state)
        if due is not None and due <= self.commits.now():
            self.commits.stamp()
            promoted = decisions.promote_due(self.state)
            if promoted is not None:
                self.apply_events([promoted])
                self.serve_waiting()
        for worker in self.registry.silent(self._loop.time(), self._settings.lease_seconds):
            self.begin(self.lose_worker(worker.name), f"loss of {worker.name}")

    async def _delete_orphans(self) -> None:
        def count(deleted: int) -> None:
            self.tallies.count("orphans_deleted", deleted)

        await orphans.keep_deleting(self._store, self.state.packs, self.commits.now, count)

    # --- figures ---

    def healthy(self) -> str | None:
        """None, or what is wrong: health means progress."""
        if self._failed.done():
            return "the leadership has ended"
        pause = self._loop.time() - self.commits.committed_at
        if pause > HEALTH_SECONDS:
            return f"nothing was committed for {pause:.0f} seconds"
        return None


def _patience_seconds(report: WorkerReport) -> float:
    """How long this report may wait for something to do. What it has finished is settled all the same."""
    if report.leaving:
        return 0.0
    if report.finished:
        return RAN_DRY_SECONDS if report.can_take and not report.holding else 0.0
    return report.wait_seconds


async def _wait_for(future: asyncio.Future[None], seconds: float) -> None:
    if seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            await asyncio.shield(future)
    except TimeoutError:
        pass  # nothing to say is an answer
