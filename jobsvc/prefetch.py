"""How many jobs a worker should hold: enough to stay busy, few enough to be fair.

A worker holds about `window_seconds` of work by its own measurement: a moving average for each task. What
it has not measured yet counts as a whole window, so it starts with one job and grows by one with each job
that ends. Long jobs: one ahead, and none once the running job has gone on for `patience_seconds`, because
then another worker may be free sooner. Jobs that turn out to be more work than they seemed are given back
(`surplus`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_WEIGHT = 0.2  # of the newest measurement
_OVERHEAD_SECONDS = 0.0001  # what a job costs besides its own time
_SURPLUS_WINDOWS = 5  # of waiting work, before some is given back
_TASKS_MAX = 10_000
GATHER_WINDOWS = 0.25  # of the window: reports of short jobs travel together


class Prefetch:
    """Measures tasks, and says how many jobs to ask for and how many to give back."""

    def __init__(self, window_seconds: float, jobs_max: int, patience_seconds: float) -> None:
        self._window = window_seconds
        self._jobs_max = max(jobs_max, 1)
        self._patience = patience_seconds
        self._seconds: dict[str, float] = {}
        self._recent: float | None = None  # seconds per job, whatever its task
        self._grown = 1

    def ended(self, task: str, seconds: float) -> None:
        """One job of this task has run for so long."""
        seconds += _OVERHEAD_SECONDS
        known = self._seconds.pop(task, None)  # the one used last stands at the end
        self._seconds[task] = _average(known, seconds)
        self._recent = _average(self._recent, seconds)
        self._grown = min(self._grown + 1, self._jobs_max)
        if len(self._seconds) > _TASKS_MAX:
            del self._seconds[next(iter(self._seconds))]

    @property
    def gather_seconds(self) -> float:
        """How long the end of a job may wait for the ends of others. Long jobs have no others to wait for."""
        longest = self._window * GATHER_WINDOWS
        return longest if self._recent is None or self._recent < longest / 2 else 0.0

    def seconds_of(self, task: str) -> float:
        return self._seconds.get(task, max(self._window, _OVERHEAD_SECONDS))

    def room(self, held: Mapping[str, int], running_seconds: float) -> int:
        """How many more jobs to ask for, with so many held by task, one of them running for so long."""
        count = sum(held.values())
        if count == 0 and self._recent is None:
            return 1
        if running_seconds > self._patience:
            return 0
        expected = sum(self.seconds_of(task) * number for task, number in held.items())
        recent = self._recent if self._recent is not None else self._window
        wanted = int((self._window - expected) / recent) if recent > 0 else 0
        if count <= 1 and expected <= self._patience:
            wanted = max(wanted, 1)
        return max(min(wanted, self._grown - count, self._jobs_max - count), 1 if count == 0 else 0)

    def surplus(self, waiting: Sequence[str], running_seconds: float) -> int:
        """How many of the waiting jobs, counted from the last, should go back."""
        if running_seconds > self._patience:
            return len(waiting)
        expected = 0.0
        for place, task in enumerate(waiting):
            expected += self._seconds.get(task, 0.0)
            if place > 0 and expected > self._window * _SURPLUS_WINDOWS:
                return len(waiting) - place
        return 0


def _average(known: float | None, newest: float) -> float:
    return newest if known is None else known + _WEIGHT * (newest - known)


class BusySeconds:
    """Attempts ended and seconds spent, by task, since they were last taken for a report."""

    def __init__(self) -> None:
        self._by_task: dict[str, tuple[int, float]] = {}

    def add(self, task: str, count: int, seconds: float) -> None:
        known_count, known_seconds = self._by_task.get(task, (0, 0.0))
        self._by_task[task] = (known_count + count, known_seconds + seconds)

    def take(self) -> dict[str, tuple[int, float]]:
        taken, self._by_task = self._by_task, {}
        return taken

    def put_back(self, taken: Mapping[str, tuple[int, float]]) -> None:
        """The report did not arrive."""
        for task, (count, seconds) in taken.items():
            self.add(task, count, seconds)
