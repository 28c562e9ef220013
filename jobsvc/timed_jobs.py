"""Jobs by the time at which something is due for them: heaps whose entries are removed lazily.

An entry is `(time, a number that tells which one it is, job)`, and speaks for its job as long as the job says
the same of itself. Where events are applied the top is kept live: whoever looks for what is due, looks at a
bounded number of entries from there.
"""

from __future__ import annotations

import heapq

from .jobs import Job, State

TimedJob = tuple[float, int, Job]


def drop_dead_due(due: list[TimedJob]) -> None:
    """Of jobs that wait for their time to run: `(run_at, seq, job)`."""
    while due and not _waits_until(due[0]):
        heapq.heappop(due)


def _waits_until(entry: TimedJob) -> bool:
    run_at, _, job = entry
    return job.state is State.SCHEDULED and job.details is not None and job.details.run_at == run_at
