"""A set of jobs that were sent together.

A set never asks for its jobs one by one: it reads the completion feed from the place where its jobs were
sent, and only what the feed does not carry (large results, full errors) is fetched by id. In `async` code it
may be read by `async for`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET

from . import client_tables as tables
from .client_core import Wait
from .client_feed import FORGOTTEN, Ends, FeedItem, News, item_of, look
from .client_http import REQUESTS_IN_FLIGHT
from .client_job import Job, failure
from .errors import JobsvcError, Refused
from .value_types import ValueType

if TYPE_CHECKING:
    from .client import Client


HAS_GONE_ON = FORGOTTEN | {"wrong_state"}  # said of a job that has ended meanwhile

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
        self._ends = Ends(self.ids, after, time.monotonic(), self._tell)
        self._jobs: dict[str, Job] = {}
        self._reading = threading.Lock()  # by one of the threads that wait; the others wait for what it finds
        self._taking = threading.Lock()  # held for a moment by whoever changes what is known
        self._asked_at: float | None = None
        _sets.add(self)

    def forked(self) -> None:
        """This is another process now: no other thread reads here, and none will finish what it had begun."""
        self._reading, self._taking = threading.Lock(), threading.Lock()
        self._ends.mend()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Job]:
        return (self.job(job_id) for job_id in self.ids)

    def __getitem__(self, index: int) -> Job:
        return self.job(self.ids[index])

    def __repr__(self) -> str:
        return f"<JobSet of {len(self)}, {len(self._ends.open)} open>"

    def _repr_html_(self) -> str:
        return tables.counts_table(self._ends.counts(), f"{len(self)} jobs, {tables.as_of(self._asked_at)}")

    def job(self, job_id: str) -> Job:
        """The handle of one of them, always the same one."""
        job = self._jobs.get(job_id)
        if job is None:
            job = Job(self._client, job_id, entry=self._ends.ended.get(job_id), returns=self._returns)
            job = self._jobs.setdefault(job_id, job)
        return job

    def _tell(self, entry: FeedItem) -> None:
        job = self._jobs.get(entry.id)
        if job is not None:
            job.ended(entry)

    # --- waiting ---

    def counts(self) -> dict[str, int]:
        """Jobs by state now; `open` are those that have not ended."""
        while self._ends.open and not self._read(None):
            pass
        return self._ends.counts()

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """Each job as it ends, those that have ended already first. Raises WaitTimedOut."""
        wait, given = Wait(timeout, time.monotonic()), 0
        while self._ends.open or given < len(self._ends.order):
            while given < len(self._ends.order):
                job_id, given = self._ends.order[given], given + 1
                if job_id is not None:
                    yield self.job(job_id)
            self._wait_for_more(given, wait)

    async def __aiter__(self) -> AsyncIterator[Job]:
        """`async for job in jobs` gives each job as it ends."""
        given = 0
        while self._ends.open or given < len(self._ends.order):
            while given < len(self._ends.order):
                job_id, given = self._ends.order[given], given + 1
                if job_id is not None:
                    yield self.job(job_id)
            await self._read_in_loop(given)

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> dict[str, int]:
        """Wait until all have ended; returns the counts by state. Raises WaitTimedOut.

        With a timeout of 0 it looks once; without one it waits for as long as it takes.
        """
        wait, ends = Wait(timeout, time.monotonic()), self._ends
        with tables.ProgressLine("jobs", len(self), None if progress else False) as line:
            line.update(len(ends.ended), ends.counts())
            while ends.open:
                self._wait_for_more(len(ends.order), wait)
                line.update(len(ends.ended), ends.counts())
        return dict(ends.states)

    def progress(self, timeout: float | None = None) -> dict[str, int]:
        """Wait with a bar, on a terminal or in a notebook. Ctrl-C ends the waiting, not the jobs."""
        return self.wait(timeout, progress=True)

    def results(self, timeout: float | None = None, *, return_exceptions: bool = False) -> list[Any]:
        """Results in the order of the jobs. A job without one raises, unless exceptions are wanted."""
        self.wait(timeout)
        elsewhere = [
            job_id
            for job_id, entry in list(self._ends.ended.items())
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
        ended = list(self._ends.ended.values())
        return Jobs(self.job(entry.id) for entry in ended if entry.state != "succeeded")

    def retry_failed(self) -> int:
        """Put back those that failed or were cancelled; returns how many. Waiting waits for them again."""
        while self.ids and not self._read(None):
            pass  # what the feed says of their present ends must not be taken for their next ones
        with self._taking:
            again = self._ends.reopen()
        self._for_each(again, self._retry)
        return len(again)

    def _retry(self, job_id: str) -> None:
        try:
            self.job(job_id).retry()
        except Refused as error:
            if error.refusal.code not in HAS_GONE_ON:
                raise
            # somebody else has put it back, and it may have ended since; or it is forgotten
            entry = self._client.run(partial(look, self._client.talks, job_id, None))
            with self._taking:
                self._ends.add([entry] if entry else [])

    def cancel(self) -> None:
        """Ask for the end of all that are open; those that end meanwhile stay as they are."""
        self._for_each(sorted(self._ends.open), self._cancel)

    def _cancel(self, job_id: str) -> None:
        try:
            self.job(job_id).cancel()
        except Refused as error:
            if error.refusal.code not in HAS_GONE_ON:
                raise

    def _outcome(self, job_id: str) -> Any:
        """The result of a job that has ended, or the exception that says why there is none."""
        entry = self._ends.ended[job_id]
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
        ends, reading = self._ends, self._reading
        if not ends.open:
            return
        is_last, is_mine = True, reading.acquire(timeout=wait.slice_seconds(time.monotonic()))
        try:  # whoever has waited in vain for another thread looks once all the same
            if ends.open and len(ends.order) <= known:
                is_last = self._read(wait)
        finally:
            if is_mine:
                reading.release()
        if is_last and ends.open and len(ends.order) <= known:
            wait.check(time.monotonic(), f"{len(ends.open)} of {len(self)} jobs have not ended")

    def _read(self, wait: Wait | None) -> bool:
        """Take in one page of the feed; True if it was the last one for now."""
        talks = self._client.talks
        return self._take(self._client.run(lambda now: self._ends.read(talks, now, wait)))

    async def _read_in_loop(self, known: int) -> None:
        """The same in an event loop, if no more than `known` are known to have ended."""
        here = await self._client.here()
        talks, ends = self._client.talks, self._ends
        async with here.reading(self):
            if ends.open and len(ends.order) <= known:
                self._take(await here.run(lambda now: ends.read(talks, now, Wait(None, now))))

    def _take(self, news: News) -> bool:
        with self._taking:
            self._asked_at = time.time()
            return self._ends.take(news)

    def take_documents(self, documents: Iterable[dict[str, Any]]) -> None:
        """Take in jobs as the service shows them; those that have not ended stay open."""
        with self._taking:
            self._ends.add(entry for entry in map(item_of, documents) if entry is not None)


_sets: weakref.WeakSet[JobSet] = weakref.WeakSet()


def _all_forked() -> None:
    for each in list(_sets):
        each.forked()


os.register_at_fork(after_in_child=_all_forked)
