"""The core of the Python client: what is sent, what an answer means, when it is sent again, when given up.

All of it is values: no httpx, no clock, no thread, no chance of its own. A *talk* is a generator. It yields
what is to be done (`Send`, `Pause`, `Together`) and is told what came of it and when, a `Heard`. Whoever
drives it does the rest: `client_http` blocks, `client_async` awaits, the simulation does either in virtual
time. `client_feed` has the talks about the completion feed.

Deadlines, from the inside out. The service waits as long as it was asked to (`wait_seconds`, at most a
minute). An answer may take `ANSWER_SECONDS` more, before the request is sent again. It is sent again for the
client's `deadline_seconds`; then it was Unavailable. A caller's own `timeout` comes first: from it on nothing
is sent again, and the caller is told WaitTimedOut. Only a failover may take longer than a shorter timeout.
"""

from __future__ import annotations

import datetime
import math
import numbers
import urllib.parse
from collections.abc import Callable, Generator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec

from .errors import REFUSALS, InvalidRequest, Refusal, Refused, Unavailable, WaitTimedOut

PAUSE_SECONDS = 0.05  # doubles with each round of addresses
PAUSE_SECONDS_MAX = 2.0
ANSWER_SECONDS = 20.0  # a replica answers within its own deadline, which is shorter
TRY_SECONDS_MIN = 0.1
MARGIN_SECONDS = 2.0  # for the way of an answer that was given in time
FAILOVER_SECONDS = 10.0
LONG_POLL_SECONDS = 20.0
WAIT_SECONDS_MAX = 60.0  # the service waits no longer
KEY_LENGTH_MAX = 255
INVALID_STATUSES = frozenset({400, 413, 415, 422})
# What a proxy says when there is nobody behind it. 404 too: Serve says that while it starts.
PROXY_STATUSES = frozenset({404, 408, 425, 429, 500, 502, 503, 504})
TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})

T = TypeVar("T")


class Request(NamedTuple):
    """What is asked. `wait_seconds` is how long the service is asked to wait before it answers."""

    method: str
    path: str
    content: bytes | None = None
    params: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = {}
    wait_seconds: float = 0.0
    good: Sequence[int] = (200, 202)


class Answer(NamedTuple):
    """What was answered. `headers` are found whatever their case."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


class Send(NamedTuple):
    """Send this there, and wait so long for the next piece of the answer."""

    request: Request
    url: str
    timeout_seconds: float


class Pause(NamedTuple):
    """Do nothing for a while."""

    seconds: float


class Together(NamedTuple):
    """Have these talks, a few at a time; each is begun by the time when it begins."""

    talks: Sequence[Callable[[float], Talk[Any]]]


class Heard(NamedTuple):
    """What came of a step, and when: an answer, or why there is none; of talks, their results in order."""

    at: float
    answer: Answer | None = None
    failure: str = ""
    results: Sequence[Any] = ()


Step: TypeAlias = Send | Pause | Together
Talk: TypeAlias = Generator[Step, Heard, T]


class Problem(msgspec.Struct):
    """What the client reads of a problem document (RFC 9457)."""

    title: str = ""
    detail: str = ""
    code: str | None = None
    field: str | None = None
    retryable: bool = False
    state: str | None = None
    error: Any = None


class Route:
    """The addresses of a service, and which of them is in use. Threads need no lock: all write the same."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self.place = 0

    @property
    def url(self) -> str:
        return self.urls[self.place]

    def leave(self, place: int) -> None:
        """Go on to the next address, unless another one who failed there has done so."""
        if self.place == place:
            self.place = (place + 1) % len(self.urls)


