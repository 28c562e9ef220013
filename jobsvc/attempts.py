"""Attempts in a worker's hands: leases it holds, and reports that no leader has settled yet."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from .job_frames import JobEnded, JobKey, ReadyJob
from .jobs import BlobRef, ErrorInfo, Finished, Grant, JobOptions, Outcome, Result, id_text
from .worker_objects import AttemptLog, WorkerObjects

_log = logging.getLogger(__name__)

SETTLED_MAX = 10_000  # remembered, in case an overtaken answer grants one of them once more


class HeldAttempt:
    """A lease that the worker has and has not reported."""

    __slots__ = ("forgotten", "grant", "log", "options", "submitted")

    def __init__(self, grant: Grant, options: JobOptions) -> None:
        self.grant = grant
        self.options = options
        self.submitted = False  # the runner has it
        self.forgotten = False  # the leader wants no report of it
        self.log: AttemptLog | None = None

    @property
    def key(self) -> JobKey:
        return (self.grant.job_id, self.grant.attempt)

    @property
    def task(self) -> str:
        return self.options.task

    @property
    def ref(self) -> BlobRef | None:
        """Where its payload is to be fetched, if it is not at hand."""
        payload = self.grant.payload
        return payload if isinstance(payload, BlobRef) else None

    @property
    def inline_payload(self) -> bytes:
        payload = self.grant.payload
        assert isinstance(payload, bytes)
        return payload

    def ready(self, payload: bytes) -> ReadyJob:
        """The job as a runner takes it; it counts as handed over."""
        self.submitted = True
        options = self.options
        return ReadyJob(*self.key, options.task, options.content, payload, options.timeout_seconds)

    def finished(
        self, outcome: Outcome, started_at: float, ended_at: float, error: ErrorInfo | None = None
    ) -> Finished:
        """The report of an attempt that the runner has nothing to say about."""
        return Finished(*self.key, outcome, started_at, ended_at, error=error)


def inline_result(ended: JobEnded) -> Result | None:
    return Result(ended.content, ended.data) if ended.outcome is Outcome.SUCCEEDED else None


def finished_report(
    ended: JobEnded, result: Result | None, log_bytes: int = 0, log: BlobRef | None = None
) -> Finished:
    """The report of an attempt that ran."""
    return Finished(
        ended.job_id,
        ended.attempt,
        ended.outcome,
        ended.started_at,
        ended.ended_at,
        result,
        ended.error,
        log_bytes,
        log,
        ended.final,
    )


def _log_bad_end(finished: Finished) -> None:
    error = finished.error
    what = f"{error.type}: {error.message}" if error is not None else "no error was given"
    fields = {"job_id": id_text(finished.job_id), "attempt": finished.attempt}
    _log.warning("an attempt ended as %s: %s", finished.outcome.value, what, extra=fields)


class _Unsettled:
    """A report, since when it waits, and whether the outbox has it."""

    __slots__ = ("finished", "in_outbox", "since")

    def __init__(self, finished: Finished, since: float) -> None:
        self.finished = finished
        self.since = since
        self.in_outbox = False


class UnsettledReports:
    """Reports of one worker, from the moment they are ready until a leader's answer settles them."""

    def __init__(self, worker: str, session: str, objects: WorkerObjects) -> None:
        self._worker = worker
        self._session = session
        self._objects = objects
        self._reports: dict[JobKey, _Unsettled] = {}
        self._settled: OrderedDict[JobKey, None] = OrderedDict()
        self._turn = asyncio.Lock()
        self.due = float("inf")  # when they should be sent; those that are on their way do not count
        self.outbox_objects = 0

    def __len__(self) -> int:
        return len(self._reports)

    def __contains__(self, key: JobKey) -> bool:
        """Also true of attempts that were settled or dropped a short while ago."""
        return key in self._reports or key in self._settled

    def add(self, finished: Finished, now: float, gather_seconds: float) -> None:
        """To be sent within `gather_seconds`, together with what ends until then."""
        if finished.outcome not in (Outcome.SUCCEEDED, Outcome.RELEASED):
            _log_bad_end(finished)
        self.due = min(self.due, now + gather_seconds)
        self._reports[finished.job_id, finished.attempt] = _Unsettled(finished, now)

    def to_send(self) -> list[Finished]:
        """All of them, for a call that leaves now. If it fails, say so with `not_sent`."""
        self.due = float("inf")
        return [each.finished for each in self._reports.values()]

    def not_sent(self) -> None:
        if self._reports:
            self.due = 0.0

    def settle(self, finished: list[Finished]) -> None:
        """A leader has answered for these."""
        for each in finished:
            key = (each.job_id, each.attempt)
            self._reports.pop(key, None)
            self.remember(key)

    def remember(self, key: JobKey) -> None:
        """No leader will want to hear of this attempt again."""
        self._settled[key] = None
        while len(self._settled) > SETTLED_MAX:
            self._settled.popitem(last=False)  # a dict would look for its first item ever longer

    @property
    def outside_outbox(self) -> int:
        return sum(not each.in_outbox for each in self._reports.values())

    def overdue(self, now: float, patience_seconds: float) -> bool:
        """Some report has waited so long that the outbox should have it."""
        reports = self._reports.values()
        return any(not each.in_outbox and now - each.since >= patience_seconds for each in reports)

    async def write_outbox(self, patience_seconds: float) -> None:
        """Put every report that the outbox does not have there, once, in one object."""
        async with self._turn:
            unwritten = [each for each in self._reports.values() if not each.in_outbox]
            if not unwritten:
                return
            number = self.outbox_objects
            self.outbox_objects += 1  # also if it fails: the object may still appear
            reports = [each.finished for each in unwritten]
            if await self._objects.put_outbox(self._worker, self._session, number, reports, patience_seconds):
                for each in unwritten:
                    each.in_outbox = True
