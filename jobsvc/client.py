"""The Python client: httpx only, neither Ray nor boto3.

It finds the service by argument, `JOBSVC_URL` (comma-separated), or the discovery file of `jobsvc up`. With
several addresses it goes on to the next when one does not answer. Every write carries an idempotency
key, so everything is safe to send again: a request is retried with full jitter until its deadline, and
errors that sending again cannot mend are raised at once.

    errors.InvalidRequest   fix the request; `field` names what is wrong
    errors.Refused          the service said no: unknown job, wrong state, a key used twice
    errors.Unavailable      nobody answered until the deadline; the same key may be used again
    errors.JobFailed        `result` of a job that failed or was cancelled
    errors.WaitTimedOut     the job goes on; only the waiting ended

A client may be used by several threads. Waiting for many jobs reads the completion feed, never one job at a
time.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec

from .client_jobs import Job, JobSet
from .errors import REFUSALS, InvalidRequest, Refusal, Refused, Unavailable
from .tasks import definition_of

OPTIONS = frozenset(
    {
        "queue",
        "priority",
        "max_attempts",
        "max_crashes",
        "timeout",
        "delay",
        "run_at",
        "labels",
        "batch",
        "retention_seconds",
        "backoff_base_seconds",
        "backoff_cap_seconds",
    }
)
_RENAMED = {"timeout": "timeout_seconds", "delay": "delay_seconds"}
BATCH_JOBS = 2_000
BATCHES_IN_FLIGHT = 3
PAUSE_SECONDS = 0.05
PAUSE_SECONDS_MAX = 1.0
FEED_WAIT_SECONDS = 10.0


class _Problem(msgspec.Struct):
    """What the client reads of a problem document (RFC 9457)."""

    title: str = ""
    status: int = 0
    detail: str = ""
    code: str | None = None
    field: str | None = None
    retryable: bool = False


class FeedItem(msgspec.Struct):
    """A finished job, as the completion feed tells it."""

    seq: int
    id: str
    state: str
    task: str
    finished_at: str | None = None
    batch: str | None = None
    result: Any = None
    error: Any = None


class _Feed(msgspec.Struct):
    entries: list[FeedItem]
    next: int
    oldest: int = 1


_feed_decoder = msgspec.json.Decoder(_Feed)


def find_urls(url: str | Sequence[str] | None, service: str = "jobsvc") -> list[str]:
    """Addresses of the service. Raises Unavailable if none is known."""
    if url is not None:
        urls = [url] if isinstance(url, str) else list(url)
    elif os.environ.get("JOBSVC_URL"):
        urls = os.environ["JOBSVC_URL"].split(",")
    else:
        folder = os.environ.get("JOBSVC_RUN_DIR")
        path = (Path(folder) if folder else Path.home() / ".jobsvc" / "run") / f"{service}.json"
        try:
            urls = msgspec.json.decode(path.read_bytes())["urls"]
        except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
            raise Unavailable(
                f"no service is known: start one with `jobsvc up`, or set JOBSVC_URL ({path})"
            ) from error
    return [each.strip().rstrip("/") for each in urls if each.strip()]


class Client:
    """A connection to one service."""

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        service: str = "jobsvc",
        deadline_seconds: float = 60.0,
    ) -> None:
        self.urls = find_urls(url, service)
        self._deadline_seconds = deadline_seconds
        token = token or os.environ.get("JOBSVC_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(30.0, connect=3.0),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
        )
        self._random = random.Random()
        self._lock = threading.Lock()

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- asking ---

    def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_seconds: float | None = None,
        wait_seconds: float = 0.0,
        good: Sequence[int] = (200, 202),
    ) -> httpx.Response:
        """One exchange, again until it is answered. Writes get an idempotency key if they have none."""
        sent = dict(headers or {})
        if method != "GET":
            sent.setdefault("Idempotency-Key", str(uuid.uuid4()))
        deadline = time.monotonic() + (deadline_seconds or self._deadline_seconds) + wait_seconds
        pause, problem = PAUSE_SECONDS, "no address"
        while True:
            wait = pause * self._random.uniform(0.5, 1.0)
            try:
                response = self._http.request(
                    method,
                    self.urls[0] + path,
                    content=content,
                    params=params,
                    headers=sent,
                    timeout=httpx.Timeout(30.0 + wait_seconds, connect=3.0),
                )
                if response.status_code in good:
                    return response
                problem = _raise_unless_retryable(response)
                wait = max(wait, min(_retry_after(response), PAUSE_SECONDS_MAX))
            except httpx.HTTPError as error:
                problem = f"{self.urls[0]}: {error or type(error).__name__}"
            if time.monotonic() + wait > deadline:
                raise Unavailable(problem)
            self._next_address()
            time.sleep(wait)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    def _next_address(self) -> None:
        with self._lock:
            self.urls.append(self.urls.pop(0))

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET; parameters that are None are left out."""
        chosen = {name: value for name, value in params.items() if value is not None}
        return msgspec.json.decode(self.request("GET", path, params=chosen).content)

    # --- enqueueing ---

    def enqueue(
        self,
        task: str | Callable[..., Any],
        *args: Any,
        key: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Job:
        """Enqueue one job; it is durable when this returns.

        `named` are the task's keyword arguments and the options (`OPTIONS`). A task whose own argument
        is called like an option gets it through `kwargs`. `key` makes the call safe to repeat by name.
        """
        content = msgspec.json.encode(_job(task, args, kwargs, named))
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        answer = self.request("POST", "/v1/jobs", content=content, headers=headers)
        return Job(self, msgspec.json.decode(answer.content)["id"])

    def enqueue_bytes(self, task: str, data: bytes, *, key: str | None = None, **named: Any) -> Job:
        """Enqueue a job whose first argument is these bytes."""
        document = _job(task, (), None, named)
        params = {name: document[name] for name in document if name not in ("args", "kwargs")}
        params = {name: value if isinstance(value, str) else _json(value) for name, value in params.items()}
        headers = {"Content-Type": "application/octet-stream"}
        if key is not None:
            headers["Idempotency-Key"] = key
        params["kwargs"] = _json(document["kwargs"])
        answer = self.request("POST", "/v1/jobs", content=data, params=params, headers=headers)
        return Job(self, msgspec.json.decode(answer.content)["id"])

    def map(
        self,
        task: str | Callable[..., Any],
        items: Iterable[Any],
        *,
        batch_jobs: int = BATCH_JOBS,
        **named: Any,
    ) -> JobSet:
        """One job for each item, its first argument. Returns when all are durable.

        Items are read as they are sent, a few batches ahead; each batch is atomic.
        """
        after = self.feed_end()
        ids: list[str] = []
        pending: list[Future[list[str]]] = []
        with ThreadPoolExecutor(BATCHES_IN_FLIGHT) as pool:
            for lines in _batches(task, items, batch_jobs, named):
                pending.append(pool.submit(self._enqueue_batch, lines))
                if len(pending) > BATCHES_IN_FLIGHT:
                    ids += pending.pop(0).result()
            for each in pending:
                ids += each.result()
        return JobSet(self, ids, after)

    def enqueue_many(self, jobs: Iterable[Mapping[str, Any]]) -> JobSet:
        """One atomic batch of job documents as `POST /v1/jobs` takes them."""
        after = self.feed_end()
        return JobSet(self, self._enqueue_batch(b"\n".join(msgspec.json.encode(job) for job in jobs)), after)

    def _enqueue_batch(self, lines: bytes) -> list[str]:
        answer = self.request(
            "POST", "/v1/jobs:batch", content=lines, headers={"Content-Type": "application/x-ndjson"}
        )
        ids: list[str] = msgspec.json.decode(answer.content)["ids"]
        return ids

    # --- looking ---

    def job(self, job_id: str) -> Job:
        """A handle; asks nobody until it is used."""
        return Job(self, job_id)

    def jobs(self, limit: int = 50, **filters: Any) -> Iterator[dict[str, Any]]:
        """Jobs as documents, newest first, page by page. Filters: state, queue, task, batch."""
        cursor = None
        given = 0
        while given < limit:
            page = self.get("/v1/jobs", cursor=cursor, limit=min(limit - given, 500), **filters)
            for each in page["jobs"]:
                given += 1
                yield each
            cursor = page.get("cursor")
            if cursor is None:
                return

    def feed(self, after: int, wait_seconds: float = 0.0, limit: int = 5_000) -> _Feed:
        """One page of the completion feed after a place."""
        answer = self.request(
            "GET",
            "/v1/completions",
            params={"after": after, "wait": wait_seconds, "limit": limit},
            wait_seconds=wait_seconds,
        )
        return _feed_decoder.decode(answer.content)

    def feed_end(self) -> int:
        """The feed's present end: what finishes from now on comes after it."""
        return int(self.get("/v1/completions", after=-1, limit=0)["next"])

    def completions(self, after: int = 0, *, follow: bool = False) -> Iterator[FeedItem]:
        """Finished jobs in order of completion. Keep `seq` of the last one to go on later."""
        while True:
            page = self.feed(after, FEED_WAIT_SECONDS if follow else 0.0)
            yield from page.entries
            if page.next == after and not follow:
                return
            after = page.next

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.get("/v1/status")
        return status

    def queues(self) -> list[dict[str, Any]]:
        queues: list[dict[str, Any]] = self.get("/v1/queues")["queues"]
        return queues

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.get("/v1/workers")["workers"]
        return workers

    def pause(self, queue: str, paused: bool = True) -> None:
        """Pause a queue: nothing new is leased from it. `paused=False` resumes."""
        self.request("PATCH", f"/v1/queues/{queue}", content=msgspec.json.encode({"paused": paused}))

    def resume(self, queue: str) -> None:
        self.pause(queue, False)

    def pull(self, count: int = 1) -> list[dict[str, str]]:
        """The old endpoint: finished hash jobs that nobody has pulled yet, latest first."""
        pulled: list[dict[str, str]] = msgspec.json.decode(
            self.request("POST", "/pullCompleted", params={"top": count}).content
        )
        return pulled


# --- shapes ------------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _task_name(task: str | Callable[..., Any]) -> str:
    if isinstance(task, str):
        return task
    definition = definition_of(task)
    if definition is None:
        raise InvalidRequest("is neither a name nor a function with @jobsvc.task", "task")
    return definition.name


def _job(
    task: str | Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    named: Mapping[str, Any],
) -> dict[str, Any]:
    """The document of one job, as the API takes it."""
    options = {_RENAMED.get(name, name): value for name, value in named.items() if name in OPTIONS}
    own = {name: value for name, value in named.items() if name not in OPTIONS}
    return {
        "task": _task_name(task),
        "args": list(args),
        "kwargs": {**own, **(kwargs or {})},
        **{name: value for name, value in options.items() if value is not None},
    }


def _batches(
    task: str | Callable[..., Any], items: Iterable[Any], batch_jobs: int, named: Mapping[str, Any]
) -> Iterator[bytes]:
    """NDJSON of up to `batch_jobs` jobs each; what all of them share is encoded once."""
    document = _job(task, (), None, named)
    del document["args"]
    head = _json(document)[:-1].encode() + b',"args":['
    encode = msgspec.json.encode
    lines: list[bytes] = []
    for item in items:
        lines.append(head + encode(item) + b"]}")
        if len(lines) == batch_jobs:
            yield b"\n".join(lines)
            lines = []
    if lines:
        yield b"\n".join(lines)


def _raise_unless_retryable(response: httpx.Response) -> str:
    """Raise what a refusal means to the caller; returns the problem's text if it is worth another try."""
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem(detail=response.text[:300])
    text = problem.detail or problem.title or f"answered {response.status_code}"
    if problem.retryable or response.status_code in (408, 429, 500, 502, 503, 504):
        return text
    if response.status_code in (400, 413, 422):
        raise InvalidRequest(text, problem.field)
    code = problem.code or next(
        (code for code, meaning in REFUSALS.items() if meaning.status == response.status_code), "invalid"
    )
    raise Refused(Refusal(code, text, problem.field))


def _retry_after(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
