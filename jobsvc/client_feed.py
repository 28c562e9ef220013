"""The completion feed as the client reads it: pages, and what a reader makes of them.

A reader keeps the cursor of what it has seen and goes on from there. Up to that place it has seen every job
that ended, or it was told (`http_feed` has the rules): a page says where it passes jobs that had been
retired, or that the place is none of this feed. `read_on` is a reader of everything, `Ends` one who waits for
certain jobs. As in `client_core`, all of it is values, and whoever drives a talk does what it says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from .client_core import TERMINAL_STATES, Pause, Request, Talk, Talks, Together, Wait, job_path
from .errors import CompletionsLost, Refused

FEED_PAGE = 5_000
FORGOTTEN = frozenset({"unknown_job", "expired_job"})  # what the service refuses because it was long ago
EXPIRED = "expired"  # what a set calls a job that ended longer ago than the service remembers
# Before the next page of the feed, so that many jobs that end fast come in few requests: a part of the time
# that the rest of a set will take at its present pace; when all is of others, by how much there was.
PAUSE_PART = 0.1
PAUSE_SECONDS_MAX = 0.1
PAUSE_PER_ENTRY_SECONDS = 0.0005
PAUSE_PER_ASKED_SECONDS = 0.002  # about as long as asking takes


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


_decode_page = msgspec.json.Decoder(FeedPage).decode


def read_page(
    talks: Talks, after: int | str, wait_seconds: float, limit: int, now: float, wait: Wait | None = None
) -> Talk[tuple[FeedPage, float]]:
    """One page of the feed, and when it came."""
    params = {"after": after, "wait": round(wait_seconds, 3), "limit": limit}
    request = Request("GET", "/v1/completions", params=params, wait_seconds=wait_seconds)
    answer, now = yield from talks.exchange(request, now, wait)
    return _decode_page(answer.content), now


# --- a reader of everything -----------------------------------------------------------------------------


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


# --- a reader who waits for certain jobs ----------------------------------------------------------------


class News(NamedTuple):
    """What was read after a place, and who has ended of those of whom the feed may tell no more."""

    after: int | str
    page: FeedPage
    ended: list[FeedItem]
    at: float


class Ends:
    """Which of some jobs have ended, as far as it is known; what is asked next, and what an answer means.

    Several may read at once; who comes second with the same page changes nothing. Whoever calls `take`,
    `add` or `reopen` holds a lock for so long. `tell` is called with each job that has ended.
    """

    def __init__(
        self, ids: Sequence[str], after: int | str, now: float, tell: Callable[[FeedItem], None]
    ) -> None:
        self.ids = ids
        self.after = after
        self.open = set(ids)
        self.ended: dict[str, FeedItem] = {}
        self.order: list[str | None] = []  # of those that have ended, as they did; None: it was put back
        self.states: Counter[str] = Counter()
        self._tell = tell
        self._next_read, self._read_at = now, now
        self._has_missed, self._next_ask = False, now

    def mend(self) -> None:
        """Make it whole, if somebody who changed it is gone in the midst of that."""
        self.order = [job_id if job_id in self.ended else None for job_id in self.order]
        given = set(self.order)
        self.order += [job_id for job_id in self.ended if job_id not in given]
        self.open = {job_id for job_id in self.ids if job_id not in self.ended}
        self.states = Counter(entry.state for entry in self.ended.values())

    def counts(self) -> dict[str, int]:
        return {"open": len(self.open), **self.states}

    def read(self, talks: Talks, now: float, wait: Wait | None = None) -> Talk[News]:
        """The next page: as it is now, or within a wait as soon as there is something on it."""
        if wait is not None:
            pause = min(self._next_read - now, wait.slice_seconds(now))
            if pause > 0:
                now = (yield Pause(pause)).at
        after = self.after
        seconds = 0.0 if wait is None else wait.slice_seconds(now)
        page, now = yield from read_page(talks, after, seconds, FEED_PAGE, now, wait)
        ended: list[FeedItem] = []
        if ids := self._not_told(page, now):
            heard = yield Together([partial(look, talks, job_id, wait) for job_id in ids])
            ended, now = [entry for entry in heard.results if entry is not None], heard.at
        return News(after, page, ended, now)

    def _not_told(self, page: FeedPage, now: float) -> list[str]:
        """Of which jobs the feed may have told more, and does not: they are asked for by id.

        At once, and after that no more often than a large set can be asked for.
        """
        self._has_missed = self._has_missed or page.truncated
        if not self._has_missed or now < self._next_ask:
            return []
        ids = sorted(self.open - {entry.id for entry in page.entries})
        self._has_missed, self._next_ask = False, now + len(ids) * PAUSE_PER_ASKED_SECONDS
        return ids

    def take(self, news: News) -> bool:
        """Take in what was read; True if that was the last page for now."""
        if news.after != self.after:
            return False  # another reader was faster
        page, before = news.page, len(self.order)
        more = page.next < page.newest
        self.add((*page.entries, *news.ended))
        self._plan_next_read(0 if more else len(page.entries), len(self.order) - before, news.at)
        self.after = page.cursor or page.next
        return not more

    def _plan_next_read(self, entries: int, ours: int, now: float) -> None:
        since, self._read_at = now - self._read_at, now
        pause = entries * PAUSE_PER_ENTRY_SECONDS
        if entries and ours:
            pause = since / ours * len(self.open) * PAUSE_PART
        self._next_read = now + min(pause, PAUSE_SECONDS_MAX)

    def add(self, entries: Iterable[FeedItem]) -> None:
        """These have ended, if they were open. Who sees one in the order finds the rest, too."""
        for entry in entries:
            if entry.id in self.open:
                self.ended[entry.id] = entry
                self.states[entry.state] += 1
                self._tell(entry)
                self.order.append(entry.id)
                self.open.discard(entry.id)  # after it: when none is open, the order has them all

    def reopen(self) -> list[str]:
        """Those that failed or were cancelled are to end again; which they are."""
        again = [entry.id for entry in self.ended.values() if entry.state in ("failed", "cancelled")]
        for job_id in again:
            self.open.add(job_id)
            self.states[self.ended.pop(job_id).state] -= 1
        for place, known in enumerate(self.order):
            if known not in self.ended:
                self.order[place] = None  # whoever goes through the order keeps his place
        self.states = +self.states
        return again


def look(talks: Talks, job_id: str, wait: Wait | None, now: float) -> Talk[FeedItem | None]:
    """A job as the feed would have told it; None if it has not ended."""
    try:
        answer, _ = yield from talks.exchange(Request("GET", job_path(job_id)), now, wait)
    except Refused as error:
        if error.refusal.code not in FORGOTTEN:
            raise
        return FeedItem(0, job_id, EXPIRED, "")  # it has ended, nobody knows how
    return item_of(msgspec.json.decode(answer.content))


def item_of(document: dict[str, Any]) -> FeedItem | None:
    """A job's document as the feed would have told it; None if it has not ended."""
    if document["state"] not in TERMINAL_STATES:
        return None
    value = (document["result"] or {}).get("value", UNSET)
    return FeedItem(
        0, document["id"], document["state"], document["task"], error=document["error"], result=value
    )
