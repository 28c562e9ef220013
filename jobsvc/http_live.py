"""Live: one stream that tells in a few lines how the service is, and the history behind it.

A summary is made of what the managers say of themselves, so it goes on while nobody leads and then says so.
It costs no write. One task in a replica makes it, once a second, for all who look; who reads slowly gets the
newest one and not a queue of old ones. A summary is a hint: when `changed` is another number, who shows lists
reads them again. It stays the same over idle records: a read makes the leader prove itself by such a record,
so whoever read after each of them would read for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from . import commands as c
from .gateway import Gateway
from .http_clock import Time, optional_time, time_text
from .http_jobs import json_response
from .http_requests import query_values, seconds_number
from .http_streams import StreamRoutes, event, wants_events
from .http_views import (
    CommitDocument,
    ManagerDocument,
    PoolDocument,
    StateName,
    WorkersDocument,
    status_document,
    workers_document,
)
from .manager_status import leader_of
from .metrics import version
from .settings import Settings

SUMMARY_SECONDS = 1.0
LEADERLESS_SECONDS = 0.25
COMMIT_AGE_MAX_SECONDS = 10.0
HISTORY_SECONDS = 3_600.0
HISTORY_SECONDS_MAX = 3 * 86_400.0
COLUMNS = tuple(field.name for field in msgspec.structs.fields(c.HistoryPoint))

_log = logging.getLogger("jobsvc.http")


class SummaryDocument(msgspec.Struct, kw_only=True):
    """The service at one look."""

    service: str
    version: str
    now: Time
    ready: bool
    problem: str | None
    leader: str | None
    epoch: int
    changed: Annotated[int, Meta(description="another number after jobs or queues have changed")]
    records: Annotated[int, Meta(description="of the journal so far")]
    takeover_seconds: Annotated[float | None, Meta(description="how long nobody led before this leader")]
    managers: list[ManagerDocument]
    commits: CommitDocument
    counts: Annotated[
        dict[StateName, int] | None,
        Meta(description="null: no manager that knows them answered; so the rest"),
    ]
    oldest_queued_at: Time | None
    oldest_queue: str | None
    paused: Annotated[list[str], Meta(description="paused queues, a few of them")]
    paused_queued: Annotated[int, Meta(description="jobs that wait in paused queues")]
    failure_groups: int
    enqueued_per_second: Annotated[float, Meta(description="over the last minute, as the others")]
    finished_per_second: float
    failed_per_second: float
    workers: Annotated[dict[str, int] | None, Meta(description="by state; null while nobody leads")]
    pools: list[PoolDocument]
    ray_dashboard_url: str | None
    warnings: Annotated[list[str], Meta(description="of clocks, and of jobs that wait in vain")]


class TakeoverDocument(msgspec.Struct):
    epoch: int
    at: Time


class HistoryDocument(msgspec.Struct):
    """How the service went. Rows of `points` are in the order of `columns`; times are seconds since 1970.

    `enqueued`, `finished` and `failed` are running totals. As the leader's process saw it, since it began."""

    now: Time
    step_seconds: float
    columns: list[str]
    points: list[list[float]]
    takeovers: list[TakeoverDocument]


class Summaries:
    """The latest summary, made anew for as long as somebody looks."""

    def __init__(self, gateway: Gateway, settings: Settings, ray_dashboard_url: str | None) -> None:
        self._gateway = gateway
        self._settings = settings
        self._ray_dashboard_url = ray_dashboard_url
        self._commit_age_max = max(COMMIT_AGE_MAX_SECONDS, 2.5 * settings.idle_record_seconds)
        self._next: asyncio.Future[SummaryDocument] | None = None
        self._looking = 0
        self._task: asyncio.Task[None] | None = None

    async def read(self) -> SummaryDocument:
        """As it is now."""
        statuses = await self._gateway.statuses()
        return summary_document(
            self._settings.service,
            self._gateway.wall(),
            statuses,
            self._commit_age_max,
            self._ray_dashboard_url,
        )

    async def follow(self) -> AsyncGenerator[SummaryDocument, None]:
        """One at once, then each new one."""
        self._looking += 1
        try:
            yield await self.read()
            while True:
                if self._task is None or self._task.done():
                    self._task = asyncio.get_running_loop().create_task(self._make(), name="summaries")
                if self._next is None or self._next.done():
                    self._next = asyncio.get_running_loop().create_future()
                yield await asyncio.shield(self._next)
        finally:
            self._looking -= 1

    async def _make(self) -> None:
        while self._looking:
            ready = False
            try:
                summary = await self.read()
                ready = summary.ready
                if self._next is not None and not self._next.done():
                    self._next.set_result(summary)
            except Exception:  # whoever looks sees that nothing comes; the next one may
                _log.exception("no summary could be made")
            await asyncio.sleep(SUMMARY_SECONDS if ready else LEADERLESS_SECONDS)


