"""Holding back: a runner whose job processes cannot work takes no jobs, and tries again.

A process that cannot import its tasks, or does not come up at all, is of no use to any job: not the job is
wrong but what is around it, a database that the module asks when it is imported, a file with a syntax error
that somebody is just saving, a full disk. So jobs are given back without charge, and a fresh process is tried
after a pause, which doubles up to a minute: fresh, because Python keeps what a failed import has half done.
The first process that is fit ends it.
"""

from __future__ import annotations

from .job_frames import HeldBack

PAUSE_SECONDS = 0.5
PAUSE_SECONDS_MAX = 60.0
WHY_LENGTH_MAX = 500


class HoldBack:
    """Whether a runner is held back, and when the next process is to be tried."""

    def __init__(self) -> None:
        self.told: HeldBack | None = None  # what the runner says of itself
        self._failures = 0

    def failed(self, why: str, now: float) -> None:
        """A process has turned out to be of no use. `now` is the wall clock."""
        self._failures += 1
        self.begins(why, now)

    def begins(self, why: str, now: float) -> None:
        """There is no process that can work. The first of several reasons in a row says since when."""
        since = self.told.since if self.told is not None else now
        self.told = HeldBack(_one_line(why), since)

    def ends(self) -> bool:
        """A process is fit. True if there was none before."""
        was_held, self.told, self._failures = self.told is not None, None, 0
        return was_held

    def begins_anew(self) -> None:
        """Something has changed: what failed before may work now."""
        self._failures = 0

    @property
    def pause_seconds(self) -> float:
        """Before the next process is tried."""
        if self._failures == 0:
            return 0.0
        return min(PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 60), PAUSE_SECONDS_MAX)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WHY_LENGTH_MAX else line[: WHY_LENGTH_MAX - 4] + " ..."
