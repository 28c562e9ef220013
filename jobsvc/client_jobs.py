"""A set of jobs that were sent together.

A set never asks for its jobs one by one: it reads the completion feed from the place where its jobs were
sent, and only what the feed does not carry (large results, full errors) is fetched by id. In `async` code it
may be read by `async for`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import UNSET

from . import client_tables as tables
from .client_async import LoopClient
from .client_core import LONG_POLL_SECONDS, TERMINAL_STATES, Request, Wait
from .client_feed import FeedItem, FeedPage, place_and_store
from .client_http import patience
from .client_job import Job, failure
from .errors import JobsvcError, Refused
from .signatures import ValueType

if TYPE_CHECKING:
    from .client import Client

EXPIRED = "expired"  # what a set calls a job that ended longer ago than the service remembers
# Before the next page of the feed, so that many jobs that end fast come in few requests: a part of the time
# that the rest of a set will take at its present pace; when all is of others, by how much there was.
PAUSE_PART = 0.1
PAUSE_SECONDS_MAX = 0.1
PAUSE_PER_ENTRY_SECONDS = 0.0005
PAUSE_PER_ASKED_SECONDS = 0.002  # about as long as asking takes
REQUESTS_IN_FLIGHT = 8

__all__ = ["FeedItem", "Job", "JobSet", "Jobs"]

T = TypeVar("T")


class Jobs(list[Job]):
    """Some handles; a notebook shows what is known of them."""

    def _repr_html_(self) -> str:
        shown = self[: tables.ROWS_SHOWN]
        rows = [(job.id, tables.state_text(job.known_state), job.known_error) for job in shown]
        more = f"{len(self) - len(shown)} more" if len(self) > len(shown) else ""
        return tables.table(("job", "state", "error"), rows, more)


class JobSet:
    """Jobs that were sent together, in that order. May be used by several threads."""

    def __init__(
        self, client: Client, ids: Sequence[str], after: int | str, returns: ValueType | None = None
    ) -> None:
        self.ids = list(ids)
        self._client = client
        self._returns = returns  # what the task's annotation says of the results
        self._after, self._store = place_and_store(after)
        self._open = set(self.ids)
        self._ended: dict[str, FeedItem] = {}
        self._order: list[str] = []  # of those that have ended, as they did
        self._states: Counter[str] = Counter()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()  # held by the one thread that reads the feed, for as long as that takes
        self._taking = threading.Lock()  # held for a moment by whoever changes what is known
        self._next_read, self._read_at = 0.0, time.monotonic()
        self._has_missed, self._next_ask = False, 0.0
        self._asked_at: float | None = None
        _sets.add(self)

    def forked(self) -> None:
        """This is another process now: no other thread reads here, and none will finish what it had begun."""
        self._lock, self._taking = threading.Lock(), threading.Lock()
        given = set(self._order)
        self._order += [job_id for job_id in self._ended if job_id not in given]
        self._open = {job_id for job_id in self.ids if job_id not in self._ended}
        self._states = Counter(entry.state for entry in self._ended.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Job]:
        return (self.job(job_id) for job_id in self.ids)

    def __getitem__(self, index: int) -> Job:
        return self.job(self.ids[index])

    def __repr__(self) -> str:
        return f"<JobSet of {len(self)}, {len(self._open)} open>"

    def _repr_html_(self) -> str:
        return tables.counts_table(self._tally(), f"{len(self)} jobs, {tables.as_of(self._asked_at)}")

    def job(self, job_id: str) -> Job:
        """The handle of one of them, always the same one."""
        job = self._jobs.get(job_id)
        if job is None:
            job = Job(self._client, job_id, entry=self._ended.get(job_id), returns=self._returns)
            job = self._jobs.setdefault(job_id, job)
        return job

    def _tally(self) -> dict[str, int]:
        return {"open": len(self._open), **self._states}

    # --- waiting ---

    def counts(self) -> dict[str, int]:
        """Jobs by state now; `open` are those that have not ended."""
        with self._lock:
            while self._open and not self._read_page(0.0):
                pass
        return self._tally()

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """Each job as it ends, those that have ended already first. Raises WaitTimedOut."""
        wait = Wait(timeout, time.monotonic())
        given = 0
        while given < len(self.ids):
            while given < len(self._order):
                yield self.job(self._order[given])
                given += 1
            self._wait_for_more(given, wait)

    async def __aiter__(self) -> AsyncIterator[Job]:
        """`async for job in jobs` gives each job as it ends."""
        given = 0
        while given < len(self.ids):
            while given < len(self._order):
                yield self.job(self._order[given])
                given += 1
            await self._read_in_loop(given)

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> dict[str, int]:
        """Wait until all have ended; returns the counts by state. Raises WaitTimedOut.

        With a timeout of 0 it looks once; without one it waits for as long as it takes.
        """
        wait = Wait(timeout, time.monotonic())
        with tables.ProgressLine("jobs", len(self), None if progress else False) as line:
            line.update(len(self._order), self._tally())
            while self._open:
                self._wait_for_more(len(self._order), wait)
                line.update(len(self._order), self._tally())
        return dict(self._states)

    def progress(self, timeout: float | None = None) -> dict[str, int]:
        """Wait with a bar, on a terminal or in a notebook. Ctrl-C ends the waiting, not the jobs."""
        return self.wait(timeout, progress=True)

    def results(self, timeout: float | None = None, *, return_exceptions: bool = False) -> list[Any]:
        """Results in the order of the jobs. A job without one raises, unless exceptions are wanted."""
        self.wait(timeout)
        elsewhere = [
            job_id
            for job_id, entry in self._ended.items()
            if entry.result is UNSET and entry.state == "succeeded"
        ]
        fetched = dict(zip(elsewhere, self._for_each(elsewhere, self._outcome), strict=True))
        values: list[Any] = []
        for job_id in self.ids:
            value = fetched[job_id] if job_id in fetched else self._outcome(job_id)
            if isinstance(value, JobsvcError) and not return_exceptions:
                value = self.job(job_id).fetch()  # raises, with the whole traceback
            values.append(value)
        return values

    def failures(self) -> list[Job]:
        """Those that are known to have ended without a result."""
        return Jobs(self.job(job_id) for job_id in self._order if self._ended[job_id].state != "succeeded")

    def retry_failed(self) -> int:
        """Put back those that failed or were cancelled; returns how many. Waiting waits for them again."""
        with self._lock:
            while not self._read_page(0.0):
                pass  # what the feed says of their present ends must not be taken for their next ones
            again = self._reopen()
        self._for_each(again, self._retry)
        return len(again)

    def _reopen(self) -> list[str]:
        with self._taking:
            again = [each for each in self._order if self._ended[each].state in ("failed", "cancelled")]
            for job_id in again:
                self._states[self._ended.pop(job_id).state] -= 1
                self._open.add(job_id)
            self._states = +self._states
            self._order = [each for each in self._order if each in self._ended]
        return again

    def _retry(self, job_id: str) -> None:
        try:
            self.job(job_id).retry()
        except Refused as error:
            if error.refusal.code != "wrong_state":
                raise
            entry = self._ask(job_id)  # somebody else has put it back, and it may have ended since
            with self._taking:
                if entry is not None and job_id in self._open:
                    self._take(entry)

    def cancel(self) -> None:
        """Ask for the end of all that are open; those that end meanwhile stay as they are."""
        self._for_each(sorted(self._open), self._cancel)

    def _cancel(self, job_id: str) -> None:
        try:
            self.job(job_id).cancel()
        except Refused as error:
            if error.refusal.code != "wrong_state":
                raise

    def _outcome(self, job_id: str) -> Any:
        """The result of a job that has ended, or the exception that says why there is none."""
        entry = self._ended[job_id]
        if entry.state == "succeeded" and entry.result is not UNSET:
            return entry.result if self._returns is None else self._returns.of_result(entry.result)
        if entry.state in ("failed", "cancelled"):
            return failure(job_id, entry.state, entry.error)
        try:
            return self.job(job_id).fetch()
        except JobsvcError as error:
            return error

    def _for_each(self, ids: Sequence[str], ask: Callable[[str], T]) -> list[T]:
        if not ids:
            return []
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            return list(pool.map(ask, ids))

    # --- the feed ---

    def _wait_for_more(self, known: int, wait: Wait) -> None:
        """Until more than `known` jobs have ended, or a while has passed. Raises WaitTimedOut."""
        if not self._open:
            return
        seconds = wait.slice_seconds(time.monotonic())
        is_all = True
        if self._lock.acquire(timeout=seconds):  # else another thread reads; what it finds is for all
            try:
                if len(self._order) <= known:
                    with patience(wait):
                        is_all = self._read_page(seconds)
            finally:
                self._lock.release()
        if is_all and self._open and len(self._order) <= known:
            wait.check(time.monotonic(), f"{len(self._open)} of {len(self)} jobs have not ended")

    def _read_page(self, wait_seconds: float) -> bool:
        """Take in one page of the feed; True if it was the last one for now. Under the lock."""
        pause = self._next_read - time.monotonic()
        if pause > 0 and wait_seconds > 0:
            time.sleep(min(pause, wait_seconds))
        after = self._after
        page = self._client.feed(self._cursor, wait_seconds)
        ended = self._for_each(self._not_told(page), self._ask)
        return self._take_page(page, after, ended)

    async def _read_in_loop(self, known: int) -> None:
        """The same in an event loop, if no more than `known` are known to have ended."""
        here = await self._client.here()
        async with here.reading(self):
            if not self._open or len(self._order) > known:
                return
            await asyncio.sleep(max(0.0, self._next_read - time.monotonic()))
            after = self._after
            page = await here.feed(self._cursor, LONG_POLL_SECONDS)
            ended = await here.for_each(self._not_told(page), partial(self._ask_in_loop, here))
            self._take_page(page, after, ended)

    @property
    def _cursor(self) -> int | str:
        return f"{self._after}.{self._store}" if self._store else self._after

    def _not_told(self, page: FeedPage) -> list[str]:
        """Of which jobs the feed may have told more, and does not: they are asked for by id.

        At once, and after that no more often than a large set can be asked for.
        """
        self._has_missed = self._has_missed or page.truncated
        now = time.monotonic()
        if not self._has_missed or now < self._next_ask:
            return []
        ids = sorted(self._open - {entry.id for entry in page.entries})
        self._has_missed, self._next_ask = False, now + len(ids) * PAUSE_PER_ASKED_SECONDS
        return ids

    def _take_page(self, page: FeedPage, after: int, ended: Iterable[FeedItem | None]) -> bool:
        """Take in what was read after a place, and who has ended of those that the feed tells no more."""
        more = page.next < page.newest
        with self._taking:
            if after != self._after:
                return False  # another reader was faster
            before = len(self._order)
            for entry in (*page.entries, *ended):
                if entry is not None and entry.id in self._open:
                    self._take(entry)
            self._plan_next_read(0 if more else len(page.entries), len(self._order) - before)
            self._after, self._store = place_and_store(page.cursor or page.next)
            self._asked_at = time.time()
        return not more

    def _plan_next_read(self, entries: int, ours: int) -> None:
        now = time.monotonic()
        since, self._read_at = now - self._read_at, now
        pause = entries * PAUSE_PER_ENTRY_SECONDS
        if entries and ours:
            pause = since / ours * len(self._open) * PAUSE_PART
        self._next_read = now + min(pause, PAUSE_SECONDS_MAX)

    def _take(self, entry: FeedItem) -> None:
        """A job has ended. The order comes last: who sees it there finds the rest."""
        self._ended[entry.id] = entry
        self._states[entry.state] += 1
        job = self._jobs.get(entry.id)
        if job is not None:
            job.ended(entry)
        self._open.discard(entry.id)
        self._order.append(entry.id)

    def take_documents(self, documents: Iterable[dict[str, Any]]) -> None:
        """Take in jobs as the service shows them; those that have not ended stay open."""
        with self._taking:
            for entry in map(_item, documents):
                if entry is not None and entry.id in self._open:
                    self._take(entry)

    def _ask(self, job_id: str) -> FeedItem | None:
        """A job of which the feed may tell no more, if it has ended."""
        try:
            return _item(Job(self._client, job_id).refresh())
        except Refused as error:
            return _expired(job_id, error)

    async def _ask_in_loop(self, here: LoopClient, job_id: str) -> FeedItem | None:
        try:
            answer = await here.request(Request("GET", Job(self._client, job_id).path()))
        except Refused as error:
            return _expired(job_id, error)
        return _item(msgspec.json.decode(answer.content))


_sets: weakref.WeakSet[JobSet] = weakref.WeakSet()


def _all_forked() -> None:
    for each in list(_sets):
        each.forked()


os.register_at_fork(after_in_child=_all_forked)


def _item(document: dict[str, Any]) -> FeedItem | None:
    """A job's document as the feed would have told it; None if it has not ended."""
    if document["state"] not in TERMINAL_STATES:
        return None
    value = (document["result"] or {}).get("value", UNSET)
    return FeedItem(
        0, document["id"], document["state"], document["task"], error=document["error"], result=value
    )


def _expired(job_id: str, error: Refused) -> FeedItem:
    """What is refused because it is forgotten has ended, nobody knows how."""
    if error.refusal.code not in ("unknown_job", "expired_job"):
        raise error
    return FeedItem(0, job_id, EXPIRED, "")
