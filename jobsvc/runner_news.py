"""What a runner has to say to its worker: ends of jobs, their output, and whether it can run any."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .code_calls import says_its_python
from .job_deaths import code_error
from .job_frames import EndFrame, JobEnded, OutputChunk, ReadyJob, RunnerEvent
from .jobs import TASK_UNKNOWN, ErrorInfo, Outcome

_DEFECTS = ("SIGSEGV", "SIGILL", "SIGBUS", "SIGABRT", "SIGFPE")  # what bytecode of another Python ends in


class RunnerNews:
    """Kept in order until the worker asks for it."""

    def __init__(self) -> None:
        self._events: list[RunnerEvent] = []
        self._news = asyncio.Event()
        self._ability_changed = False
        self._defect: BaseException | None = None

    async def next(self) -> list[RunnerEvent]:
        """What has happened since the last call; waits until something has. Raises a defect."""
        if not self._events and self._defect is None and not self._ability_changed:
            self._news.clear()
            await self._news.wait()
        if self._defect is not None:
            raise self._defect
        self._ability_changed = False
        events, self._events = self._events, []
        return events

    def ability_changed(self) -> None:
        """The runner can run nothing any more, or can again, or says something else of it."""
        self._ability_changed = True
        self._news.set()

    def defect(self, error: BaseException) -> None:
        self._defect = error
        self._news.set()

    def output(self, job: ReadyJob, data: bytes) -> None:
        if data:
            self._events.append(OutputChunk(job.job_id, job.attempt, data))
            self._news.set()

    def given_back(self, jobs: Iterable[ReadyJob], now: float) -> None:
        """None of these has run here."""
        for job in jobs:
            self._events.append(JobEnded(job.job_id, job.attempt, Outcome.RELEASED, now, now, 0.0))
        self._news.set()

    def ended(
        self, job: ReadyJob, end: EndFrame, output: bytes, killed: tuple[Outcome, ErrorInfo | None] | None
    ) -> None:
        """It ended by itself. `killed`: or because it was told to, which it may have turned into an error."""
        outcome = Outcome.SUCCEEDED if end.error is None else Outcome.RAISED
        error, final, ended_at = end.error, end.final, end.ended_at
        if error is not None and error.type == TASK_UNKNOWN:
            outcome, ended_at = Outcome.RELEASED, end.started_at  # nothing of it has run
        elif killed is not None and outcome is Outcome.RAISED:
            (outcome, error), final = killed, False
        self.output(job, output)
        self._events.append(
            JobEnded(
                job.job_id,
                job.attempt,
                outcome,
                end.started_at,
                ended_at,
                end.seconds,
                end.content,
                end.data,
                error,
                final,
            )
        )
        self._news.set()

    def died(
        self, job: ReadyJob, outcome: Outcome, error: ErrorInfo | None, began_at: float, ended_at: float
    ) -> None:
        """Its process is gone."""
        seconds = ended_at - began_at
        final = job.content == "pickle" and not says_its_python(job.payload)
        final = final and error is not None and error.signal in _DEFECTS
        if final and error is not None:
            error = code_error(error)
        self._events.append(
            JobEnded(job.job_id, job.attempt, outcome, began_at, ended_at, seconds, error=error, final=final)
        )
        self._news.set()
