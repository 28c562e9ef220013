"""The Python client: httpx only, neither Ray nor boto3.

    client = Client()                                   # argument, JOBSVC_URL, or what `jobsvc up` wrote down
    job = client.enqueue(thumbnail, "s3://…", width=300, priority=5)
    job.result(timeout=60)
    jobs = client.map(thumbnail, urls, width=300)
    for job in jobs.as_completed(): ...

Options and arguments. Keyword arguments whose names are in `OPTIONS` are options of the job; `key`, `kwargs`
and, in `map`, `batch_jobs` and `progress` belong to the call; all others go to the task. A task whose own
parameter has one of these names gets it by `kwargs={"priority": …}`. A function marked with `@jobsvc.task` is
sent by its name, with the decorator's options unless the call says otherwise; its code is not sent. Only a
function that a notebook or script defines is sent by value, where the operator allows code (`client_code`).

Arguments and results travel as JSON. A tuple arrives as a list; what else would not arrive equal is refused,
with its place. Where a function with annotations is at hand, dates, dataclasses and the like arrive as what
it names (`client_calls`). JSON has no bytes: a job whose argument is bytes goes by `enqueue_bytes`, and `map`
sends items that are bytes that way.

What is raised (`errors`): InvalidRequest, fix the request, `field` says where. Refused, the service said no:
unknown job, wrong state, a key used twice. Unavailable, nobody answered until the deadline; that `key` may
be used again. JobFailed and WaitTimedOut come from results and waiting. The service's own trouble, a failover
for example, is a pause, not an error: see `client_http`. A client may be used by several threads.
"""

from __future__ import annotations

import asyncio
import os
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import msgspec

from . import client_tables as tables
from .client_async import LoopClient
from .client_bulk import change_matching
from .client_calls import BYTES, Calling, document_lines, plain_line_end
from .client_code import goes_by_value
from .client_core import WAIT_SECONDS_MAX, checked_key, checked_seconds
from .client_feed import FEED_PAGE, FeedItem, FeedPage, read_on, read_page
from .client_http import Addresses, Connection, find_addresses
from .client_jobs import Job, JobSet
from .errors import InvalidRequest, JobsvcError
from .value_types import result_type
from .values import encode_value

DEADLINE_SECONDS = 60.0
BATCH_JOBS = 2_000
BATCH_BYTES = 4 * 1024 * 1024  # one batch is one record of the journal, which has a bound
BATCHES_IN_FLIGHT = 3
BYTES_JOBS_IN_FLIGHT = 16  # jobs with bytes go one by one
FEED_WAIT_SECONDS = 10.0
LIST_PAGE = 500
# what a notebook shows of these documents
TASK_COLUMNS = ("name", "description", "queue", "max_attempts", "timeout_seconds")
QUEUE_COLUMNS = ("name", "pool", "paused", "counts", "oldest_queued_age_seconds", "finished_per_second")
WORKER_COLUMNS = ("name", "pool", "state", "current_job", "leases", "seen_seconds_ago", "held_back")
FAILURE_COLUMNS = ("count", "task", "type", "message", "place", "last_at", "latest_id")
JSON_TYPE = {"Content-Type": "application/json"}
LINES_TYPE = {"Content-Type": "application/x-ndjson"}
BYTES_TYPE = {"Content-Type": "application/octet-stream"}


