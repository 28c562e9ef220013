"""How the client reaches the service: addresses, failover, retries, and what an answer means.

Every write carries an idempotency key, so whatever happened to a request, it may be sent again under the same
key. It is, until its deadline: to the next address at once, and after a pause with full jitter when all of
them have been tried; a `Retry-After` is kept to. What sending again cannot mend is raised at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from .discovery import discovery_file, find_service
from .errors import REFUSALS, InvalidRequest, Refusal, Refused, Unavailable

PAUSE_SECONDS = 0.05  # doubles with each round of addresses
PAUSE_SECONDS_MAX = 2.0
CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 20.0  # a replica answers within its own deadline, which is shorter
STREAM_SILENCE_SECONDS = 30.0  # the service sends something at least every 10 s
CONNECTIONS_MAX = 32
KEY_LENGTH_MAX = 255
INVALID_STATUSES = frozenset({400, 413, 415, 422})
# What a proxy says when there is nobody behind it. 404 too: Serve says that while it starts.
PROXY_STATUSES = frozenset({404, 408, 425, 429, 500, 502, 503, 504})
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class Problem(msgspec.Struct):
    """What the client reads of a problem document (RFC 9457)."""

    title: str = ""
    detail: str = ""
    code: str | None = None
    field: str | None = None
    retryable: bool = False
    state: str | None = None
    error: Any = None


class Addresses(NamedTuple):
    """Where a service is, and the token that goes with it if one was found in the same place."""

    urls: list[str]
    token: str | None


def find_addresses(url: str | Sequence[str] | None, service: str = "jobsvc") -> Addresses:
    """By argument, `JOBSVC_URL`, or the discovery file. Raises Unavailable if nothing is known."""
    if url is not None:
        return Addresses(_checked(url.split(",") if isinstance(url, str) else url), None)
    if os.environ.get("JOBSVC_URL"):
        return Addresses(_checked(os.environ["JOBSVC_URL"].split(",")), None)
    info = find_service(service)
    if info is None:
        raise Unavailable(
            f"no service is known here: start one with `jobsvc up`, or set JOBSVC_URL"
            f" (looked at {discovery_file(service)})"
        )
    return Addresses(_checked(info.urls), _secret(info.token_file))


def _checked(urls: Sequence[str]) -> list[str]:
    found = [each.strip().rstrip("/") for each in urls if each.strip()]
    for each in found:
        try:
            parsed = httpx.URL(each)
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"{each!r} is no address: {error}", "url") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidRequest(f"{each!r} is no address like http://127.0.0.1:8000", "url")
    if not found:
        raise InvalidRequest("names no address", "url")
    return found


def _secret(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None  # the service will say that a token is needed


class Connection:
    """Requests to one service, from any number of threads."""

    def __init__(self, addresses: Addresses, deadline_seconds: float) -> None:
        self.urls = addresses.urls
        self.deadline_seconds = deadline_seconds
        if addresses.token is not None and not _fits_header(addresses.token):
            raise InvalidRequest("must be printable ASCII", "token")
        headers = {"Authorization": f"Bearer {addresses.token}"} if addresses.token else {}
        is_local = all(httpx.URL(url).host in LOOPBACK_HOSTS for url in self.urls)
        self._http = httpx.Client(
            headers=headers,
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            trust_env=not is_local,  # a proxy of the environment does not reach this machine's loopback
        )
        self._random = random.Random()
        self._lock = threading.Lock()
        self._place = 0

    def close(self) -> None:
        self._http.close()

    @property
    def url(self) -> str:
        """The address in use."""
        return self.urls[self._place]

    def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        wait_seconds: float = 0.0,
        good: Sequence[int] = (200, 202),
    ) -> httpx.Response:
        """One exchange, sent again until it is answered or its deadline has passed.

        `wait_seconds` is how long the service was asked to wait; it comes on top of the deadline. Raises
        InvalidRequest, Refused, Unavailable.
        """
        sent = dict(headers or {})
        if method != "GET":
            sent["Idempotency-Key"] = str(uuid.uuid4()) if key is None else checked_key(key)
        deadline = time.monotonic() + self.deadline_seconds + wait_seconds
        pause, tries = PAUSE_SECONDS, 0
        while True:
            place = self._place
            left = max(0.1, deadline - time.monotonic())
            timeout = httpx.Timeout(min(ANSWER_SECONDS + wait_seconds, left), connect=CONNECT_SECONDS)
            retry_after = 0.0
            try:
                response = self._http.request(
                    method,
                    self.urls[place] + path,
                    content=content,
                    params=params,
                    headers=sent,
                    timeout=timeout,
                )
                if response.status_code in good:
                    return response
                why = raise_unless_retryable(response)
                retry_after = _retry_after_seconds(response)
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
            self._leave(place)
            tries += 1
            if tries % len(self.urls) == 0:
                self._pause(pause, retry_after, deadline, f"{self.urls[place]}: {why}")
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    def _pause(self, pause: float, retry_after: float, deadline: float, why: str) -> None:
        seconds = max(self._random.uniform(0, pause), retry_after)
        if time.monotonic() + seconds >= deadline:
            raise Unavailable(why)
        time.sleep(seconds)

    def _leave(self, place: int) -> None:
        """Go on to the next address, unless another thread has done so."""
        with self._lock:
            if self._place == place:
                self._place = (place + 1) % len(self.urls)

    def stream(
        self, path: str, params: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[httpx.Response]:
        """An event stream, once; the caller opens it again when it breaks."""
        timeout = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)
        headers = {"Accept": "text/event-stream"}
        return self._http.stream("GET", self.url + path, params=params, headers=headers, timeout=timeout)


def checked_key(key: str) -> str:
    """An idempotency key that the service will take. Raises InvalidRequest."""
    if not 1 <= len(key) <= KEY_LENGTH_MAX or not _fits_header(key) or key.startswith("~"):
        raise InvalidRequest(
            f"must be 1 to {KEY_LENGTH_MAX} printable ASCII characters, the first one not '~'", "key"
        )
    return key


def _fits_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def problem_of(response: httpx.Response) -> Problem:
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Problem(detail=response.text[:300].strip())


def raise_unless_retryable(response: httpx.Response) -> str:
    """Raise what a refusal means to the caller; returns the reason if it is worth another try."""
    problem = problem_of(response)
    status = response.status_code
    text = problem.detail or problem.title or f"answered {status}"
    if problem.retryable or (problem.code is None and status in PROXY_STATUSES):
        return text if problem.code is not None else f"not jobsvc, or it is starting: {status} {text}"
    if status in INVALID_STATUSES:
        raise InvalidRequest(text.removeprefix(f"{problem.field}: "), problem.field)
    code = problem.code or next((name for name, each in REFUSALS.items() if each.status == status), "invalid")
    raise Refused(Refusal(code, text, problem.field))


def _retry_after_seconds(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0  # a date: the pause will do
