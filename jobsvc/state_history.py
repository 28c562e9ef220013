"""How the service went: samples of the state, in rings of fixed size. Pure; times are arguments.

Both managers sample what they apply, so a new leader already has the history of the time when it stood by.
It is volatile: a manager that begins anew begins with none.
"""

from __future__ import annotations

import heapq
import zlib
from collections import deque

from . import commands as c
from .jobs import State
from .queue_state import QueueState

RINGS = ((5.0, 720), (60.0, 1_440), (300.0, 864))  # (step in seconds, points): an hour, a day, three days
RATE_POINTS = 12
TAKEOVERS_MAX = 50
PAUSED_SHOWN = 10


class StateHistory:
    """Samples of one manager's life."""

    def __init__(self) -> None:
        self._rings = [(step, deque[c.HistoryPoint](maxlen=length)) for step, length in RINGS]
        self._epoch = 0
        self._takeovers: deque[c.Takeover] = deque(maxlen=TAKEOVERS_MAX)

    def sample(
        self, state: QueueState, now: float, *, failed: float = 0, workers: int = 0, busy: int = 0
    ) -> None:
        """Take note of the state if it is time to. Call it at least as often as the first ring's step."""
        if state.epoch != self._epoch:
            if self._epoch:
                self._takeovers.append(c.Takeover(state.epoch, now))
            self._epoch = state.epoch
        due = [ring for step, ring in self._rings if not ring or now - ring[-1].at >= step]
        if not due:
            return
        oldest, _ = oldest_queued(state)
        point = c.HistoryPoint(
            now,
            state.total(State.SCHEDULED),
            state.total(State.QUEUED),
            state.total(State.RUNNING),
            state.next_seq - 1,
            state.feed.next_place - 1,
            int(failed),
            0.0 if oldest is None else max(0.0, now - oldest),
            workers,
            busy,
        )
        for ring in due:
            ring.append(point)

    def read(self, seconds: float) -> c.History:
        """The finest ring that reaches back so far."""
        step, points = next(
            (
                ring
                for ring, (step, length) in zip(self._rings, RINGS, strict=True)
                if step * length >= seconds
            ),
            self._rings[-1],
        )
        first = points[-1].at - seconds if points else 0.0
        return c.History(step, [point for point in points if point.at >= first], list(self._takeovers))

    def rates(self) -> tuple[float, float, float]:
        """Jobs enqueued, finished and failed per second, over the last minute."""
        points = self._rings[0][1]
        if len(points) < 2:
            return 0.0, 0.0, 0.0
        first, last = points[max(-RATE_POINTS - 1, -len(points))], points[-1]
        seconds = max(1.0, last.at - first.at)
        return (
            max(0, last.enqueued - first.enqueued) / seconds,
            max(0, last.finished - first.finished) / seconds,
            max(0, last.failed - first.failed) / seconds,
        )

    def pulse(self, state: QueueState) -> c.Pulse:
        """What one look should tell."""
        at, queue = oldest_queued(state)
        waiting = {queue: state.counts[queue][State.QUEUED] for queue in state.paused}
        paused = heapq.nlargest(PAUSED_SHOWN, waiting, key=waiting.__getitem__)
        return c.Pulse(
            state.log_time,
            at,
            queue,
            paused,
            sum(waiting.values()),
            len(state.failures),
            *self.rates(),
            mark=mark(state),
        )


def mark(state: QueueState) -> int:
    """Another number after jobs or queues have changed; the same one while there are only idle records.

    A change that takes itself back within one look is missed: whoever relies on it looks again now and then.
    """
    paused = len(state.paused)
    seen = (state.epoch, state.next_seq, state.feed.next_place, len(state.jobs), state.totals(), paused)
    return zlib.crc32(repr(seen).encode())


def oldest_queued(state: QueueState) -> tuple[float | None, str | None]:
    """When the oldest queued job was accepted, and its queue."""
    found = state.lanes.oldest()
    return (None, None) if found is None else (found[0].created_at, found[1])