class Client:
    """A connection to one service."""

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        token: str | None = None,
        *,
        service: str = "jobsvc",
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> None:
        """`url` is one address or several; `deadline_seconds` is how long a request is sent again.

        None: for ever. The `timeout` of a wait comes before it.
        """
        found = find_addresses(url, service)
        token = token or os.environ.get("JOBSVC_TOKEN") or found.token
        self._connection = Connection(Addresses(found.urls, token), deadline_seconds)
        self.talks, self.run = self._connection.talks, self._connection.run
        self.request = self._connection.request
        self.stream = self._connection.stream
        self._loops: dict[asyncio.AbstractEventLoop, LoopClient] = {}

    def __repr__(self) -> str:
        return f"<Client of {', '.join(self.urls)}>"

    def _repr_html_(self) -> str:
        return tables.addresses(self.urls)

    @property
    def urls(self) -> list[str]:
        return self._connection.urls

    def close(self) -> None:
        """Close its connections, for all who use it in this process. A closed client says so."""
        self._connection.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a client is not sent to another process, nor its jobs and sets: make one there,"
            " Client(url, token), and send ids: client.job(id)"
        )

    async def here(self) -> LoopClient:
        """This client in the running event loop."""
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None or found.pid != os.getpid():
            for each in [each for each in list(self._loops) if each.is_closed()]:
                self._loops.pop(each, None)
            found = self._loops[loop] = LoopClient(self._connection)
            await found.begin()
        return found

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET; parameters that are None are left out."""
        chosen = {name: value for name, value in params.items() if value is not None}
        return msgspec.json.decode(self.request("GET", path, params=chosen).content)

    def path(self, template: str, name: str) -> str:
        """An address with a name in it, whatever characters that has."""
        return template.format(urllib.parse.quote(name, safe=""))

    # --- enqueueing ---

    def enqueue(
        self,
        task: str | Callable[..., Any],
        /,
        *args: Any,
        key: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Job:
        """Enqueue one job; it is durable when this returns.

        `named` are options and the task's keyword arguments (see the module). `key` makes the call safe to
        repeat by name: the same key gives the same job.
        """
        calling = Calling(task, kwargs, named)
        document = calling.document(args)
        answer = self.request("POST", "/v1/jobs", content=document, headers=JSON_TYPE, key=key)
        return self._job_of(answer.content, calling)

    def enqueue_bytes(
        self,
        task: str | Callable[..., Any],
        data: bytes | bytearray | memoryview,
        /,
        *,
        key: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Job:
        """Enqueue a job whose one positional argument is these bytes."""
        if goes_by_value(task):
            return self.enqueue(task, bytes(data), key=key, kwargs=kwargs, **named)
        calling = Calling(task, kwargs, named)
        params = calling.parameters()
        answer = self.request(
            "POST", "/v1/jobs", content=bytes(data), params=params, headers=BYTES_TYPE, key=key
        )
        return self._job_of(answer.content, calling)

    def _job_of(self, content: bytes, calling: Calling) -> Job:
        document: dict[str, Any] = msgspec.json.decode(content)
        return Job(self, document["id"], document, returns=calling.returns)

    def map(
        self,
        task: str | Callable[..., Any],
        items: Iterable[Any],
        /,
        *,
        key: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        batch_jobs: int = BATCH_JOBS,
        progress: bool | None = None,
        **named: Any,
    ) -> JobSet:
        """One job for each item, its first argument. Returns when all are durable.

        Items are read a few batches ahead of what is sent; each batch is atomic. With a `key`, the same call
        with the same items may be repeated: what was accepted is not enqueued again. A bar shows on terminals
        and in notebooks, unless `progress=False`.
        """
        if not 1 <= batch_jobs <= 10_000:
            raise InvalidRequest("must be from 1 to 10,000", "batch_jobs")
        calling = Calling(task, kwargs, named)
        after = self.feed_cursor()
        total = len(items) if isinstance(items, Sequence) else None
        ids: list[str] = []
        sending: deque[Future[list[str]]] = deque()
        try:
            with (
                tables.ProgressLine("enqueued", total, progress) as line,
                ThreadPoolExecutor(BYTES_JOBS_IN_FLIGHT, "jobsvc-map") as pool,
            ):
                for send, in_flight in self._sends(calling, task, items, batch_jobs, key, kwargs, named):
                    while len(sending) >= in_flight:
                        ids += sending.popleft().result()
                        line.update(len(ids))
                    sending.append(pool.submit(send))
                while sending:
                    ids += sending.popleft().result()
                    line.update(len(ids))
        except JobsvcError as error:
            error.add_note(f"{len(ids)} or more jobs had been enqueued before this")
            raise
        return JobSet(self, ids, after, calling.returns)

    def _sends(
        self,
        calling: Calling,
        task: str | Callable[..., Any],
        items: Iterable[Any],
        batch_jobs: int,
        key: str | None,
        kwargs: Mapping[str, Any] | None,
        named: Mapping[str, Any],
    ) -> Iterator[tuple[Callable[[], list[str]], int]]:
        """The requests of a `map`, and how many of that kind may be in flight."""
        for number, batch in enumerate(_batches(calling.line_head(), items, batch_jobs, calling)):
            part = None if key is None else checked_key(f"{key}/{number}")
            if isinstance(batch, list):
                yield partial(self._send_lines, b"\n".join(batch), part), BATCHES_IN_FLIGHT
            else:
                yield partial(self._send_bytes, task, batch, part, kwargs, named), BYTES_JOBS_IN_FLIGHT

    def _send_bytes(
        self,
        task: str | Callable[..., Any],
        data: bytes,
        key: str | None,
        kwargs: Mapping[str, Any] | None,
        named: Mapping[str, Any],
    ) -> list[str]:
        return [self.enqueue_bytes(task, data, key=key, kwargs=kwargs, **named).id]

    def enqueue_many(self, jobs: Iterable[Mapping[str, Any]], *, key: str | None = None) -> JobSet:
        """One atomic batch of job documents, as `POST /v1/jobs` takes them."""
        after = self.feed_cursor()
        return JobSet(self, self._send_lines(b"\n".join(document_lines(jobs)), key), after)

    def _send_lines(self, lines: bytes, key: str | None) -> list[str]:
        answer = self.request("POST", "/v1/jobs:batch", content=lines, headers=LINES_TYPE, key=key)
        ids: list[str] = msgspec.json.decode(answer.content)["ids"]
        return ids

    # --- looking ---

    def job(self, job_id: str, task: Callable[..., Any] | None = None) -> Job:
        """A handle; asks nobody until it is used. With the task's function, its result is what that names."""
        return Job(self, job_id, returns=None if task is None else result_type(task))

    def jobs(self, limit: int = 50, **filters: str | None) -> Iterator[dict[str, Any]]:
        """Jobs as documents, newest first, page by page. Filters: state, queue, task, batch."""
        cursor = None
        given = 0
        while given < limit:
            page = self.get("/v1/jobs", cursor=cursor, limit=min(limit - given, LIST_PAGE), **filters)
            given += len(page["jobs"])
            yield from page["jobs"]
            cursor = page["cursor"]
            if cursor is None:
                return

    def batch(self, name: str) -> JobSet:
        """The jobs that were enqueued with `batch=name`, from this process or another, as one set."""
        after = self.feed_cursor()
        documents = list(self.jobs(limit=2**62, batch=name))
        found = JobSet(self, [document["id"] for document in reversed(documents)], after)
        found.take_documents(reversed(documents))
        return found

    def feed(self, after: int | str, wait_seconds: float = 0.0, limit: int = FEED_PAGE) -> FeedPage:
        """One page of the completion feed after a place: a page's `cursor`, or a number.

        With a wait, of a minute at most, it comes as soon as something is on it, or empty.
        """
        checked = checked_seconds("wait_seconds", wait_seconds)
        seconds = WAIT_SECONDS_MAX if checked is None else min(checked, WAIT_SECONDS_MAX)
        page, _ = self.run(lambda now: read_page(self.talks, after, seconds, limit, now))
        return page

    def feed_end(self) -> int:
        """The feed's present end: what finishes from now on comes after it."""
        return self.feed(-1, limit=0).next

    def feed_cursor(self) -> int | str:
        """The same with the store that it is of: the cursor of a reader that begins now."""
        end = self.feed(-1, limit=0)
        return end.cursor or end.next

    def completions(self, after: int | str = 0, *, follow: bool = False) -> Iterator[FeedItem]:
        """Finished jobs in order of completion. Keep `cursor` of the last one to go on from there later.

        0 is the beginning of what is still kept. Raises CompletionsLost where something was passed that the
        feed tells no more: look for the jobs that you wait for by id, then go on after its `cursor`.
        """
        wait_seconds = FEED_WAIT_SECONDS if follow else 0.0
        return read_on(lambda place: self.feed(place, wait_seconds), after, follow=follow)

    def status(self) -> dict[str, Any]:
        return tables.Status(self.get("/v1/status"))

    def tasks(self) -> list[dict[str, Any]]:
        return tables.Rows(self.get("/v1/tasks")["tasks"], TASK_COLUMNS)

    def queues(self) -> list[dict[str, Any]]:
        return tables.Rows(self.get("/v1/queues")["queues"], QUEUE_COLUMNS)

    def workers(self) -> list[dict[str, Any]]:
        return tables.Rows(self.get("/v1/workers")["workers"], WORKER_COLUMNS)

    def pause(self, queue: str, paused: bool = True) -> dict[str, Any]:
        """Pause a queue: nothing new is leased from it. Returns the queue as it is now."""
        path = self.path("/v1/queues/{}", queue)
        answer = self.request(
            "PATCH", path, content=encode_value({"paused": paused}, "paused"), headers=JSON_TYPE
        )
        document: dict[str, Any] = msgspec.json.decode(answer.content)
        return document

    def resume(self, queue: str) -> dict[str, Any]:
        return self.pause(queue, False)

    def cancel_matching(self, *, dry_run: bool = False, **where: str | None) -> dict[str, Any]:
        """Cancel all jobs that match: state, queue, task, batch, failure. Returns `count`, and some `ids`."""
        return change_matching(self, "cancel", where, dry_run=dry_run)

    def retry_matching(self, *, dry_run: bool = False, **where: str | None) -> dict[str, Any]:
        """Put back all failed or cancelled jobs that match; see `cancel_matching`."""
        return change_matching(self, "retry", where, dry_run=dry_run)

    def failures(self, limit: int = 50) -> list[dict[str, Any]]:
        """Failed jobs, grouped by what went wrong, the largest group first."""
        return tables.Rows(self.get("/v1/failures", limit=limit)["groups"], FAILURE_COLUMNS)

    def pull(self, count: int = 1) -> list[dict[str, str]]:
        """The old endpoint: finished hash jobs that nobody has pulled yet, latest first."""
        pulled: list[dict[str, str]] = msgspec.json.decode(
            self.request("POST", "/pullCompleted", params={"top": count}).content
        )
        return pulled


# --- shapes ------------------------------------------------------------------------------------------


def _batches(
    head: bytes, items: Iterable[Any], batch_jobs: int, calling: Calling | None = None
) -> Iterator[list[bytes] | bytes]:
    """Lines of up to `batch_jobs` jobs; what they share is encoded once. An item of bytes goes alone."""
    lines: list[bytes] = []
    size_bytes = 0
    line_end = plain_line_end if calling is None else calling.line_end()
    bytes_alone = calling is None or calling.code is None
    for number, item in enumerate(items):
        if bytes_alone and isinstance(item, BYTES):
            if lines:
                yield lines
            yield bytes(item)
            lines, size_bytes = [], 0
            continue
        line = head + line_end(item, number)
        if lines and (len(lines) == batch_jobs or size_bytes + len(line) > BATCH_BYTES):
            yield lines
            lines, size_bytes = [], 0
        lines.append(line)
        size_bytes += len(line)
    if lines:
        yield lines
