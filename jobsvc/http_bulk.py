"""Routes for many jobs at once: cancel or retry all that match, and failures by what went wrong.

An action on all that match is work in slices: each request does as much as it can in about a second and
answers with a cursor; whoever asked goes on with it until there is none, and can show how far it is, or stop.
So nothing runs on behalf of somebody who has gone, and a failover in between changes nothing.

`dry_run` counts and changes nothing. Its answer's `top` is above every job there was then: sent back as
`cursor` it leaves alone what came after the count. A filter must say something: there is no "all" by default.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from . import commands as c
from .errors import InvalidRequest, Refusal, Refused
from .gateway import Gateway
from .http_clock import Time, time_text
from .http_errors import cut
from .http_jobs import PAGE_MAX, SEQ_MAX, json_response
from .http_requests import Bodies, content_kind, key_and_fingerprint, query_values, whole_number
from .http_views import SHORT_TEXT, Id, StateName
from .jobs import State, id_text

WORK_SECONDS = 1.0  # of one request; a slice more
SLICE_JOBS = 1_000
GROUPS_DEFAULT = 50

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class BulkRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which jobs. At least one of the filters must be set; a job must fit all that are."""

    state: StateName | None = None
    queue: Name | None = None
    task: Name | None = None
    batch: Name | None = None
    failure: Annotated[Name | None, Meta(description="fingerprint of a group of failures")] = None
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,18}$")] | None = None
    dry_run: Annotated[bool, Meta(description="count, and change nothing")] = False


class BulkDocument(msgspec.Struct):
    """What a request for many jobs has done, or would do."""

    action: str
    dry_run: bool
    count: Annotated[int, Meta(description="jobs changed by this request, or that would be")]
    cursor: Annotated[str | None, Meta(description="send it again with this; null: all is done")]
    top: Annotated[str, Meta(description="a cursor above every job that there is now")]
    ids: Annotated[list[Id], Meta(description="the first few")]


class FailureGroupDocument(msgspec.Struct):
    """Failed jobs of one kind; texts and `latest_id` are those of the latest one."""

    fingerprint: str
    task: str
    type: str
    message: str
    place: Annotated[str, Meta(description="last frame of the traceback, without the line")]
    count: int
    first_at: Time
    last_at: Time
    latest_id: Id


class FailuresDocument(msgspec.Struct):
    groups: Annotated[list[FailureGroupDocument], Meta(description="the largest first")]
    groups_total: int
    jobs: Annotated[int, Meta(description="failed jobs, of all groups")]
    now: Time


_request = msgspec.json.Decoder(BulkRequest)


class BulkRoutes:
    """The handlers, over one gateway."""

    def __init__(self, gateway: Gateway, bodies: Bodies) -> None:
        self._gateway = gateway
        self._bodies = bodies

    async def cancel_matching(self, request: Request) -> Response:
        """Cancel all jobs that match."""
        return await self._change(request, "cancel")

    async def retry_matching(self, request: Request) -> Response:
        """Put all failed or cancelled jobs back that match."""
        return await self._change(request, "retry")

    async def failures(self, request: Request) -> Response:
        """Groups of failed jobs."""
        values = query_values(request, ("limit",))
        limit = whole_number("limit", values.get("limit", str(GROUPS_DEFAULT)), 1, PAGE_MAX)
        return json_response(failures_document(await self._gateway.get(c.GetFailures(limit), c.Failures)))

    async def _change(self, request: Request, action: str) -> Response:
        query_values(request, ())
        if content_kind(request) != "json":
            raise Refused(Refusal("unsupported_type", "send application/json", "Content-Type"))
        body = await self._bodies.read(request)
        asked = _decoded(body)
        key, fingerprint = await key_and_fingerprint(request, body)
        where = selection(asked)
        before = None if asked.cursor is None else whole_number("cursor", asked.cursor, 0, SEQ_MAX)
        done = c.Matched(0, before, 0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            if asked.dry_run:
                matched = await self._gateway.get(c.CountMatching(action, where, done.before), c.Matched)
            else:
                # one key for each slice: the same request again is answered slice by slice as before
                own = None if key is None else f"{key}/{done.before}"
                command = c.ChangeMatching(action, where, done.before, SLICE_JOBS, own, fingerprint)
                matched = await self._gateway.get(command, c.Matched)
            done.count += matched.count
            done.ids = done.ids or matched.ids
            done.top = done.top or matched.top
            done.before = matched.before
            if done.before is None or (not asked.dry_run and loop.time() - began > WORK_SECONDS):
                return json_response(bulk_document(action, asked.dry_run, done))


def _decoded(body: bytes) -> BulkRequest:
    try:
        return _request.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(cut(str(error)), "body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(cut(f"is not valid JSON: {error}"), "body") from error


def selection(asked: BulkRequest) -> c.Selection:
    """What a request means. Raises InvalidRequest if it means everything."""
    if not any((asked.state, asked.queue, asked.task, asked.batch, asked.failure)):
        raise InvalidRequest("must say which jobs: state, queue, task, batch or failure", "body")
    state = None if asked.state is None else State(asked.state)
    return c.Selection(state, asked.queue, asked.task, asked.batch, asked.failure)


def bulk_document(action: str, dry_run: bool, done: c.Matched) -> BulkDocument:
    cursor = None if done.before is None else str(done.before)
    return BulkDocument(
        action, dry_run, done.count, cursor, str(done.top), [id_text(each) for each in done.ids]
    )


def failures_document(failures: c.Failures) -> FailuresDocument:
    groups = [
        FailureGroupDocument(
            group.fingerprint,
            group.task,
            group.type,
            cut(group.message, SHORT_TEXT),
            group.place,
            group.count,
            time_text(group.first_at),
            time_text(group.last_at),
            id_text(group.latest),
        )
        for group in failures.groups
    ]
    return FailuresDocument(groups, failures.groups_total, failures.jobs, time_text(failures.now))
