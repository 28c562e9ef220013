"""What stays of a job that has passed its retention: one line of JSON under `finished/`.

A line is made for every job that ever ran, while the leader has other things to do: so times are formatted by
hand, a second's date once, and whole slices of lines are encoded at once.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from .jobs import AttemptRecord, Job, id_text

_YEAR_10000 = 253_402_300_800.0

_encoder = msgspec.json.Encoder()


class _AttemptLine(msgspec.Struct, gc=False):
    number: int
    worker: str
    started_at: str
    ended_at: str
    outcome: str
    error: str | None


class _Line(msgspec.Struct, gc=False):
    id: str
    task: str
    queue: str
    state: str
    created_at: str
    finished_at: str
    labels: dict[str, str]
    batch: str | None
    attempts: list[_AttemptLine]


@lru_cache(maxsize=1024)
def _date(second: int) -> str:
    return datetime.datetime.fromtimestamp(second, datetime.UTC).isoformat()[:19]


def _time(seconds: float) -> str:
    if not 0.0 <= seconds < _YEAR_10000:
        seconds = 0.0  # the clock of some worker's machine; no reason to stop
    second, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_date(second)}.{micros // 1000:03d}Z"


_shared_time = lru_cache(maxsize=1024)(_time)  # many jobs came, or ended, in the same record


def _attempt(attempt: AttemptRecord) -> _AttemptLine:
    return _AttemptLine(
        attempt.number,
        attempt.worker,
        _time(attempt.started_at),
        _time(attempt.ended_at),
        attempt.outcome.value,
        attempt.error.message if attempt.error is not None else None,
    )


def ndjson(jobs: Sequence[Job]) -> bytes:
    """One line for each job: what it was, and how it ended. Without payload and result."""
    lines = []
    for job in jobs:
        details, options = job.details, job.options
        assert details is not None and details.finished_at is not None
        lines.append(
            _Line(
                id_text(job.id),
                options.task,
                options.queue,
                job.state.value,
                _shared_time(job.created_at),
                _shared_time(details.finished_at),
                dict(options.labels),
                options.batch,
                [_attempt(each) for each in details.history],
            )
        )
    return _encoder.encode_lines(lines)


def key(first: int, last: int, lines: bytes | bytearray) -> str:
    """The object for these lines, of jobs from one place in the feed to another.

    The same lines, written again after a crash, have the same key; others never have."""
    digest = hashlib.blake2b(lines, digest_size=6).hexdigest()
    return f"finished/{first:012d}-{last:012d}-{lines.count(10)}-{digest}.ndjson"
