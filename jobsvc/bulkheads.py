"""Bulkheads: what goes wrong beside the commit path costs the part where it goes wrong, and nothing else.

A leadership has one path that must not fail: decide, apply, append. Everything beside it (scaling,
retirement, history, metrics, the loss of a worker, ...) is a part. A part that raises is named in the status,
counted, written to the log, and tried again after a pause that doubles up to a minute; whoever leads goes on
leading.

Two kinds of errors pass through. A `Fatal` says that this process must not go on, and a `StaleReader` that
its state is of another history: no part can put that right. Everything else is the part's own trouble.

Times are handed in: `clock` is the event loop's, `wall` is for people.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

from . import commands as c
from .errors import Fatal
from .journal import StaleReader

PAUSE_SECONDS = 1.0
PAUSE_SECONDS_MAX = 60.0
REMEMBERED_SECONDS = 600.0  # a trouble that did not come again
TROUBLES_MAX = 50
TEXT_CHARACTERS_MAX = 300

ENDS_ALL = (Fatal, StaleReader)

_log = logging.getLogger(__name__)


class _Trouble:
    """A part that fails, since when, and when it is tried again."""

    __slots__ = ("at", "next_try_at", "since", "text", "times")

    def __init__(self, since: float) -> None:
        self.since = since  # wall clock
        self.times = 0
        self.at = self.next_try_at = 0.0
        self.text = ""


class _Alone:
    """A part at work. Every report comes by here a few times, so it is no generator."""

    __slots__ = ("_bulkheads", "_part", "_subject")

    def __init__(self, bulkheads: Bulkheads, part: str, subject: str) -> None:
        self._bulkheads = bulkheads
        self._part = part
        self._subject = subject

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._bulkheads.worked(self._part, self._subject)
            return False
        if isinstance(error, ENDS_ALL) or not isinstance(error, Exception):
            return False
        self._bulkheads.failed(self._part, error, self._subject)
        return True


class Bulkheads:
    """The parts of one process, and what is wrong with them. A part may have a subject: a pool, a worker."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._troubles: dict[tuple[str, str], _Trouble] = {}
        self._failures: Counter[str] = Counter()  # by part

    # --- guarding ---

    def alone(self, part: str, subject: str = "") -> _Alone:
        """For `with`: what raises in there ends there."""
        return _Alone(self, part, subject)

    def call(self, part: str, work: Callable[..., object], *arguments: Any) -> None:
        """One call, guarded in the same way."""
        try:
            work(*arguments)
        except ENDS_ALL:
            raise
        except Exception as error:
            self.failed(part, error)
        else:
            if self._troubles:
                self.worked(part)

    def count(self, tally: Callable[..., object], *arguments: Any) -> None:
        """Something is counted for metrics, if that works."""
        try:
            tally(*arguments)
        except ENDS_ALL:
            raise
        except Exception as error:
            self.failed("metrics", error, getattr(tally, "__name__", ""))
        else:
            if self._troubles:
                self.worked("metrics", getattr(tally, "__name__", ""))

    def due(self, part: str, subject: str = "") -> bool:
        """False while a part that has failed has its pause."""
        trouble = self._troubles.get((part, subject))
        return trouble is None or self._clock() >= trouble.next_try_at

    async def keep(self, part: str, work: Callable[[], Coroutine[Any, Any, None]], subject: str = "") -> None:
        """Have a part work until it is done: it begins anew, after a pause, whenever it fails."""
        while True:
            try:
                await work()
            except ENDS_ALL:
                raise
            except Exception as error:
                await asyncio.sleep(self.failed(part, error, subject))
            else:
                self.worked(part, subject)
                return

    # --- keeping account ---

    def failed(self, part: str, error: BaseException, subject: str = "") -> float:
        """Take note of a failure. Returns the pause before the next try."""
        now = self._clock()
        trouble = self._troubles.pop((part, subject), None)
        if trouble is None or now - trouble.at > REMEMBERED_SECONDS:
            trouble = _Trouble(self._wall())
        self._troubles[part, subject] = trouble  # the one that failed last stands at the end
        if len(self._troubles) > TROUBLES_MAX:
            del self._troubles[next(iter(self._troubles))]
        pause = min(PAUSE_SECONDS * 2.0 ** min(trouble.times, 10), PAUSE_SECONDS_MAX)
        if now >= trouble.next_try_at:  # one that comes sooner, as calls do, is counted and not written again
            name = f"{part} {subject}".rstrip()
            _log.error("%s failed, and only that; the next try is in %g s", name, pause, exc_info=error)
            trouble.next_try_at = now + pause
        trouble.times += 1
        trouble.at = now
        trouble.text = said(error)
        self._failures[part] += 1
        return pause

    def worked(self, part: str, subject: str = "") -> None:
        """It is in order, as far as it can tell. Within its pause it cannot: a part may do several things."""
        if self._troubles and self.due(part, subject):
            self._troubles.pop((part, subject), None)

    def problems(self) -> list[c.PartProblem]:
        """What is not in order now, or was not a short while ago."""
        now = self._clock()
        return [
            c.PartProblem(
                f"{part} {subject}".rstrip(),
                trouble.text,
                trouble.since,
                trouble.times,
                max(0.0, trouble.next_try_at - now),
            )
            for (part, subject), trouble in self._troubles.items()
            if now - trouble.at <= REMEMBERED_SECONDS
        ]

    def counts(self) -> list[c.Count]:
        """Failures by part, for metrics."""
        return [c.Count("part_failures", {"part": part}, number) for part, number in self._failures.items()]


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:TEXT_CHARACTERS_MAX]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
