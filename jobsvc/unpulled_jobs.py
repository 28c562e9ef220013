"""Finished hash jobs that nobody has pulled yet, in the order of completion, for `POST /pullCompleted`.

The latest go first when they are pulled, and the oldest when they are retired, so both ends are kept clean.
What leaves from the middle lingers until more lingers than is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .jobs import Job, State

LINGER_MIN = 1_000


def awaits_pull(job: Job) -> bool:
    details = job.details
    return job.state is State.SUCCEEDED and details is not None and not details.pulled


class UnpulledJobs:
    """See the module. A job says itself whether it still awaits its pull."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._held = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def latest(self) -> Iterator[Job]:
        """Those that await their pull, latest completion first."""
        return filter(awaits_pull, reversed(self._jobs))

    def add(self, job: Job) -> None:
        self._jobs.append(job)
        self._held += 1

    def left(self, jobs: int) -> None:
        """So many of them await it no more."""
        self._held -= jobs
        while self._jobs and not awaits_pull(self._jobs[-1]):
            self._jobs.pop()
        while self._jobs and not awaits_pull(self._jobs[0]):
            self._jobs.popleft()
        if len(self._jobs) > 2 * self._held + LINGER_MIN:
            self._jobs = deque(filter(awaits_pull, self._jobs))
