"""The completion feed as the client reads it: pages, and what a reader makes of them.

A reader keeps the cursor of what it has seen and goes on from there. Up to that place it has seen every job
that ended, or it was told (`http_feed` has the rules): a page says where it passes jobs that had been
retired, or that the place is none of this feed. Nothing here talks to the service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .errors import CompletionsLost


class FeedItem(msgspec.Struct):
    """A finished job, as the completion feed tells it. `result` is there if it is JSON and small."""

    seq: int
    id: str
    state: str
    task: str
    finished_at: str | None = None
    batch: str | None = None
    error: dict[str, Any] | None = None
    result: Any | UnsetType = UNSET
    cursor: str = ""  # of this place, to go on from


class FeedPage(msgspec.Struct):
    """A part of the completion feed. Go on from `cursor`.

    `truncated`: something was passed that the feed tells no more. `holes` are the first and last places of
    jobs that had been retired; `reset` says that the place was none of this feed: beyond its end, or of
    another store. Such a page begins at the beginning of what is kept.
    """

    entries: list[FeedItem]
    next: int
    oldest: int = 1
    newest: int = 0
    truncated: bool = False
    cursor: str = ""
    holes: list[tuple[int, int]] = []
    reset: str | None = None


decode_page = msgspec.json.Decoder(FeedPage).decode


def place_and_store(cursor: int | str) -> tuple[int, str]:
    """The place, and the store if it says one."""
    place, _, store = str(cursor).partition(".")
    return int(place), store


def read_on(read: Callable[[int | str], FeedPage], after: int | str, *, follow: bool) -> Iterator[FeedItem]:
    """The entries after a place, page by page; to the present end, or for ever. Raises CompletionsLost.

    Whoever begins at 0 asks for what is kept, and no more: what was lost before that first page is no news.
    """
    is_kept_only = str(after).partition(".")[0] == "0"
    known_lost: int | None = None
    while True:
        page = read(after)
        if known_lost is None:
            known_lost = page.newest if is_kept_only else 0
        yield from _told(page, known_lost)
        after = page.cursor or page.next
        if not follow and page.next >= page.newest:
            return


def _told(page: FeedPage, known_lost: int) -> Iterator[FeedItem]:
    """What a page tells, in the order of its places, up to the first loss that is news."""
    _, dot, store = page.cursor.partition(".")
    if page.reset:
        words = {"ahead": "is beyond the end of the feed", "other_store": "is of another store"}
        detail = f"the place {words.get(page.reset, page.reset)}: what has ended since it is not known"
        raise CompletionsLost(detail, f"0{dot}{store}")
    holes = page.holes
    if page.truncated and not holes:  # a service of version 0.1 tells only that the beginning is missing
        holes = [(1, max(1, page.oldest - 1))]
    holes = [hole for hole in holes if hole[1] > known_lost]
    for entry in page.entries:
        if holes and holes[0][0] < entry.seq:
            break
        entry.cursor = f"{entry.seq}{dot}{store}"
        yield entry
    if holes:
        first, last = holes[0]
        detail = f"places {first} to {last} of the feed were of jobs that have passed their retention"
        raise CompletionsLost(detail, f"{last}{dot}{store}")
