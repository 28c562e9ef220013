"""What a worker is given: the way to its leader, and whoever runs its jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from .job_frames import HeldBack, JobKey, ReadyJob, RunnerEvent, RunningJob
from .jobs import Outcome, WorkerOrders, WorkerReport
from .service_code import ServiceCode


class LeaderLink(Protocol):
    """The way to whoever leads. The rim finds it, and follows hints."""

    async def report_and_ask(self, report: WorkerReport) -> WorkerOrders:
        """Raises Unavailable when nobody leads or answers."""
        ...


class JobRunner(Protocol):
    """Runs jobs one at a time, in the order they were submitted, each in a way that can be killed."""

    async def start(self) -> None: ...

    def submit(self, jobs: Iterable[ReadyJob]) -> None: ...

    def withdraw(self, keys: set[JobKey]) -> set[JobKey]:
        """Take back jobs that have not started; returns those that will now never start."""
        ...

    def kill(self, key: JobKey, outcome: Outcome) -> bool:
        """End the job if it is the one that runs now. Its JobEnded comes when nothing of it is left."""
        ...

    @property
    def current(self) -> RunningJob | None: ...

    def use_code(self, code: ServiceCode) -> None:
        """Run jobs with this code alone. What runs with other code may end, for a while."""
        ...

    @property
    def held_back(self) -> HeldBack | None:
        """Why it can run nothing now: what is submitted comes back RELEASED. None: it can."""
        ...

    async def next_events(self) -> list[RunnerEvent]:
        """What has happened since the last call; waits for something to happen, `held_back` included."""
        ...

    async def close(self) -> None:
        """Kill what runs and stop. No more events."""
        ...
