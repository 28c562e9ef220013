"""One real leader and as many played workers as wanted, in one process, on a clock of CPU time.

The manager, its leader, commit loop and state are the classes that run in production; calls reach them as
bytes, as they would through Ray. Workers, Ray and the store are played. Time goes on by what the leader
computes, and jumps where everybody waits: so what the workers cost is free, as if each had a machine of its
own, and a leader that has too much to do falls behind as it would. Wall time, and so the load of the
machine, does not count.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import uuid_utils

from jobsvc import commands as c
from jobsvc.jobs import Finished, JobOptions, NewJob, Outcome, Result, WorkerOrders, WorkerReport, encode
from jobsvc.manager import Manager
from jobsvc.manager_actor import GC_THRESHOLDS
from jobsvc.object_store import MemoryObjectStore, ObjectStore, PutOutcome
from jobsvc.prefetch import Prefetch
from jobsvc.scaling import Machines
from jobsvc.settings import PoolSettings, Settings
from tests.simulation.virtual_loop import VirtualLoop

from .work import argument

TASK = "bench.noop"
BATCH_JOBS = 1_000
PUT_SECONDS = 0.004  # a synced write, about
WALL_START = 1_000_000.0
CALLS_KEPT_BYTES = 4_096  # records above are forgotten: the journal is not the leader's memory

_replies = msgspec.msgpack.Decoder(c.FlightReply)
_orders = msgspec.msgpack.Decoder(WorkerOrders)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def clock_seconds(reads: int = 2_000) -> float:
    """What reading the clock of CPU time costs: on some virtual machines as much as a small call."""
    began = time.process_time()
    for _ in range(reads - 1):
        time.process_time()
    return (time.process_time() - began) / reads


class CpuLoop(VirtualLoop):
    """Time is what the leader has computed, plus what everybody has waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._clock_seconds = clock_seconds()
        self.leader_seconds = 0.0
        self.longest_seconds = 0.0
        self._played = 0.0

    @contextmanager
    def played(self) -> Iterator[None]:
        """What happens in here is done by another machine."""
        began = time.process_time()
        yield
        self._played += time.process_time() - began + self._clock_seconds

    def charge(self, seconds: float) -> None:
        """The leader computes for so long, and it is only played."""
        self._now += seconds
        self.leader_seconds += seconds

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            self._now = max(self._now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            due = heapq.heappop(scheduled)
            due._scheduled = False
            ready.append(due)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                self._run_timed(handle)

    def _run_timed(self, handle: asyncio.Handle) -> None:
        began, self._played = time.process_time(), 0.0
        handle._run()
        spent = max(0.0, time.process_time() - began - self._played - self._clock_seconds)
        self._now += spent
        self.leader_seconds += spent
        self.longest_seconds = max(self.longest_seconds, spent)


class PlayedStore(MemoryObjectStore):
    """Takes `PUT_SECONDS` for a put, and forgets what large records hold."""

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        await asyncio.sleep(PUT_SECONDS)
        forgets = key.startswith("log/") and len(data) > CALLS_KEPT_BYTES
        return await super().put_new(key, b"" if forgets else data)


class PlayedPeer:
    """A standby that takes every push."""

    name = "manager-b"

    async def push(self, records: list[bytes]) -> int:
        return 0

    async def status(self) -> None:
        return None


class PlayedFleet:
    def __init__(self) -> None:
        self.there: dict[str, str] = {}

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        raise AssertionError("as many as wanted are there")

    async def end(self, name: str) -> None:
        raise AssertionError("nobody is to leave")

    async def names(self) -> dict[str, str]:
        return dict(self.there)

    async def trouble(self) -> str | None:
        return None

    async def machines(self) -> Machines | None:
        return None


class Collections:
    """The pauses of the garbage collector, with the thresholds of the manager's actor."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._began = 0.0
        self._thresholds = gc.get_threshold()

    def __enter__(self) -> Collections:
        gc.collect()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        gc.callbacks.remove(self._note)
        gc.set_threshold(*self._thresholds)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.process_time()
        else:
            self.longest_seconds = max(self.longest_seconds, time.process_time() - self._began)


class World:
    """A leader, its store, and the way in."""

    def __init__(self, workers: int = 0, store: ObjectStore | None = None) -> None:
        pools = {"default": PoolSettings(min_workers=workers, max_workers=workers)}
        self.settings = Settings(pools=pools, max_jobs=20_000_000)
        self.store = store if store is not None else PlayedStore()
        self.fleet = PlayedFleet()
        self.manager = self.new_manager(1)
        self.options = [JobOptions(TASK)]
        self._enqueued = 0

    def new_manager(self, life: int) -> Manager:
        loop = asyncio.get_running_loop()
        return Manager(
            name=f"manager-{'ab'[life - 1]}",
            settings=self.settings,
            store=self.store,
            peer=PlayedPeer(),
            fleet=self.fleet,
            wall=lambda: WALL_START + loop.time(),
            random=Random(life),
            nonce=life.to_bytes(16, "big"),
            node="node",
            pid=life,
        )

    async def lead(self, workers: int = 0) -> asyncio.Task[None]:
        self.fleet.there = {f"w{number}": "default" for number in range(workers)}
        task = asyncio.create_task(self.manager.run())
        while self.manager.role != "leader":  # noqa: ASYNC110 - virtual time makes looking free
            if task.done():
                task.result()
            await asyncio.sleep(0.01)
        return task

    def flight(self, jobs: int) -> bytes:
        """A replica's flight with one batch of W1 jobs."""
        first, self._enqueued = self._enqueued, self._enqueued + jobs
        new = [
            NewJob(uuid_utils.uuid7().bytes, 0, msgspec.json.encode({"args": [argument(number)]}))
            for number in range(first, first + jobs)
        ]
        return encode(c.Flight([c.Enqueue(self.options, new)]))

    async def enqueue(self, jobs: int, loop: CpuLoop | None = None) -> None:
        for start in range(0, jobs, BATCH_JOBS):
            if loop is None:
                flight = self.flight(min(BATCH_JOBS, jobs - start))
            else:
                with loop.played():
                    flight = self.flight(min(BATCH_JOBS, jobs - start))
            reply = await self.manager.handle_flight(flight)
            if start == 0 and not isinstance(_replies.decode(reply).replies[0], c.Accepted):
                raise RuntimeError("the jobs were not taken")


class PlayedWorker:
    """Pulls jobs as `worker.Worker` does, with its prefetch; a job takes so long, and its end is a report."""

    def __init__(
        self, world: World, loop: CpuLoop, name: str, job_seconds: float, call_seconds: float
    ) -> None:
        self._world, self._loop, self._name = world, loop, name
        self._job_seconds, self._call_seconds = job_seconds, call_seconds
        chosen = world.settings
        self._prefetch = Prefetch(chosen.prefetch_seconds, chosen.prefetch_jobs_max, chosen.heartbeat_seconds)
        self._held: deque[tuple[bytes, int]] = deque()
        self._known: set[tuple[bytes, int]] = set()
        self._began = 0.0  # the first of those held
        self.calls = self.finished = 0

    async def run(self) -> None:
        """One call counts at a time; one that only waits for work is overtaken by the next job's end."""
        while True:
            with self._loop.played():
                report = self._report()
                data = encode(report)
            call = asyncio.create_task(self._call(data))
            if report.finished or not self._held:
                await call
                continue
            ends_in = self._began + self._job_seconds - self._loop.time()
            await asyncio.wait({call}, timeout=max(0.0, ends_in))

    async def _call(self, report: bytes) -> None:
        self.calls += 1
        self._loop.charge(self._call_seconds)
        answer = await self._world.manager.report_and_ask(report)
        with self._loop.played():
            self._obey(_orders.decode(answer))

    def _report(self) -> WorkerReport:
        ended = self._ended()
        running_seconds = max(0.0, self._loop.time() - self._began) if self._held else 0.0
        return WorkerReport(
            *(self._name, "session", "default", "node", 1),
            finished=ended,
            holding=list(self._held),
            busy=bool(self._held),
            can_take=self._prefetch.room({TASK: len(self._held)} if self._held else {}, running_seconds),
            wait_seconds=self._world.settings.heartbeat_seconds,
            busy_seconds={TASK: (len(ended), len(ended) * self._job_seconds)} if ended else {},
        )

    def _ended(self) -> list[Finished]:
        ended = []
        now = self._loop.time() + 1e-6
        while self._held and self._began + self._job_seconds <= now:
            job_id, attempt = self._held.popleft()
            at = WALL_START + self._began
            result = Result("json", b"[1000000.123456,200]")
            ended.append(Finished(job_id, attempt, Outcome.SUCCEEDED, at, at + self._job_seconds, result))
            self._began += self._job_seconds
            self._prefetch.ended(TASK, self._job_seconds)
        self.finished += len(ended)
        return ended

    def _obey(self, orders: WorkerOrders) -> None:
        if orders.stale:
            raise RuntimeError("the leader does not know what this worker held")
        tokens = [(grant.job_id, grant.attempt) for grant in orders.grants]
        new = [token for token in tokens if token not in self._known]  # some are granted twice
        if new and not self._held:
            self._began = self._loop.time()
        self._held.extend(new)
        self._known.update(new)


def run(story: Any) -> Any:
    """Run `story(loop)` on a loop of its own, with the collector as in production."""
    loop = CpuLoop()
    try:
        return loop.run_until_complete(story(loop))
    finally:
        loop.finish()
