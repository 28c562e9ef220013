"""The brake of one pool: workers that cannot live are started ever more seldom.

A broken environment ends every worker as it starts, or has the start itself refused. Started again at once,
they would do nothing but load the machine. So the second early death in a row, and every start that is
refused, make a pause that doubles up to a minute. Pools have a brake each: one that is broken holds up no
other.

A worker that has lived for `EARLY_DEATH_SECONDS` shows that this pool's workers can live. Nothing is said by
the end of a worker that was told to end, and by that of one that the last leader started. Deaths within a
second are one accident, a machine that went, say. Pure: times are arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .scaling import since

EARLY_DEATH_SECONDS = 8.0
AT_ONCE_SECONDS = 1.0  # counted from the first: a row of quick deaths is not one long accident
PAUSE_SECONDS_MAX = 60.0


class StartBrake:
    """Told of starts, refusals and deaths; says whether the next start may be tried."""

    def __init__(self) -> None:
        self._young: dict[str, float] = {}  # workers that have not shown yet that they can live; started at
        self._times = 0  # early deaths and refusals in a row
        self._death_at = float("-inf")
        self._not_before = float("-inf")
        self._since = 0.0
        self._what = self._why = ""

    @property
    def young(self) -> Iterable[str]:
        return self._young.keys()

    def started(self, worker: str, now: float) -> None:
        self._young[worker] = now

    def ended(self, worker: str) -> None:
        """It was told to end: its death says nothing about the next ones."""
        self._young.pop(worker, None)

    def refused(self, why: str, now: float, pause_seconds_min: float = 0.0) -> None:
        """A start raised, or came to nothing."""
        self._count("workers cannot be started", why, now)
        self._not_before = now + max(self._pause_seconds(), pause_seconds_min)

    def died(self, worker: str, why: str, now: float) -> None:
        started_at = self._young.pop(worker, None)
        if started_at is None:
            return
        if now - started_at > EARLY_DEATH_SECONDS:
            self._times = 0
        elif now - self._death_at >= AT_ONCE_SECONDS:
            self._death_at = now
            self._count("workers die as they start", why, now)
            if self._times > 1:  # one may be an accident
                self._not_before = now + self._pause_seconds()

    def looked(self, now: float, starting: Collection[str]) -> None:
        """Those that have lived for a while show that workers can live; not those that are still starting."""
        grown = [
            name
            for name, since in self._young.items()
            if now - since > EARLY_DEATH_SECONDS and name not in starting
        ]
        for name in grown:
            del self._young[name]
            self._times = 0

    def may_start(self, now: float) -> bool:
        return self._times == 0 or now >= self._not_before

    def problem(self, now: float, log_time: float) -> str | None:
        """What is wrong and since when, in words; None if nothing is, as far as is known."""
        if self._times == 0 or self._not_before == float("-inf"):
            return None
        text = self._what + since(log_time - (now - self._since))
        if self._times > 1:
            text += f", {self._times} times"
        if self._why:
            text += f": {self._why}"
        return f"{text}; the next try is in {max(0.0, self._not_before - now):.0f} s"

    def _count(self, what: str, why: str, now: float) -> None:
        if self._times == 0:
            self._since = now
            self._not_before = float("-inf")
        self._times += 1
        self._what = what
        self._why = why or self._why

    def _pause_seconds(self) -> float:
        return min(2.0 ** min(self._times, 10), PAUSE_SECONDS_MAX)
