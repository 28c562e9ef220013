"""Handles of the client: one job, and a set of jobs that were sent together.

A handle remembers what it was last told; `refresh` asks again. A job that has ended is not asked for its
state any more. In `async` code a job may be awaited for its result, and a set be read by `async for`. A set
never asks for its jobs one by one: it reads the completion feed from the place where its jobs were sent,
and only what the feed does not carry (large results, full errors) is fetched by id.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec
from msgspec import UNSET, UnsetType

from . import client_tables as tables
from .client_http import problem_of
from .client_logs import follow_logs
from .errors import JobFailed, JobsvcError, Refused, WaitTimedOut

if TYPE_CHECKING:
    from .client import Client

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
EXPIRED = "expired"  # what a set calls a job that ended longer ago than the service remembers
LONG_POLL_SECONDS = 20.0
ASYNC_SLICE_SECONDS = 2.0  # a thread that waits for nobody any more ends after this
# Before the next page of the feed, so that many jobs that end fast come in few requests: a part of the time
# that the rest of a set will take at its present pace; when all is of others, by how much there was.
PAUSE_PART = 0.1
PAUSE_SECONDS_MAX = 0.1
PAUSE_PER_ENTRY_SECONDS = 0.0005
REQUESTS_IN_FLIGHT = 8

T = TypeVar("T")


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


class _Wait:
    """What is left of a caller's patience, in slices that the service will wait."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def slice_seconds(self) -> float:
        left = self.left_seconds()
        return LONG_POLL_SECONDS if left is None else min(LONG_POLL_SECONDS, left)

    def left_seconds(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def check(self, what: str) -> None:
        if self.left_seconds() == 0.0:
            raise WaitTimedOut(f"{what} after {self.timeout:g} s")


class Job:
    """One job."""

    __slots__ = ("_asked_at", "_client", "_document", "_error", "_state", "_value", "id")

    def __init__(
        self,
        client: Client,
        job_id: str,
        document: dict[str, Any] | None = None,
        entry: FeedItem | None = None,
    ) -> None:
        self.id = job_id
        self._client = client
        self._document: dict[str, Any] | None = None
        self._asked_at: float | None = None
        self._state: str | None = None  # as last told
        self._error: dict[str, Any] | None = None
        self._value: Any = UNSET
        if document is not None:
            self._remember(document)
        if entry is not None:
            self.ended(entry)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self._state or 'not asked yet'}>"

    def _repr_html_(self) -> str:
        known = self._document or {}
        rows = [("id", self.id), ("state", tables.state_text(self._state or "-"))]
        rows += [(name, known[name]) for name in ("task", "queue", "attempt", "waiting") if known.get(name)]
        if self._error:
            rows.append(("error", self.known_error))
        return tables.table(("job", ""), rows, tables.as_of(self._asked_at))

    def _remember(self, document: dict[str, Any]) -> dict[str, Any]:
        self._document, self._state, self._asked_at = document, document["state"], time.time()
        self._error = document.get("error")
        return document

    @property
    def known_error(self) -> str:
        """Why it has failed, in a line, as last told; nobody is asked."""
        return f"{self._error['type']}: {self._error['message']}" if self._error else ""

    @property
    def known_state(self) -> str:
        """The state as last told; nobody is asked."""
        return self._state or "not asked yet"

    # --- looking ---

    def refresh(self) -> dict[str, Any]:
        """Ask the service; returns the job's document as it is now."""
        return self._remember(self._client.get(self._path()))

    def _path(self, rest: str = "") -> str:
        return self._client.path("/v1/jobs/{}", self.id) + rest

    @property
    def state(self) -> str:
        """The state now. A job that has ended is not asked again."""
        known = self._state
        return known if known in TERMINAL_STATES else str(self.refresh()["state"])

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The attempts that have ended, oldest first, as they are now."""
        attempts: list[dict[str, Any]] = self.refresh()["attempts"]
        return attempts

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until the job has ended; returns its document. Raises WaitTimedOut."""
        wait = _Wait(timeout)
        while True:
            document = self._remember(msgspec.json.decode(self._long_poll("", wait).content))
            if document["state"] in TERMINAL_STATES:
                return document
            wait.check(f"job {self.id} is {document['state']}")

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned: JSON, or bytes. Raises JobFailed, WaitTimedOut."""
        wait = _Wait(timeout)
        while self._value is UNSET:
            answer = self._long_poll("/result", wait)
            if answer.status_code == 200:
                is_json = answer.headers.get("Content-Type", "").startswith("application/json")
                self._value = msgspec.json.decode(answer.content) if is_json else answer.content
                self._state = "succeeded"
            elif answer.status_code == 409:
                problem = problem_of(answer)
                self._state = problem.state or "failed"
                raise failure(self.id, self._state, problem.error)
            else:
                self._remember(msgspec.json.decode(answer.content))
                wait.check(f"job {self.id} has no result")
        return self._value

    def __await__(self) -> Generator[Any, None, Any]:
        """`await job` is its result."""
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        while True:
            try:
                return await asyncio.to_thread(self.result, ASYNC_SLICE_SECONDS)
            except WaitTimedOut:
                pass  # another slice

    def _long_poll(self, rest: str, wait: _Wait) -> httpx.Response:
        seconds = wait.slice_seconds()
        good = (200, 202, 409) if rest else (200,)
        headers = {"Prefer": f"wait={seconds:.3f}"}
        return self._client.request("GET", self._path(rest), headers=headers, wait_seconds=seconds, good=good)

    def ended(self, entry: FeedItem) -> None:
        """The feed has told that this job has ended."""
        self._state, self._error = entry.state, entry.error
        if entry.state == "succeeded" and entry.result is not UNSET:
            self._value = entry.result

    # --- changing ---

    def cancel(self) -> str:
        """Ask for the end of this job; returns its state: `running` means asked for, not yet confirmed."""
        return self._change("/cancel")

    def retry(self) -> str:
        """Put a failed or cancelled job back, its attempts unspent; returns its state."""
        return self._change("/retry")

    def _change(self, rest: str) -> str:
        answer = self._client.request("POST", self._path(rest))
        self._value = UNSET
        return str(self._remember(msgspec.json.decode(answer.content))["state"])

    # --- logs ---

    def logs(self, attempt: int | None = None, tail: int | None = None) -> str:
        """What the job has written to stdout and stderr: of the latest attempt, or of the one given."""
        chosen = {"attempt": attempt, "tail": tail}
        params = {name: value for name, value in chosen.items() if value is not None}
        return self._client.request("GET", self._path("/logs"), params=params).text

    def follow(self, attempt: int | None = None) -> Iterator[str]:
        """What the job writes, as it comes, until it has ended; with `attempt`, until that attempt has."""
        return follow_logs(self, attempt)

    def log_stream(self, attempt: int) -> Any:
        """The event stream of one attempt's output, opened once."""
        return self._client.stream(self._path("/logs"), {"attempt": attempt})