class Wait:
    """What is left of a caller's patience, in slices that the service will wait."""

    def __init__(self, timeout: float | None, now: float) -> None:
        self.timeout = checked_seconds("timeout", timeout)
        self.until = math.inf if self.timeout is None else now + self.timeout
        # An answer that was given in time may be on its way; and a failover is a pause, for a short wait too.
        self.latest = max(self.until + MARGIN_SECONDS, now + FAILOVER_SECONDS)

    def left_seconds(self, now: float) -> float | None:
        return None if self.until == math.inf else max(0.0, self.until - now)

    def slice_seconds(self, now: float) -> float:
        left = self.left_seconds(now)
        return LONG_POLL_SECONDS if left is None else min(LONG_POLL_SECONDS, left)

    def check(self, now: float, what: str) -> None:
        """Raises WaitTimedOut."""
        if self.left_seconds(now) == 0.0:
            raise WaitTimedOut(f"{what} after {self.timeout:g} s")


class _Deadline:
    """When an exchange is given up: by the client's own deadline, or because the caller's time is over."""

    def __init__(
        self, now: float, deadline_seconds: float | None, wait_seconds: float, wait: Wait | None
    ) -> None:
        self._own = math.inf if deadline_seconds is None else now + deadline_seconds
        self._wait_seconds = wait_seconds
        self._waited_seconds = 0.0
        self._callers = math.inf if wait is None else wait.latest

    def left_seconds(self, now: float) -> float:
        """For a try that begins now."""
        return min(self._own + self._wait_seconds, self._callers) - now

    def waited(self, seconds: float) -> None:
        """A try was silent for so long. As much of that as was asked for is not the service's fault."""
        self._waited_seconds = min(self._wait_seconds, self._waited_seconds + seconds)

    def check(self, at: float, why: str) -> None:
        """Raises Unavailable or WaitTimedOut if it will have passed by then."""
        own = self._own + self._waited_seconds
        if at >= self._callers and self._callers < own:
            raise WaitTimedOut(f"nobody has answered in time: {why}")
        if at >= own:
            raise Unavailable(why)


class Talks:
    """The talks with one service."""

    def __init__(self, route: Route, deadline_seconds: float | None, random: Random) -> None:
        self.route = route
        self.deadline_seconds = checked_seconds("deadline_seconds", deadline_seconds)
        self.random = random

    def exchange(self, request: Request, now: float, wait: Wait | None = None) -> Talk[tuple[Answer, float]]:
        """One exchange, sent again until it is answered; the answer, and when it came.

        `wait` is the caller's own, that this is a part of. Raises InvalidRequest, Refused, Unavailable,
        WaitTimedOut.
        """
        deadline = _Deadline(now, self.deadline_seconds, request.wait_seconds, wait)
        route = self.route
        pause, tries = PAUSE_SECONDS, 0
        while True:
            place, wait_seconds = route.place, request.wait_seconds
            if wait is not None:
                wait_seconds = min(wait_seconds, max(0.0, wait.until - now))
            left = max(wait_seconds + TRY_SECONDS_MIN, deadline.left_seconds(now))
            timeout = min(ANSWER_SECONDS + wait_seconds, left)
            heard = yield Send(_that_waits(request, wait_seconds), route.urls[place], timeout)
            deadline.waited(heard.at - now)
            now, answer, retry_after = heard.at, heard.answer, 0.0
            if answer is None:
                why = heard.failure
            elif answer.status_code in request.good:
                return answer, now
            else:
                why = raise_unless_retryable(answer)
                retry_after = _retry_after_seconds(answer)
            route.leave(place)
            tries += 1
            if tries % len(route.urls) == 0:
                seconds = max(self.random.uniform(0, pause), retry_after)
                deadline.check(now + seconds, f"{route.urls[place]}: {why}")
                now = (yield Pause(seconds)).at
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    def job_end(self, path: str, wait: Wait, now: float) -> Talk[dict[str, Any]]:
        """A job's document when it has ended. Raises WaitTimedOut."""
        while True:
            answer, now = yield from self.exchange(long_poll(path, wait.slice_seconds(now)), now, wait)
            document: dict[str, Any] = msgspec.json.decode(answer.content)
            if document["state"] in TERMINAL_STATES:
                return document
            wait.check(now, f"job {document['id']} is {document['state']}")

    def job_result(
        self, job_id: str, path: str, wait: Wait, now: float, *, has_ended: bool = False
    ) -> Talk[Answer]:
        """The answer that has a job's result (200), or says why there will be none (409). WaitTimedOut.

        `has_ended`: the result is there, so it may take as long as any request.
        """
        part_of = None if has_ended else wait
        while True:
            poll = long_poll(path, wait.slice_seconds(now), (200, 202, 409))
            answer, now = yield from self.exchange(poll, now, part_of)
            if answer.status_code != 202:
                return answer
            wait.check(now, f"job {job_id} has no result")


