"""Workers as the leader sees them: volatile, rebuilt from their reports after every takeover.

Nothing here decides about safety. What a worker may do is its leases, and those are in the journal; this
is only who spoke when, who waits for work, and who should leave. Times are the event loop's.
"""

from __future__ import annotations

import asyncio

from .jobs import WorkerReport


class KnownWorker:
    """One worker. `waiting` is its long poll, if it has one open."""

    def __init__(self, name: str, pool: str, now: float) -> None:
        self.name = name
        self.pool = pool
        self.session = ""
        self.node = ""
        self.pid = 0
        self.actor = ""
        self.seen_at = now
        self.idle_since: float | None = now
        self.running: tuple[bytes, int] | None = None
        self.running_since = now
        self.current: str | None = None
        self.reported = False  # to this leader
        self.leaving = False
        self.retiring = False
        self.being_lost = False
        self.can_take = 0
        self.held_back: str | None = None  # why it can run nothing
        self.held_back_since = 0.0  # wall clock
        self.waiting: asyncio.Future[None] | None = None

    def note(self, report: WorkerReport, now: float) -> None:
        """Take over what a report says."""
        self.pool = report.pool
        self.session = report.session
        self.node = report.node
        self.pid = report.pid
        self.actor = report.actor
        self.seen_at = now
        self.reported = True
        self.leaving = report.leaving
        self.current = report.current
        self.can_take = report.can_take
        self.held_back, self.held_back_since = report.held_back, report.held_back_since
        # The first one runs or is about to. If the worker dies, it is charged: a job that kills every
        # worker it meets must not be spared because nobody had seen it begin.
        self.begins(report.holding[0] if report.holding else None, now)
        if report.holding:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now

    def begins(self, attempt: tuple[bytes, int] | None, now: float) -> None:
        """This is what it runs, or will run next."""
        if attempt != self.running:
            self.running_since = now
        self.running = attempt

    def runs_for(self, now: float) -> float:
        """Seconds that its job has run, as far as is known."""
        return now - self.running_since if self.running is not None else 0.0

    def wake(self) -> None:
        """End the long poll, if there is one."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)

    def state(self, now: float, silent_after_seconds: float) -> str:
        if not self.reported:
            return "starting"
        if now - self.seen_at > silent_after_seconds:
            return "silent"
        if self.leaving or self.retiring:
            return "leaving"
        if self.held_back is not None:
            return "held_back"
        return "busy" if self.idle_since is None else "idle"


class WorkerRegistry:
    """All workers that this leader has heard of or that hold leases."""

    def __init__(self) -> None:
        self.workers: dict[str, KnownWorker] = {}
        self._polling: dict[str, KnownWorker] = {}  # those with a call open, in the order of their calls
        self.lost: set[str] = set()  # given up: their processes, if there are any, are to end

    def known(self, name: str, pool: str, now: float) -> KnownWorker:
        worker = self.workers.get(name)
        if worker is None:
            self.lost.discard(name)
            worker = self.workers[name] = KnownWorker(name, pool, now)
        return worker

    def forget(self, name: str) -> None:
        self.lost.add(name)
        worker = self.workers.pop(name, None)
        if worker is not None:
            worker.wake()
            if self._polling.get(name) is worker:
                del self._polling[name]

    def here(self, pool: str) -> list[KnownWorker]:
        """Workers of a pool that have reported and stay."""
        return [
            worker
            for worker in self.workers.values()
            if worker.pool == pool and worker.reported and not (worker.leaving or worker.retiring)
        ]

    def opens_poll(self, worker: KnownWorker, poll: asyncio.Future[None]) -> None:
        """This call of the worker may wait."""
        worker.waiting = poll
        self._polling.pop(worker.name, None)
        self._polling[worker.name] = worker

    def closes_poll(self, worker: KnownWorker) -> None:
        worker.waiting = None
        if self._polling.get(worker.name) is worker:
            del self._polling[worker.name]

    def polled_pools(self) -> list[str]:
        """Pools of workers that have a call open."""
        return list({worker.pool: None for worker in self._polling.values()})

    def waiting(self, pool: str) -> list[KnownWorker]:
        """Workers of a pool that hold a long poll open and can take jobs, longest idle first.

        Every report comes by here, so it looks at those that wait and not at all there are."""
        found = [
            worker
            for worker in self._polling.values()
            if worker.pool == pool
            and worker.waiting is not None
            and not worker.waiting.done()
            and worker.can_take > 0
            and not worker.retiring
            and not worker.being_lost
            and not worker.leaving
        ]
        found.sort(key=lambda worker: worker.seen_at)
        return found

    def silent(self, now: float, lease_seconds: float) -> list[KnownWorker]:
        return [
            worker
            for worker in self.workers.values()
            if now - worker.seen_at > lease_seconds and not worker.being_lost
        ]
