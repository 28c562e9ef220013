"""Log time: the time of the journal's records, as one manager counts it on.

People see it (when a job was accepted, when it ended), and delays, backoffs and retention are counted in it.
So it follows the clock of whoever leads. But a clock may be wrong, on either manager, and be set right again
by hours. So log time goes on by the monotonic clock, between `SPEED_MIN` and `SPEED_MAX` times as fast, and
within these bounds towards the leader's clock:

    log time = the leader's clock, but no less than (last + SPEED_MIN × time since) and
               no more than (last + SPEED_MAX × time since)

A standby keeps count as well: it notes when it received each record, by its own monotonic clock. When it
takes over it goes on from there, whatever its own clock says; the way of a record to it is all that is lost.

Only where nobody was left to count, which is a start after everything had stopped, log time may jump ahead to
the clock, once, by however long that was. The jump is in the event with which the epoch begins. Nobody can
tell a long rest from a clock that is wrong, so what would lose something minds the jump
(`decisions.retire`). Log time never goes back: where it is ahead of the clock, it slows down until that has
caught up.

A delay is a time from now, of the leader that accepts it. So that 30 seconds are 30 seconds also while log
time is slow, it is turned into what log time will be in so many seconds (`after`), if the clock goes on as it
does; a time of the clock, into what log time will be then (`at_wall`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .commands import Enqueue
from .events import AttemptsEnded, Event

SPEED_MIN = 0.5
SPEED_MAX = 2.0
IN_STEP_SECONDS = 0.001  # less than that is the jitter of two clocks


class LogClock:
    """See the module. `clock` is monotonic; `wall` is this machine's idea of the time."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self.wall = wall
        self._log_time = 0.0  # as it was
        self._at = 0.0  # at this monotonic time
        self._counts = False  # since a leader was heard, or this is one
        self.is_in_step = False  # with this machine's clock

    def read(self, log_time: float) -> None:
        """A record of the past: nobody knows how long ago it was written."""
        if self._counts:
            self.heard(log_time)
        else:
            self._log_time = max(self._log_time, log_time)
            self._at = self._clock()

    def heard(self, log_time: float) -> None:
        """A record that was written just now, or the word of a leader."""
        if log_time >= self._log_time:
            self._log_time, self._at = log_time, self._clock()
        self._counts = True

    def so_far(self) -> float:
        """What a takeover is dated with. Where nobody has counted, it is the event after it that jumps."""
        return self._in(0.0) if self._counts else self._log_time

    def begin(self) -> float:
        """This one leads from now on. Returns by how much log time jumps: 0 if anybody had counted."""
        jump = 0.0
        if not self._counts:
            wall = self.wall()
            jump = max(0.0, wall - self._log_time) if self._log_time else 0.0
            self._log_time = max(self._log_time, wall)
            self._at = self._clock()
            self._counts = True
        return jump

    def now(self) -> float:
        """Log time as it would be for a record that begins now."""
        return self._in(0.0)

    def stamp(self) -> float:
        """The same, as the time of a record: from here it goes on."""
        at, wall = self._clock(), self.wall()  # each once: a leader stamps several times for each job
        log_time = self._between(at - self._at, wall)
        self._log_time, self._at = log_time, at
        self.is_in_step = abs(log_time - wall) < IN_STEP_SECONDS
        return log_time

    def after(self, seconds: float) -> float:
        """Log time in so many seconds from now."""
        return self._in(seconds)

    def seconds_until(self, log_time: float) -> float:
        """How long until then; less than 0 if it has been. The inverse of `after`."""
        passed = self._clock() - self._at
        slowest = (log_time - self._log_time) / SPEED_MIN - passed
        fastest = (log_time - self._log_time) / SPEED_MAX - passed
        return min(slowest, max(fastest, log_time - self.wall()))

    def at_wall(self, wall_time: float) -> float:
        """Log time when this machine's clock will show that time."""
        seconds = wall_time - self.wall()
        if seconds <= 0:
            return self._log_time  # it has been
        log_time = self._in(seconds)
        return wall_time if abs(log_time - wall_time) < IN_STEP_SECONDS else log_time

    def date(self, command: Enqueue) -> None:
        """Turn the times of a command, as callers say them, into log time."""
        if not self.is_in_step:
            for job in command.jobs:
                if job.run_at is not None:
                    job.run_at = self.at_wall(job.run_at)
        for place, seconds in command.delays:
            command.jobs[place].run_at = self.after(seconds)

    def date_backoffs(self, events: Sequence[Event], decided_at: float) -> None:
        """Make pauses that were decided in log time as long as they say, however fast it goes."""
        for event in events:
            if isinstance(event, AttemptsEnded):
                event.run_ats = [each and self.after(each - decided_at) for each in event.run_ats]

    @property
    def ahead_seconds(self) -> float | None:
        """By how much log time is ahead of this machine's clock; below 0 if it is behind. None: not known."""
        return self._in(0.0) - self.wall() if self._counts else None

    def _in(self, seconds: float) -> float:
        return self._between(self._clock() - self._at + seconds, self.wall() + seconds)

    def _between(self, passed: float, wall: float) -> float:
        """Log time after so many seconds, when this machine's clock shows this."""
        least = self._log_time + SPEED_MIN * passed
        most = self._log_time + SPEED_MAX * passed
        return max(least, min(wall, most))