def job_path(job_id: str, rest: str = "") -> str:
    """A job's address, or that of a part of it. Raises InvalidRequest."""
    if not isinstance(job_id, str) or not job_id.strip("."):  # the address of something else
        raise InvalidRequest(f"{job_id!r} is no id of a job", "id")
    return f"/v1/jobs/{urllib.parse.quote(job_id, safe='')}{rest}"


def long_poll(path: str, seconds: float, good: Sequence[int] = (200,)) -> Request:
    """A look at a job that waits for its end."""
    headers = {"Prefer": f"wait={seconds:.3f}"}
    return Request("GET", path, headers=headers, wait_seconds=seconds, good=good)


def _that_waits(request: Request, seconds: float) -> Request:
    """The same request, asking for another wait: what is sent again late must not wait from the beginning."""
    if seconds == request.wait_seconds:
        return request
    if "Prefer" in request.headers:
        request = request._replace(headers={**request.headers, "Prefer": f"wait={seconds:.3f}"})
    if request.params and "wait" in request.params:
        request = request._replace(params={**request.params, "wait": round(seconds, 3)})
    return request


# --- what may be asked ------------------------------------------------------------------------------


def checked_seconds(field: str, seconds: Any) -> float | None:
    """A time to wait: None is without end, what is below 0 is 0. Raises InvalidRequest."""
    if seconds is None:
        return None
    if isinstance(seconds, datetime.timedelta):
        seconds = seconds.total_seconds()
    number = math.nan
    if isinstance(seconds, numbers.Real) and not isinstance(seconds, bool):
        try:
            number = float(seconds)
        except OverflowError:  # an int that no float can hold
            number = math.inf if seconds == abs(seconds) else -math.inf
    if math.isnan(number):
        raise InvalidRequest(f"must be a number of seconds, or None for no end, not {seconds!r}", field)
    return max(0.0, number)


def checked_key(key: str) -> str:
    """An idempotency key that the service will take. Raises InvalidRequest."""
    if not isinstance(key, str):
        raise InvalidRequest(f"must be a text, not {key!r}", "key")
    if not 1 <= len(key) <= KEY_LENGTH_MAX or not fits_header(key) or key.startswith("~"):
        raise InvalidRequest(
            f"must be 1 to {KEY_LENGTH_MAX} printable ASCII characters, the first one not '~'", "key"
        )
    return key


def fits_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


# --- what an answer means ---------------------------------------------------------------------------


def problem_of(answer: Answer) -> Problem:
    try:
        return msgspec.json.decode(answer.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Problem(detail=answer.text[:300].strip())


def raise_unless_retryable(answer: Answer) -> str:
    """Raise what a refusal means to the caller; returns the reason if it is worth another try."""
    problem = problem_of(answer)
    status = answer.status_code
    text = problem.detail or problem.title or f"answered {status}"
    if problem.retryable or (problem.code is None and status in PROXY_STATUSES):
        return text if problem.code is not None else f"not jobsvc, or it is starting: {status} {text}"
    if status in INVALID_STATUSES:
        raise InvalidRequest(text.removeprefix(f"{problem.field}: "), problem.field)
    code = problem.code or next((name for name, each in REFUSALS.items() if each.status == status), "invalid")
    raise Refused(Refusal(code, text, problem.field))


def _retry_after_seconds(answer: Answer) -> float:
    try:
        seconds = float(answer.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0  # a date: the pause will do
    return seconds if 0 < seconds < math.inf else 0.0