class LiveRoutes:
    """The handlers, over one gateway."""

    def __init__(
        self, gateway: Gateway, settings: Settings, streams: StreamRoutes, ray_dashboard_url: str | None
    ) -> None:
        self._gateway = gateway
        self._streams = streams
        self._summaries = Summaries(gateway, settings, ray_dashboard_url)

    async def events(self, request: Request) -> Response:
        """Summaries as events, or one as JSON."""
        query_values(request, ())
        if wants_events(request):
            return self._streams.stream(self._events())
        return json_response(await self._summaries.read())

    async def _events(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._summaries.follow()) as summaries:
            async for summary in summaries:
                yield event("summary", summary, None)

    async def history(self, request: Request) -> Response:
        """How the service went."""
        values = query_values(request, ("seconds",))
        seconds = HISTORY_SECONDS
        if "seconds" in values:
            seconds = seconds_number("seconds", values["seconds"], HISTORY_SECONDS_MAX)
        history = await self._gateway.get(c.GetHistory(seconds), c.History)
        return json_response(history_document(history))


def summary_document(
    service: str,
    now: float,
    statuses: list[c.ManagerStatus],
    commit_age_max: float,
    ray_dashboard_url: str | None,
) -> SummaryDocument:
    status = status_document(service, now, statuses, None, commit_age_max, ray_dashboard_url)
    leader = leader_of(statuses)
    knowing = [each for each in statuses if each.role != "recovering"]  # which has read only part of the log
    best = leader or max(knowing, key=lambda each: each.applied_records, default=None)
    pulse = best.pulse if best is not None else None
    if pulse is None:
        pulse = c.Pulse(now, None, None, [], 0, 0, 0.0, 0.0, 0.0)
    return SummaryDocument(
        service=service,
        version=version(),
        now=status.now,
        ready=status.ready,
        problem=status.problem,
        leader=status.leader,
        epoch=status.epoch,
        changed=pulse.mark,
        records=best.applied_records if best is not None else 0,
        takeover_seconds=leader.takeover_seconds if leader is not None else None,
        managers=status.managers,
        commits=status.commits,
        counts=None if best is None else status.counts,  # type: ignore[arg-type]
        oldest_queued_at=optional_time(pulse.oldest_queued_at),
        oldest_queue=pulse.oldest_queue,
        paused=pulse.paused,
        paused_queued=pulse.paused_queued,
        failure_groups=pulse.failure_groups,
        enqueued_per_second=round(pulse.enqueued_per_second, 3),
        finished_per_second=round(pulse.finished_per_second, 3),
        failed_per_second=round(pulse.failed_per_second, 3),
        workers=pulse.workers if leader is not None else None,
        pools=_pools(pulse),
        ray_dashboard_url=ray_dashboard_url,
        warnings=[*(status.clock.warnings if status.clock is not None else ()), *status.unserved],
    )


def _pools(pulse: c.Pulse) -> list[PoolDocument]:
    document: WorkersDocument = workers_document(c.Workers([], pulse.pools))
    return document.pools


def history_document(history: c.History) -> HistoryDocument:
    points = [[round(getattr(point, name), 3) for name in COLUMNS] for point in history.points]
    takeovers = [TakeoverDocument(each.epoch, time_text(each.at)) for each in history.takeovers]
    return HistoryDocument(time_text(history.now), history.step_seconds, list(COLUMNS), points, takeovers)
