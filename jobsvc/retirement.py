"""What becomes of a job that has passed its retention: a line for history, and nothing else.

The line is written before the job leaves memory, and the objects that only it needed are deleted after.
A leader that dies in between leaves a line twice, or an object that nobody names: never a job without a line.
"""

from __future__ import annotations

import datetime

import msgspec

from .jobs import AttemptRecord, Job, id_text
from .object_store import ObjectStore


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ndjson(jobs: list[Job]) -> bytes:
    """One line for each job: what it was, and how it ended. Without payload and result."""
    lines = []
    for job in jobs:
        details = job.details
        assert details is not None
        lines.append(
            msgspec.json.encode(
                {
                    "id": id_text(job.id),
                    "task": job.options.task,
                    "queue": job.options.queue,
                    "state": job.state.value,
                    "created_at": _time(job.created_at),
                    "finished_at": _time(details.finished_at),
                    "labels": dict(job.options.labels),
                    "batch": job.options.batch,
                    "attempts": [
                        {
                            "number": attempt.number,
                            "worker": attempt.worker,
                            "started_at": _time(attempt.started_at),
                            "ended_at": _time(attempt.ended_at),
                            "outcome": attempt.outcome.value,
                            "error": attempt.error.message if attempt.error is not None else None,
                        }
                        for attempt in details.history
                    ],
                }
            )
        )
    return b"\n".join(lines) + b"\n"


def key(jobs: list[Job]) -> str:
    """The object for these lines. The same jobs, retired again after a crash, have the same key."""
    first, last = jobs[0].details, jobs[-1].details
    assert first is not None and last is not None
    return f"finished/{first.finish_seq:012d}-{last.finish_seq:012d}-{len(jobs)}.ndjson"


async def log_chunk_keys(store: ObjectStore, jobs: list[Job]) -> list[str]:
    """The objects with output of these jobs. Lists only where an attempt stored some while it ran."""
    keys: list[str] = []
    for job in jobs:
        assert job.details is not None
        if any(_has_chunks(attempt) for attempt in job.details.history):
            keys += await store.list(f"logs/{id_text(job.id)}/")
    return keys


def _has_chunks(attempt: AttemptRecord) -> bool:
    return attempt.log_bytes > (attempt.log.length if attempt.log is not None else 0)
