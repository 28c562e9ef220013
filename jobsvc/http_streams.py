"""Routes that may go on for long: the completion feed, and logs while they are written.

Server-sent events. The feed's event id is the place in it, so a browser that reconnects says by itself
(`Last-Event-ID`) where it was, and misses nothing; the first event comes at once, so that there is a place.
What cannot be told any more gets an event `reset` (`http_feed` has the rules of a reader).

A stream outlives a failover: while nobody leads it says so in a comment and tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from . import commands as c
from .errors import InvalidRequest, Refusal, Refused
from .gateway import Gateway
from .http_feed import cursor_text, feed_document, page_events, place_of
from .http_jobs import SEQ_MAX, json_response
from .http_requests import job_id_of, query_values, wait_seconds, whole_number
from .http_views import encode_json
from .jobs import TERMINAL

STREAMS_MAX = 1_000  # of one replica
FEED_LIMIT_DEFAULT = 1_000
FEED_LIMIT_MAX = 10_000
ALIVE_SECONDS = 10.0  # something is sent at least this often
RETRY_MILLISECONDS = 2_000
LEADERLESS_PAUSE_SECONDS = 1.0
LOG_LOOK_SECONDS = 1.0  # between two looks at a log that is being written
TAIL_LINES_MAX = 1_000_000
EVENT_STREAM = "text/event-stream"


class _Events(StreamingResponse):
    """A stream that is closed as soon as its reader has left, and not when the garbage is collected."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(events, 200, headers, EVENT_STREAM)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


class StreamRoutes:
    """The handlers, over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.open = 0

    # --- the completion feed ---

    async def completions(self, request: Request) -> Response:
        """Finished jobs in order of completion, after a place."""
        values = query_values(request, ("after", "limit", "wait"))
        limit_text = values.get("limit", str(FEED_LIMIT_DEFAULT))
        limit = whole_number("limit", limit_text, 0, FEED_LIMIT_MAX)
        after, store = place_of("after", values.get("after", "0"))
        if wants_events(request):
            last = request.headers.get("last-event-id")
            if last is not None:
                after, store = place_of("Last-Event-ID", last)
            query = c.ReadFeed(after, max(1, limit), store)
            return self.stream(self._feed_events(await self._gateway.get(query, c.FeedPage), after))
        query = c.ReadFeed(after, limit, store)
        page = await self._gateway.wait_feed(query, wait_seconds(request, values))
        return json_response(feed_document(page))

    async def _feed_events(self, page: c.FeedPage, after: int) -> AsyncGenerator[bytes, None]:
        store = page.store
        place = after
        if after < 0:
            place = page.next
        elif page.reset:
            place = 0
        yield event("open", {"oldest": page.oldest, "newest": page.newest}, cursor_text(place, store))
        while True:
            for name, told, event_id in page_events(page):
                yield event(name, told, event_id)
            place, store = page.next, page.store
            try:
                query = c.ReadFeed(place, FEED_LIMIT_DEFAULT, store)
                page = await self._gateway.wait_feed(query, ALIVE_SECONDS)
            except Refused as refused:
                page = c.FeedPage([], place, 0, store=store)
                yield f": {refused.refusal.code}\n\n".encode()
                await asyncio.sleep(LEADERLESS_PAUSE_SECONDS)
                continue
            if not (page.entries or page.holes or page.reset):
                yield b": alive\n\n"

    # --- logs ---

    async def logs(self, request: Request) -> Response:
        """What an attempt has written to stdout and stderr."""
        values = query_values(request, ("attempt", "tail"))
        view = await self._gateway.job(job_id_of(request))
        attempt = _attempt(values, view)
        tail = values.get("tail")
        lines = None if tail is None else whole_number("tail", tail, 0, TAIL_LINES_MAX)
        if wants_events(request):
            return self.stream(self._log_events(view, attempt, lines))
        chunks, _ = await self._gateway.read_log(view, attempt) if attempt else ([], -1)
        data = _last_lines(b"".join(chunks), lines)
        headers = {"Content-Security-Policy": "sandbox", "X-Jobsvc-Attempt": str(attempt)}
        return Response(data, 200, headers, "text/plain; charset=utf-8")

    async def _log_events(
        self, view: c.JobView, attempt: int, lines: int | None
    ) -> AsyncGenerator[bytes, None]:
        """The log so far, then what is added, until the attempt has ended."""
        chunk = -1
        rest = b""  # of a character that is not complete yet
        yield event("open", {"attempt": attempt}, None)
        while True:
            ended = attempt > 0 and (view.attempt != attempt or view.worker is None)
            if not attempt:
                yield b": alive\n\n"
            else:
                chunks, chunk = await self._gateway.read_log(view, attempt, chunk)
                data = rest + _last_lines(b"".join(chunks), lines)
                lines = None
                text, rest = _whole_characters(data, ended)
                yield event("log", {"text": text}, None) if text else b": alive\n\n"
            if ended or view.state in TERMINAL:
                yield event("end", {"attempt": attempt, "state": view.state.value}, None)
                return
            view = await self._look_again(view)
            attempt = attempt or view.attempt

    async def _look_again(self, view: c.JobView) -> c.JobView:
        """The job after a moment, or as soon as it has ended. Across failovers."""
        try:
            return await self._gateway.wait_for_job(view.id, LOG_LOOK_SECONDS)
        except Refused as refused:
            if refused.refusal.code not in ("no_leader", "overloaded"):
                raise
            await asyncio.sleep(LEADERLESS_PAUSE_SECONDS)
            return view

    # --- streams ---

    def stream(self, events: AsyncGenerator[bytes, None]) -> Response:
        """An answer that goes on; refused if too many do."""
        if self.open >= STREAMS_MAX:
            raise Refused(Refusal("overloaded", f"{STREAMS_MAX} streams are open already"))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return _Events(self._counted(events), headers)

    async def _counted(self, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        self.open += 1
        try:
            yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
            async with aclosing(events):
                async for piece in events:
                    yield piece
        finally:
            self.open -= 1


def wants_events(request: Request) -> bool:
    """True if the caller asks for a stream."""
    return EVENT_STREAM in request.headers.get("accept", "")


def event(name: str, document: object, event_id: str | None) -> bytes:
    """One server-sent event. JSON has no raw newlines, so its data is one line."""
    head = f"event: {name}\n" if event_id is None else f"id: {event_id}\nevent: {name}\n"
    return head.encode() + b"data: " + encode_json(document) + b"\n\n"


def _attempt(values: dict[str, str], view: c.JobView) -> int:
    """The attempt that was asked for, or the latest one that has a log; 0 if none has begun."""
    if "attempt" not in values:
        return view.attempt if view.worker is not None or not view.history else view.history[-1].number
    attempt = whole_number("attempt", values["attempt"], 1, SEQ_MAX)
    if attempt > view.attempt:
        raise InvalidRequest(f"has not been yet; the latest is {view.attempt}", "attempt")
    return attempt


def _last_lines(data: bytes, lines: int | None) -> bytes:
    if lines is None:
        return data
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


def _whole_characters(data: bytes, is_all: bool) -> tuple[str, bytes]:
    """The text, and the bytes at its end that may be the beginning of a character."""
    keep = 0
    if not is_all:
        for back in range(1, min(4, len(data) + 1)):
            byte = data[-back]
            if byte >= 0xC0:
                needs = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                keep = back if needs > back else 0
                break
            if byte < 0x80:
                break
    end = len(data) - keep
    return data[:end].decode("utf-8", "replace"), data[end:]
