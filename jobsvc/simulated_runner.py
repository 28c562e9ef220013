"""A runner without processes: jobs take event-loop time and end as a plan says.

It keeps the contract of `worker_parts.JobRunner`, and runs under virtual time: for the simulation, for tests
of workers, and for trying out what a worker does. A plan is a function from the job to a `Plan`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from .job_frames import HeldBack, JobEnded, JobKey, OutputChunk, ReadyJob, RunnerEvent, RunningJob
from .jobs import ErrorInfo, Outcome
from .service_code import ServiceCode


class Plan(msgspec.Struct, frozen=True):
    """How one run of a job goes."""

    seconds: float = 0.001
    outcome: Outcome = Outcome.SUCCEEDED
    content: str = "json"
    data: bytes = b"null"
    error: ErrorInfo | None = None
    output: bytes = b""
    output_every_seconds: float | None = None  # None: once, at the end
    kill_seconds: float = 0.05  # from a kill to the end of the job


class SimulatedRunner:
    """Runs plans, one job at a time, in order."""

    def __init__(self, plan: Callable[[ReadyJob], Plan], wall: Callable[[], float]) -> None:
        self._plan = plan
        self._wall = wall
        self._queue: deque[ReadyJob] = deque()
        self._work = asyncio.Event()
        self._events: list[RunnerEvent] = []
        self._news = asyncio.Event()
        self._running: RunningJob | None = None
        self._killed: asyncio.Future[Outcome] | None = None
        self._task: asyncio.Task[None] | None = None
        self.started: list[JobKey] = []  # every attempt that ever ran here, in order
        self.code: ServiceCode | None = None
        self._held_back: HeldBack | None = None
        self._ability_changed = False

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="simulated runner")
        self._task.add_done_callback(lambda task: self._news.set())

    def submit(self, jobs: Iterable[ReadyJob]) -> None:
        self._queue.extend(jobs)
        if self._held_back is not None:
            self._give_back()
        if self._queue:
            self._work.set()

    def withdraw(self, keys: set[JobKey]) -> set[JobKey]:
        taken = {job.key for job in self._queue if job.key in keys}
        self._queue = deque(job for job in self._queue if job.key not in taken)
        return taken

    def kill(self, key: JobKey, outcome: Outcome) -> bool:
        running = self._running
        if running is None or (running.job_id, running.attempt) != key:
            return False
        if self._killed is None or self._killed.done():
            return False
        self._killed.set_result(outcome)
        return True

    @property
    def current(self) -> RunningJob | None:
        return self._running

    def use_code(self, code: ServiceCode) -> None:
        """Plans are the same in all code."""
        self.code = code

    @property
    def held_back(self) -> HeldBack | None:
        return self._held_back

    def hold_back(self, why: str | None) -> None:
        """From now on nothing can run, as if no process could import its tasks; None: it can again."""
        since = self._held_back.since if self._held_back is not None else self._wall()
        self._held_back = HeldBack(why, since) if why is not None else None
        self._give_back()

    def _give_back(self) -> None:
        for job in self._queue:
            now = self._wall()
            self._events.append(JobEnded(job.job_id, job.attempt, Outcome.RELEASED, now, now, 0.0))
        self._queue.clear()
        self._ability_changed = True
        self._news.set()

    async def next_events(self) -> list[RunnerEvent]:
        if not self._events and not self._ability_changed:
            self._news.clear()
            await self._news.wait()
            if self._task is not None and self._task.done() and not self._task.cancelled():
                self._task.result()  # a plan has failed: so does whoever listens
        self._ability_changed = False
        events, self._events = self._events, []
        return events

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._work.clear()
                await self._work.wait()
                continue
            await self._run_job(self._queue.popleft())

    async def _until_ended(self, job: ReadyJob, plan: Plan, until: float) -> None:
        """Until the time, or a kill; prints meanwhile if the plan says so."""
        loop = asyncio.get_running_loop()
        assert self._killed is not None
        every = plan.output_every_seconds
        while every is not None and loop.time() + every < until and not self._killed.done():
            await asyncio.wait([self._killed], timeout=every)
            self._events.append(OutputChunk(job.job_id, job.attempt, plan.output))
            self._news.set()
        await asyncio.wait([self._killed], timeout=until - loop.time())

    async def _run_job(self, job: ReadyJob) -> None:
        loop = asyncio.get_running_loop()
        plan = self._plan(job)
        started_at, started = self._wall(), loop.time()
        self._running = RunningJob(job.job_id, job.attempt, job.task, started)
        self.started.append(job.key)
        self._killed = loop.create_future()
        limit = job.timeout_seconds if job.timeout_seconds is not None else float("inf")
        overtime, seconds = plan.seconds > limit, min(plan.seconds, limit)
        await self._until_ended(job, plan, loop.time() + seconds)
        outcome, error = plan.outcome, plan.error
        content, data = plan.content, plan.data
        if self._killed.done():
            outcome, error, data = self._killed.result(), None, b""
            await asyncio.sleep(plan.kill_seconds)
        elif overtime:
            outcome, error, data = Outcome.TIMED_OUT, ErrorInfo("TimedOut", "the job ran too long"), b""
        elif outcome is not Outcome.SUCCEEDED:
            data = b""
        self._running = None
        if plan.output and plan.output_every_seconds is None:
            self._events.append(OutputChunk(job.job_id, job.attempt, plan.output))
        spent = loop.time() - started
        self._events.append(
            JobEnded(job.job_id, job.attempt, outcome, started_at, self._wall(), spent, content, data, error)
        )
        self._news.set()
