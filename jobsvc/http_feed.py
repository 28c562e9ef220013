"""The completion feed over HTTP: its documents, its cursors, its events.

A cursor is a place and the store that it is of, `50.3f9a0c11d2e7`; callers keep it as it is. A place alone is
taken too, and then nobody can see that it is of another store, unless it lies beyond the end.

Rules of a reader
-----------------
1. Keep `cursor` of the page, or the id of the event, and go on from there. Where nothing else is said, every
   job that ended up to that place has been told.
2. `truncated`, or an event `reset`: something was passed that is told no more. Look at the jobs that you wait
   for by id, or list them again; then go on from the cursor as ever.
3. Why: `holes` name places whose jobs were retired before you came. `reset` says that your place was none of
   this feed, because it is beyond its end (`ahead`) or of another store (`other_store`); the page that says
   so begins at the beginning of what this feed keeps, so that what follows is all there is.

A job that was put back leaves its place, and that is no hole: it ends again, at a later one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from . import commands as c
from .errors import InvalidRequest
from .http_clock import Time, time_text
from .http_views import AnyJson, ErrorDocument, Id, StateName, error_document, small_value
from .jobs import id_text

CURSOR_PATTERN = r"^(-1|[0-9]{1,18})(\.[0-9a-f]{12})?$"

_cursor = re.compile(CURSOR_PATTERN[1:-1]).fullmatch


class CompletionDocument(msgspec.Struct):
    """A job that has ended. `seq` is its place in the feed."""

    seq: int
    id: Id
    state: StateName
    task: str
    batch: str | None
    finished_at: Time
    error: ErrorDocument | None
    result: Annotated[AnyJson, Meta(description="there if it is JSON and small")] | UnsetType = UNSET


class FeedDocument(msgspec.Struct):
    """Part of the completion feed. Read on with `after=cursor`, or `after=next`."""

    entries: list[CompletionDocument]
    next: int
    oldest: Annotated[int, Meta(description="the first place that is still kept")]
    newest: Annotated[int, Meta(description="the last place given so far")]
    truncated: Annotated[bool, Meta(description="something was passed that is told no more")]
    cursor: Annotated[str, Meta(description="`next`, and the store that it is of; `after` takes it")]
    holes: Annotated[
        list[tuple[int, int]], Meta(description="first and last places of jobs that were retired before")
    ]
    reset: Annotated[
        Literal["ahead", "other_store"] | None,
        Meta(description="`after` is no place of this feed, which is therefore told from its beginning"),
    ]


def completion_document(entry: c.FeedEntry) -> CompletionDocument:
    value = small_value(entry.result)
    return CompletionDocument(
        entry.seq,
        id_text(entry.id),
        entry.state.value,
        entry.task,
        entry.batch,
        time_text(entry.finished_at),
        error_document(entry.error, short=True),
        UNSET if value is None else value,
    )


def feed_document(page: c.FeedPage) -> FeedDocument:
    return FeedDocument(
        [completion_document(entry) for entry in page.entries],
        page.next,
        page.oldest,
        page.newest,
        bool(page.holes or page.reset),
        cursor_text(page.next, page.store),
        page.holes,
        page.reset,  # type: ignore[arg-type]
    )


def cursor_text(place: int, store: str) -> str:
    return f"{place}.{store}" if store else str(place)


def place_of(name: str, text: str) -> tuple[int, str]:
    """The place and the store, if it says one, of a cursor. Raises InvalidRequest."""
    match = _cursor(text)
    if match is None:
        raise InvalidRequest("must be the cursor of a page, a whole number, or -1 for the end", name)
    return int(match[1]), (match[2] or "").removeprefix(".")


def page_events(page: c.FeedPage) -> Iterator[tuple[str, object, str]]:
    """Name, data and id of the events that tell a page, in the order of its places."""
    if page.reset:
        yield "reset", {"oldest": page.oldest, "reason": page.reset}, cursor_text(0, page.store)
    holes = iter([] if page.reset else page.holes)
    hole = next(holes, None)
    for entry in page.entries:
        if hole is not None and hole[0] < entry.seq:
            yield _hole_event(page, hole)
            hole = next(holes, None)
        yield "completion", completion_document(entry), cursor_text(entry.seq, page.store)
    if hole is not None:
        yield _hole_event(page, hole)


def _hole_event(page: c.FeedPage, hole: tuple[int, int]) -> tuple[str, object, str]:
    first, last = hole
    told = {"oldest": page.oldest, "reason": "retired", "first": first, "last": last}
    return "reset", told, cursor_text(last, page.store)
