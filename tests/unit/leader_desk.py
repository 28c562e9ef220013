"""A leader in one page, for tests of workers: it leases, settles, repeats itself, and can be away."""

from __future__ import annotations

import asyncio
from collections import deque

from jobsvc.errors import Unavailable
from jobsvc.jobs import BlobRef, Finished, Grant, JobOptions, Outcome, WorkerOrders, WorkerReport
from jobsvc.service_code import ServiceCode

Key = tuple[bytes, int]


class LeaderDesk:
    """Keeps its promises to one worker as the real leader does; a test turns the knobs."""

    def __init__(self) -> None:
        self.queue: deque[tuple[bytes, JobOptions, bytes | BlobRef]] = deque()
        self.leases: dict[Key, Grant] = {}
        self.options: dict[Key, JobOptions] = {}
        self.attempts: dict[bytes, int] = {}
        self.cancelled: set[Key] = set()
        self.completed: dict[Key, Finished] = {}
        self.reports: list[WorkerReport] = []
        self.refused: list[Key] = []
        self.retire = False
        self.put_interval_seconds = 0.0
        self.epoch = 1
        self.code: ServiceCode | None = None
        self.ignorant = False  # who answers led the epoch before, and has not noticed that it was replaced
        self.away = False
        self.silent = False
        self.loses_answers = 0  # so many calls take effect and are not answered
        self.farewell: asyncio.Event = asyncio.Event()
        self._changed = asyncio.Event()
        self._newest = 0
        self._ids = 0

    # --- what a test does ---

    def enqueue(
        self,
        task: str = "some.task",
        count: int = 1,
        payload: bytes | BlobRef = b"",
        timeout: float | None = None,
        content: str = "json",
    ) -> list[bytes]:
        ids = []
        for _ in range(count):
            self._ids += 1
            ids.append(self._ids.to_bytes(16, "big"))
            options = JobOptions(task, timeout_seconds=timeout, content=content)
            self.queue.append((ids[-1], options, payload))
        self._changed.set()
        return ids

    def cancel(self, *ids: bytes) -> None:
        self.cancelled |= {key for key in self.leases if key[0] in ids}
        self._changed.set()

    def take_away(self, *ids: bytes) -> None:
        """The leases end without the worker's word, as after its silence."""
        for key in [key for key in self.leases if key[0] in ids]:
            del self.leases[key]
        self._changed.set()

    def retire_worker(self) -> None:
        self.retire = True
        self._changed.set()

    def outcomes(self, *ids: bytes) -> list[Outcome | None]:
        """How the latest attempts of these jobs ended, or None."""
        return [
            end.outcome if (end := self.completed.get((each, self.attempts.get(each, 0)))) else None
            for each in ids
        ]

    # --- LeaderLink ---

    async def report_and_ask(self, report: WorkerReport) -> WorkerOrders:
        self.reports.append(report)
        self._newest += 1
        mine = self._newest
        self._changed.set()  # whoever waits sees that it was overtaken
        await asyncio.sleep(0.005)  # the way there, and a commit
        if self.away:
            raise Unavailable("nobody leads")
        if self.silent:
            await asyncio.Event().wait()
        if self.ignorant:
            stale = [(each.job_id, each.attempt) for each in report.finished]
            return WorkerOrders(stale=stale, drop=report.holding, epoch=self.epoch - 1)
        stale = self._settle(report)
        orders = self._orders(report)
        said = orders.grants or orders.cancel or orders.drop or orders.retire or orders.code
        if not (report.finished or said):
            orders = await self._wait(report, mine)
        orders.stale = stale
        if report.leaving:
            self.farewell.set()
        if self.loses_answers > 0:
            self.loses_answers -= 1
            raise Unavailable("the answer got lost")
        return orders

    async def _wait(self, report: WorkerReport, mine: int) -> WorkerOrders:
        loop = asyncio.get_running_loop()
        until = loop.time() + report.wait_seconds
        while loop.time() < until and mine == self._newest:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                break
            if self.away:
                raise Unavailable("it went away")
            if mine == self._newest:
                orders = self._orders(report)
                if orders.grants or orders.cancel or orders.drop or orders.retire:
                    return orders
        return WorkerOrders(put_interval_seconds=self.put_interval_seconds, epoch=self.epoch)

    def _settle(self, report: WorkerReport) -> list[Key]:
        stale = []
        for finished in report.finished:
            key = (finished.job_id, finished.attempt)
            if self.leases.pop(key, None) is None:
                stale.append(key)
                self.refused.append(key)
            else:
                assert key not in self.completed, "a second result of one attempt"
                self.completed[key] = finished
        return stale

    def _orders(self, report: WorkerReport) -> WorkerOrders:
        interval = self.put_interval_seconds
        orders = WorkerOrders(retire=self.retire, put_interval_seconds=interval, epoch=self.epoch)
        if self.code is not None and report.code != self.code.digest:
            orders.code = self.code
        holding = set(report.holding)
        for key, grant in self.leases.items():
            if key not in holding:
                self._give(orders, key, grant.payload)
        orders.drop = [key for key in report.holding if key not in self.leases]
        orders.cancel = [key for key in self.leases if key in self.cancelled]
        while self.queue and len(orders.grants) < report.can_take and not self.retire:
            job_id, options, payload = self.queue.popleft()
            self.attempts[job_id] = self.attempts.get(job_id, 0) + 1
            key = (job_id, self.attempts[job_id])
            self.options[key] = options
            self.leases[key] = self._give(orders, key, payload)
        return orders

    def _give(self, orders: WorkerOrders, key: Key, payload: bytes | BlobRef) -> Grant:
        orders.options.append(self.options[key])
        orders.grants.append(Grant(*key, len(orders.options) - 1, payload))
        return orders.grants[-1]
