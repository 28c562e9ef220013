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
from collections.abc import Coroutine
from typing import Any

from . import commands as c
from . import decisions, orphans
from .bulkheads import ENDS_ALL, Bulkheads, said
from .commit_loop import CommitLoop, Peer
from .errors import EventNotApplied, Refusal, Unavailable
from .events import EpochBegan, Event, JobsCancelled
from .held_tasks import HeldTasks
from .jobs import Job, State, WorkerOrders, WorkerReport
from .journal import LogWriter
from .leader_reads import LeaderReads
from .leasing import Leasing, grant
from .log_clock import LogClock
from .object_store import ObjectStore, because
from .put_pace import worker_interval_seconds
from .queue_state import QueueState
from .retirement import Retirement
from .scaling import TaskSeconds
from .service_code import ServiceCode
from .settings import Settings
from .settling import Settling
from .state_history import StateHistory
from .tallies import Tallies
from .throughput import Throughput
from .worker_registry import KnownWorker, WorkerRegistry

TICK_SECONDS = 1.0
HEALTH_SECONDS = 10.0
RAN_DRY_SECONDS = 0.05


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
        clock: LogClock,
        jump_seconds: float = 0.0,
        history: StateHistory | None = None,
        code: ServiceCode | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.name = name
        self.state = state
        self.registry = WorkerRegistry()
        self.tallies = Tallies()
        self.bulkheads = Bulkheads(self._loop.time, clock.wall)
        self.pool_views: dict[str, c.PoolView] = {}
        self.task_seconds: dict[str, TaskSeconds] = {}  # by pool
        self._store = store
        self._settings = settings
        self._limits = decisions.Limits(
            settings.max_jobs,
            settings.idempotency_seconds,
            settings.retention_seconds,
            min(settings.retained_jobs_max, settings.max_jobs // 2),
        )
        self.commits = CommitLoop(state, writer, settings, peer, clock)
        state.lanes.serve_by(settings.pool_of)
        beside = self.tallies, self.bulkheads
        self.leasing = Leasing(state, self.registry, self.commits, *beside, self.apply_events)
        self.held_tasks = HeldTasks(state.lanes, self._loop.time)
        ended = store, *beside, self.held_tasks
        self.settling = Settling(state, self.registry, self.commits, *ended, self.apply_events)
        self._tick = asyncio.Event()
        self._finish_grew = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._losing: set[str] = set()
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
            self.commits.now,
            writer.cluster_id,
        )
        self._jump_seconds = jump_seconds
        self._code: ServiceCode | None = None
        self._code_digest = ""
        self._environments: dict[str, str] = {}  # of pools that have one: its id
        if code is not None:
            self.use_code(code)
        self._failed_jobs = 0
        self._retirement = Retirement(state, self.commits, store, self._limits, self.bulkheads)

    # --- the life of a leadership ---

    async def run(self) -> None:
        """Lead until something fatal happens; raises it."""
        self.commits.append(EpochBegan(self.commits.epoch, self.name, self._jump_seconds))
        for worker, held in self.state.leases.items():
            options = next(iter(held.values())).options
            pool = self.state.lanes.pool_of(options.queue, options.pool)  # until it says so itself
            self.registry.known(worker, pool, self._loop.time())
        self.begin(self.commits.run(), "commit")
        for name, part in (
            ("push", self.commits.push),
            ("time", self._ticks),
            ("retirement", self._retirement.run),
            ("orphans", self._delete_orphans),
            ("unserved tasks", self.reads.unserved.run),
        ):
            self.begin(self.bulkheads.keep(name, part), name)
        try:
            await self._failed
        finally:
            for task in self._tasks:
                task.cancel()

    def begin(self, part: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a side task. What it raises ends the leadership: parts are guarded by `bulkheads`."""
        task = self._loop.create_task(part, name=f"leader {name}")
        self._tasks.add(task)
        task.add_done_callback(self._side_task_ended)
        return task

    def begin_loss(self, worker: str) -> None:
        """A worker is gone: give back what it held, and try until that is done."""
        if worker in self._losing:
            return

        async def lose() -> None:
            try:
                await self.bulkheads.keep("loss of a worker", lambda: self.lose_worker(worker), worker)
            finally:
                self._losing.discard(worker)

        self.begin(lose(), f"loss of {worker}")
        self._losing.add(worker)

    def _side_task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    def apply_events(self, events: list[Event]) -> None:
        """Put decided events into the open batch, and wake who waits for what they bring."""
        finished_before = self.state.feed.next_place
        try:
            for event in events:
                self.commits.append(event)
        except EventNotApplied as error:
            self._end(error)
            raise
        if self.state.feed.next_place != finished_before:
            self.bulkheads.count(self._count_finished, finished_before)
            self._finish_grew.set()
            self._finish_grew = asyncio.Event()
            self.bulkheads.call("retirement", self._retirement.look)
        due = self.state.due
        if due and due[0][0] < self._next_tick_at:
            self._tick.set()

    def _count_finished(self, first: int) -> None:
        now = self._loop.time()
        for entry, jobs in self.state.feed.entries_since(first):
            self._throughput.add(entry.options.queue, now, jobs)
            self.tallies.job_finished(entry, jobs)
            self._failed_jobs += entry.state is State.FAILED

    # --- calls of replicas ---

    async def flight(self, requests: list[c.Request], puts: int = 0) -> list[c.Reply]:
        """Answer one flight. Returns when every answer is durable."""
        self.bulkheads.call("pace", self.commits.note_puts, puts)
        replies: list[c.Reply] = []
        try:
            for request in requests:
                replies.append(self._answer(request))
        except EventNotApplied as error:
            return _after_the_end(requests, len(replies), error)
        self.bulkheads.call("leasing", self.leasing.serve_waiting)
        self.commits.hurry()
        await self._settled_with(*replies)
        return replies

    def _answer(self, request: c.Request) -> c.Reply:
        """A request that meets a defect is told so, and leaves no trace; the others of its flight go on."""
        kind = type(request).__name__
        try:
            if not isinstance(request, c.Command):
                return self.read(request)
            self.commits.stamp()
            clock = self.commits.clock
            if isinstance(request, c.Enqueue) and (request.delays or not clock.is_in_step):
                clock.date(request)
            decision = decisions.decide(self.state, request, self._limits)
        except ENDS_ALL:
            raise
        except Exception as error:
            self.bulkheads.failed("request", error, kind)
            return Refusal("internal", f"{kind} met a defect in the service: {said(error)}")
        self.apply_events(decision.events)
        self.bulkheads.count(self.tallies.command, request, decision.answer)
        if isinstance(decision.answer, Refusal):
            self.bulkheads.call("retirement", self._make_room, request, decision.answer)
        for event in decision.events:
            if isinstance(event, JobsCancelled):
                self.bulkheads.call("cancelling", self._wake_holders, event.ids)
        return decision.answer

    def _make_room(self, request: c.Command, refusal: Refusal) -> None:
        if refusal.code == "too_many_jobs" and refusal.field == "queue":
            self._retirement.make_queues()
        elif refusal.code == "too_many_jobs" and isinstance(request, c.Enqueue):
            self._retirement.make_room(len(request.jobs))

    def read(self, query: c.Query) -> c.Reply:
        """Answer from memory; whoever tells others waits for `commits.settled` first."""
        return self.reads.answer(query)

    def workers(self) -> c.Workers:
        return self.reads.workers()

    async def wait_feed(self, query: c.ReadFeed, wait_seconds: float) -> c.FeedPage:
        """The feed after a place; waits for the first entry at most this long."""
        if self.reads.is_at_the_end(query) and wait_seconds > 0:
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._finish_grew.wait()
            except TimeoutError:
                pass  # an empty page is the answer
        page = self.reads.feed_with_jobs(query)
        await self._settled_with(page)
        return page

    async def _settled_with(self, *replies: c.Reply) -> None:
        """Wait until these replies are true for good."""
        if any(isinstance(reply, c.FeedPage) and reply.reset for reply in replies):
            await self.commits.proved()  # a leader that was replaced may only be behind the reader's place
        await self.commits.settled()

    def use_code(self, code: ServiceCode) -> None:
        """The service's code from now on: every worker hears of it."""
        self._code, self._code_digest = code, code.digest
        self._environments = {pool: code.environment_id(pool) for pool in code.environments}
        self.reads.unserved.known = frozenset(code.tasks)
        self.held_tasks.use_tasks(self.reads.unserved.known)
        for worker in self.registry.workers.values():
            worker.wake()

    # --- calls of workers ---

    async def report(self, report: WorkerReport) -> WorkerOrders:
        """Settle what a worker finished, and give it what it may do next.

        Raises Unavailable if this report meets a defect: the worker comes again with it."""
        try:
            return await self._report(report)
        except ENDS_ALL:
            raise
        except Exception as error:
            self.bulkheads.failed("report", error, report.worker)
            raise Unavailable(f"this report cannot be taken: {said(error)}") from error

    async def _report(self, report: WorkerReport) -> WorkerOrders:
        worker = self.registry.known(report.worker, report.pool, self._loop.time())
        if worker.session not in ("", report.session):
            await self.lose_worker(report.worker)  # an earlier life under the same name
            worker = self.registry.known(report.worker, report.pool, self._loop.time())
        worker.wake()  # a newer call ends an older one
        worker.note(report, self._loop.time())
        if self._code is not None and report.environment != self._environments.get(report.pool, ""):
            worker.retiring = True  # another one comes, with what the pool packs now
        self.bulkheads.call("pace", self.commits.note_puts, report.puts)
        mine: asyncio.Future[None] = self._loop.create_future()
        self.registry.opens_poll(worker, mine)
        try:
            stale = self._settle(report)
            orders = self._orders(worker, report)
            if orders.code is None:
                self.leasing.serve(worker, report, orders)
            if not (orders.grants or orders.drop or orders.cancel or orders.retire or orders.code):
                await _wait_for(mine, _patience_seconds(report))
                overtaken = worker.waiting is not mine
                orders = self._no_orders() if overtaken else self._orders(worker, report)
        finally:
            if worker.waiting is mine:
                self.registry.closes_poll(worker)
        orders.stale = stale
        if not report.holding:
            self.commits.hurry()
        await self.commits.settled()
        if report.leaving:
            self.begin_loss(report.worker)
        return orders

    def _settle(self, report: WorkerReport) -> list[tuple[bytes, int]]:
        self.bulkheads.call("scaler", self._measure, report)
        if not report.finished:
            return []
        stale = self.settling.settle(report.worker, report.node, report.finished)
        self.bulkheads.call("leasing", self.leasing.serve_waiting, report.worker)
        return stale

    def _measure(self, report: WorkerReport) -> None:
        for task, (jobs, busy) in report.busy_seconds.items():
            self.task_seconds.setdefault(report.pool, TaskSeconds()).add(task, jobs, busy)

    def _no_orders(self) -> WorkerOrders:
        settings = self._settings
        orders = WorkerOrders(lease_seconds=settings.lease_seconds, epoch=self.commits.epoch)
        with self.bulkheads.alone("pace"):
            workers = len(self.registry.workers)
            orders.put_interval_seconds = worker_interval_seconds(settings.record_interval_seconds, workers)
        return orders

    def _orders(self, worker: KnownWorker, report: WorkerReport) -> WorkerOrders:
        """Leases that the worker does not name, and what it must stop."""
        orders = self._no_orders()
        orders.retire = worker.retiring
        if self._code is not None and report.code != self._code_digest:
            orders.code, worker.can_take = self._code, 0  # it would run jobs with what it has
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
        grant(missing, orders)
        for job_id, attempt in report.holding:
            own = held.get(job_id)
            if own is None or own.attempt != attempt:
                orders.drop.append((job_id, attempt))
        return orders

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
        try:
            keys = await self.settling.lose(worker)
            self.leasing.serve_waiting()
            await self.settling.forget_outbox(keys)
        finally:
            worker.being_lost = False

    # --- time ---

    async def _ticks(self) -> None:
        while True:
            clock = self.commits.clock
            due = decisions.next_due(self.state)
            wait = TICK_SECONDS if due is None else min(TICK_SECONDS, max(0.01, clock.seconds_until(due)))
            self._next_tick_at = clock.after(wait)
            try:
                async with asyncio.timeout(wait):
                    await self._tick.wait()
            except TimeoutError:
                pass
            self._tick.clear()
            await self._on_tick()

    async def _on_tick(self) -> None:
        """Each of these fails alone."""
        parts = self.bulkheads
        for part, work in (
            ("history", self._sample),
            ("delays", self._promote),
            ("silent workers", self._look_for_silent),
            ("tasks held back", self._try_held_tasks),
        ):
            if parts.due(part):
                parts.call(part, work)

    def _sample(self) -> None:
        workers = self.reads.worker_states()
        self.history.sample(
            self.state,
            self.commits.now(),
            failed=self._failed_jobs,
            workers=sum(workers.values()),
            busy=workers.get("busy", 0),
        )

    def _promote(self) -> None:
        due = decisions.next_due(self.state)
        if due is None or due > self.commits.now():
            return
        self.commits.stamp()
        promoted = decisions.promote_due(self.state)
        if promoted is not None:
            self.apply_events([promoted])
            self.leasing.serve_waiting()

    def _look_for_silent(self) -> None:
        for worker in self.registry.silent(self._loop.time(), self._settings.lease_seconds):
            self.begin_loss(worker.name)

    def _try_held_tasks(self) -> None:
        if self.held_tasks:
            self.held_tasks.try_again()
            self.leasing.serve_waiting()

    async def _delete_orphans(self) -> None:
        def count(deleted: int) -> None:
            self.tallies.count("orphans_deleted", deleted)

        await orphans.keep_deleting(self._store, self.state.packs, self.commits.clock.wall, count)

    # --- figures ---

    def healthy(self) -> str | None:
        """None, or what is wrong: health means progress."""
        if self._failed.done():
            return "the leadership has ended"
        pause = self._loop.time() - self.commits.committed_at
        failure, idle = self._store.put_failure, self._settings.idle_record_seconds
        if pause > max(HEALTH_SECONDS, 2.5 * idle) or (failure and pause > idle + 1.0):
            return f"nothing was committed for {pause:.0f} seconds{because(failure)}"
        return None


def _after_the_end(requests: list[c.Request], place: int, error: EventNotApplied) -> list[c.Reply]:
    """The request at this place ends this leadership. It is told so, lest it end the next one as well."""
    lost = Refusal("unknown_outcome", "the leader ended by a defect", retry_after_seconds=1.0)
    replies: list[c.Reply] = [lost] * len(requests)
    replies[place] = Refusal("internal", str(error))
    return replies


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
