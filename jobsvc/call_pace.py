"""When a worker may call its leader again, and whose answers count."""

from __future__ import annotations

import random

from .errors import Unavailable

RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 1.0
EMPTY_ANSWER_SECONDS = 1.0


class CallPace:
    """Times on the event loop's clock, from which the worker works out its next call."""

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._retry_seconds = RETRY_SECONDS
        self.pause_until = 0.0  # nobody answered: no call at all before this
        self.quiet_until = 0.0  # nothing urgent: no waiting call before this
        self.answered_at = 0.0
        self.called_at = 0.0
        self.calls = 0  # made so far; the number of the newest
        self.in_air = 0
        self._epoch = 0  # the newest that has answered

    def begin(self, now: float) -> int:
        self.calls += 1
        self.in_air += 1
        self.called_at = now
        return self.calls

    def heard(self, epoch: int) -> None:
        """A leader of this epoch answers. Raises Unavailable if it has been replaced: that is no answer.

        It may not have noticed, and know nothing of leases that its successor granted: it would have them
        dropped, and call their results stale. Its successor knows all that it knew, and says it again.
        """
        if epoch < self._epoch:
            raise Unavailable(f"who led epoch {epoch} was replaced: epoch {self._epoch} has answered before")
        self._epoch = epoch

    def failed(self, number: int, now: float) -> None:
        """Nobody answered. That an overtaken call got no answer means nothing."""
        if number == self.calls:
            self.pause_until = now + self._retry_seconds * self._random.uniform(0.5, 1.0)
            self._retry_seconds = min(self._retry_seconds * 2, RETRY_SECONDS_MAX)

    def answered(self, number: int, now: float, empty: bool, gather_seconds: float) -> None:
        """`empty`: there was nothing in it. Whoever gets such answers at once must not ask in a circle."""
        self.answered_at = now
        self._retry_seconds, self.pause_until = RETRY_SECONDS, 0.0
        if not empty:
            self.quiet_until = now + gather_seconds
        elif number == self.calls:
            self.quiet_until = self.called_at + EMPTY_ANSWER_SECONDS