class Jobs(list[Job]):
    """Some handles; a notebook shows what is known of them."""

    def _repr_html_(self) -> str:
        shown = self[: tables.ROWS_SHOWN]
        rows = [(job.id, tables.state_text(job.known_state), job.known_error) for job in shown]
        more = f"{len(self) - len(shown)} more" if len(self) > len(shown) else ""
        return tables.table(("job", "state", "error"), rows, more)


class JobSet:
    """Jobs that were sent together, in that order. May be used by several threads."""

    def __init__(self, client: Client, ids: Sequence[str], after: int) -> None:
        self.ids = list(ids)
        self._client = client
        self._after = after
        self._open = set(self.ids)
        self._ended: dict[str, FeedItem] = {}
        self._order: list[str] = []  # of those that have ended, as they did
        self._states: Counter[str] = Counter()
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()  # held by the one thread that reads the feed
        self._next_read, self._read_at = 0.0, time.monotonic()
        self._asked_at: float | None = None

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
            job = self._jobs.setdefault(job_id, Job(self._client, job_id, entry=self._ended.get(job_id)))
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
        wait = _Wait(timeout)
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
            await asyncio.to_thread(self._wait_for_more, given, _Wait(ASYNC_SLICE_SECONDS))

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> dict[str, int]:
        """Wait until all have ended; returns the counts by state. Raises WaitTimedOut."""
        wait = _Wait(timeout)
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
                value = self.job(job_id).result(0.0)  # raises, with the whole traceback
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
            again = [each for each in self._order if self._ended[each].state in ("failed", "cancelled")]
            for job_id in again:
                self._states[self._ended.pop(job_id).state] -= 1
                self._open.add(job_id)
            self._states = +self._states
            self._order = [each for each in self._order if each in self._ended]
        self._for_each(again, self._retry)
        return len(again)

    def _retry(self, job_id: str) -> None:
        try:
            self.job(job_id).retry()
        except Refused as error:
            if error.refusal.code != "wrong_state":
                raise
            with self._lock:  # somebody else has put it back, and it may have ended since
                entry = self._ask(job_id)
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
            return entry.result
        if entry.state in ("failed", "cancelled"):
            return failure(job_id, entry.state, entry.error)
        try:
            return self.job(job_id).result(0.0)
        except JobsvcError as error:
            return error

    def _for_each(self, ids: Sequence[str], ask: Callable[[str], T]) -> list[T]:
        if not ids:
            return []
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            return list(pool.map(ask, ids))

    # --- the feed ---

    def _wait_for_more(self, known: int, wait: _Wait) -> None:
        """Until more than `known` jobs have ended, or a while has passed. Raises WaitTimedOut."""
        if not self._open:
            return
        wait.check(f"{len(self._open)} of {len(self)} jobs have not ended")
        seconds = wait.slice_seconds()
        if not self._lock.acquire(timeout=seconds):
            return  # another thread reads; what it finds is for all
        try:
            if len(self._order) <= known:
                self._read_page(seconds)
        finally:
            self._lock.release()

    def _read_page(self, wait_seconds: float) -> bool:
        """Take in one page of the feed; True if it was the last one for now. Under the lock."""
        pause = self._next_read - time.monotonic()
        if pause > 0 and wait_seconds > 0:
            time.sleep(min(pause, wait_seconds))
        page = self._client.feed(self._after, wait_seconds)
        if page.truncated:
            self._ask_each()
        before = len(self._order)
        for entry in page.entries:
            if entry.id in self._open:
                self._take(entry)
        more = page.next < page.newest
        self._plan_next_read(0 if more else len(page.entries), len(self._order) - before)
        self._after = page.next
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
        for document in documents:
            if document["id"] in self._open and document["state"] in TERMINAL_STATES:
                self._take(_item(document))

    def _ask_each(self) -> None:
        """The feed has forgotten a part of what is waited for: ask for those jobs by id."""
        for entry in self._for_each(sorted(self._open), self._ask):
            if entry is not None:
                self._take(entry)

    def _ask(self, job_id: str) -> FeedItem | None:
        try:
            document = Job(self._client, job_id).refresh()
        except Refused as error:
            if error.refusal.code not in ("unknown_job", "expired_job"):
                raise
            return FeedItem(0, job_id, EXPIRED, "")
        return _item(document) if document["state"] in TERMINAL_STATES else None


def _item(document: dict[str, Any]) -> FeedItem:
    """A job's document as the feed would have told it."""
    value = (document["result"] or {}).get("value", UNSET)
    return FeedItem(
        0, document["id"], document["state"], document["task"], error=document["error"], result=value
    )


def failure(job_id: str, state: str, error: Any) -> JobFailed:
    """What `result` raises for a job that has ended without one."""
    error = error if isinstance(error, dict) else None
    text = f"job {job_id} has failed" if state == "failed" else f"job {job_id} was {state}"
    if error is not None and state == "failed":
        text += f": {error['type']}: {error['message']}"
    failed = JobFailed(text, state, error)
    if error is not None and error.get("traceback"):
        failed.add_note(f"The job's own traceback:\n{error['traceback']}")
    return failed
