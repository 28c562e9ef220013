"""How the client reaches the service: addresses, connections, and the blocking loop under all talks.

Every write carries an idempotency key, so whatever happened to a request, it may be sent again under the same
key. It is, until its deadline: to the next address at once, and after a pause with full jitter when all of
them have been tried; a `Retry-After` is kept to. What sending again cannot mend is raised at once. All of
that is decided in `client_core`; here it is done.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx

from .client_core import (
    Answer,
    Heard,
    Pause,
    Request,
    Route,
    Send,
    Step,
    Talk,
    Talks,
    Together,
    checked_key,
    fits_header,
)
from .commands import PASSING_KEY_PREFIX
from .discovery import discovery_file, find_service
from .errors import InvalidRequest, Unavailable

CONNECT_SECONDS = 3.0
STREAM_SILENCE_SECONDS = 30.0  # the service sends something at least every 10 s, a failover lasts up to 15
KEPT_ALIVE_MAX = 32
REQUESTS_IN_FLIGHT = 8  # of one call
OWN_KEY_SECONDS = 240.0  # the service remembers a passing key for longer than this
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

T = TypeVar("T")


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
    """Requests to one service, from any number of threads, and in any process that is forked from this one.

    A connection belongs to the process that opened it: two that wrote to one would read each other's answers.
    So a forked process opens its own, whatever it was that forked.
    """

    def __init__(self, addresses: Addresses, deadline_seconds: float | None) -> None:
        if addresses.token is not None and not fits_header(addresses.token):
            raise InvalidRequest("must be printable ASCII", "token")
        self.token = addresses.token
        self._deadline_seconds = deadline_seconds
        self.talks = Talks(Route(addresses.urls), deadline_seconds, random.Random())
        self._opening = threading.Lock()
        self._http: httpx.Client | None = None
        self._is_closed = False
        self._pid = os.getpid()
        _connections.add(self)

    @property
    def urls(self) -> list[str]:
        return self.talks.route.urls

    def options(self) -> dict[str, Any]:
        """What every httpx client of this service is made with, a blocking one or another."""
        is_local = all(httpx.URL(url).host in LOOPBACK_HOSTS for url in self.urls)
        return {
            "headers": {"Authorization": f"Bearer {self.token}"} if self.token else {},
            # Threads that wait for jobs hold a connection each; nobody else may have to wait for theirs.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_ALIVE_MAX),
            "trust_env": not is_local,  # a proxy of the environment does not reach this machine's loopback
        }

    def check_open(self) -> None:
        """Raises InvalidRequest if it has been closed."""
        if self._is_closed:
            raise InvalidRequest("has been closed", "client")

    @property
    def http(self) -> httpx.Client:
        self.check_open()
        if self._pid != os.getpid():
            self.forked()  # by somebody who does not tell Python
        http = self._http
        if http is None:
            with self._opening:
                http = self._http = self._http or self.open()
        return http

    def open(self) -> httpx.Client:
        """A client for the threads of one process."""
        return httpx.Client(**self.options())

    def open_async(self) -> httpx.AsyncClient:
        """A client for one event loop."""
        return httpx.AsyncClient(**self.options())

    def forked(self) -> None:
        """This is another process now. What the parent has open is left alone: not used, not shut down."""
        self._pid = os.getpid()
        _left_alone.append(self._http)
        self._http = None
        self._opening = threading.Lock()  # some other thread of the parent may hold the old one for ever
        self.talks.random = random.Random()

    def close(self) -> None:
        self._is_closed = True
        if self._http is not None and self._pid == os.getpid():
            self._http.close()

    # --- talks ---

    def run(self, talk_of: Callable[[float], Talk[T]]) -> T:
        """Drive a talk to its end, blocking."""
        talk = talk_of(time.monotonic())
        try:
            step = next(talk)
            while True:
                step = talk.send(self._do(step))
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, step: Step) -> Heard:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return Heard(time.monotonic())
        if isinstance(step, Together):
            with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
                return Heard(results=list(pool.map(self.run, step.talks)), at=time.monotonic())
        try:
            response = self.http.request(**sent(step))
        except httpx.HTTPError as error:
            return Heard(time.monotonic(), failure=str(error) or type(error).__name__)
        except RuntimeError:
            self.check_open()  # another thread has closed it just now
            raise
        return Heard(time.monotonic(), answer_of(response))

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
    ) -> Answer:
        """One exchange, sent again until it is answered or its deadline has passed.

        `wait_seconds` is how long the service was asked to wait; it comes on top of the deadline. Raises
        InvalidRequest, Refused, Unavailable.
        """
        all_headers = dict(headers or {})
        if method != "GET":
            all_headers["Idempotency-Key"] = self._own_key(wait_seconds) if key is None else checked_key(key)
        request = Request(method, path, content, params, all_headers, wait_seconds, good)
        answer, _ = self.run(lambda now: self.talks.exchange(request, now))
        return answer

    def _own_key(self, wait_seconds: float) -> str:
        """For the retries of one call: the service need not remember it much longer than they last."""
        deadline = self._deadline_seconds
        passing = deadline is not None and deadline + wait_seconds <= OWN_KEY_SECONDS
        return f"{PASSING_KEY_PREFIX if passing else ''}{uuid.uuid4()}"

    @contextlib.contextmanager
    def stream(self, path: str, params: Mapping[str, Any]) -> Iterator[LineStream]:
        """An event stream, once; the caller opens it again when it breaks."""
        timeout = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)
        headers = {"Accept": "text/event-stream"}
        http = self.http
        url = self.talks.route.url + path
        request = http.build_request("GET", url, params=params, headers=headers, timeout=timeout)
        response = http.send(request, stream=True)
        pid = os.getpid()
        try:
            yield LineStream(response, pid)
        finally:
            if pid == os.getpid():
                response.close()


class LineStream:
    """The lines of an answer that goes on. After a fork they are the parent's alone: they end here."""

    def __init__(self, response: httpx.Response, pid: int) -> None:
        self._response = response
        self._pid = pid

    def refusal(self) -> Answer | None:
        """What was answered instead of a stream; None if there is one."""
        if self._response.status_code == 200:
            return None
        self._response.read()
        return answer_of(self._response)

    def __iter__(self) -> Iterator[str]:
        lines = self._response.iter_lines()
        while self._pid == os.getpid():
            try:
                yield next(lines)
            except StopIteration:
                return
        _left_alone.append(lines)


def sent(step: Send) -> dict[str, Any]:
    """A step as httpx takes it."""
    request = step.request
    return {
        "method": request.method,
        "url": step.url + request.path,
        "content": request.content,
        "params": request.params,
        "headers": request.headers,
        "timeout": httpx.Timeout(step.timeout_seconds, connect=min(CONNECT_SECONDS, step.timeout_seconds)),
    }


def answer_of(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


_left_alone: list[object] = []  # ends of what is the parent's: to drop them would be to close them
_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _all_forked() -> None:
    for connection in list(_connections):
        connection.forked()


os.register_at_fork(after_in_child=_all_forked)
