"""Following the output of a job, attempt after attempt, across broken streams.

A stream may be closed by anybody on the way at any time, so its end means nothing. What counts is what the
service says: an attempt has ended when its stream says so, a job has ended when its document does.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import httpx
import msgspec

from .client_core import raise_unless_retryable

if TYPE_CHECKING:
    from .client_jobs import Job

LOOK_SECONDS = 1.0
REOPEN_SECONDS = 0.2


class _LogEvent(msgspec.Struct):
    """The data of one event; `state` is there when the attempt has ended."""

    text: str = ""
    state: str | None = None


_event = msgspec.json.Decoder(_LogEvent)


def follow_logs(job: Job, attempt: int | None) -> Iterator[str]:
    """The output of one attempt until it has ended, or of the latest and all that follow."""
    number = attempt
    while True:
        document = job.refresh()
        latest = document["attempt"]
        number = number or latest
        if 0 < number <= latest:
            yield from _follow_attempt(job, number)
            if attempt is not None:
                return
            number += 1
        elif document["finished_at"] is not None:
            return
        else:
            job.look(LOOK_SECONDS)


def _follow_attempt(job: Job, attempt: int) -> Generator[str, None, None]:
    """What an attempt writes, once, however often its stream must be opened again."""
    shown = 0
    while True:
        seen = 0
        for event in _events(job, attempt):
            if event.state is not None:
                return
            fresh = event.text[max(0, shown - seen) :]
            seen += len(event.text)
            if fresh:
                shown = seen
                yield fresh
        time.sleep(REOPEN_SECONDS)
        job.look(LOOK_SECONDS)


def _events(job: Job, attempt: int) -> Iterator[_LogEvent]:
    """The events of one stream until it breaks. Raises what cannot be mended by opening it again."""
    try:
        with job.log_stream(attempt) as stream:
            refusal = stream.refusal()
            if refusal is not None:
                raise_unless_retryable(refusal)
                return
            for line in stream:
                if line.startswith("data:"):
                    yield _event.decode(line.removeprefix("data:"))
    except httpx.HTTPError:
        return  # the caller asks for the job before it opens the next stream: that finds a leader, or raises
