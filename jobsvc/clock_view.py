"""The journal's time beside the clocks of others, as a manager sees them."""

from __future__ import annotations

import msgspec


class ClockView(msgspec.Struct, array_like=True):
    """The journal's time beside two clocks: that of a manager's machine, and the store's if it has one."""

    now: float  # by the machine's clock
    ahead_seconds: float | None  # the journal's time, of the machine's clock; below 0: behind
    store_ahead_seconds: float | None  # the store's clock, of the machine's
    jump_seconds: float  # by which the journal's time last jumped at a start, and when; 0: never
    jumped_at: float
    ages_count_from: float  # nothing is retired because of its age until the journal's time is this

    @property
    def log_time(self) -> float:
        return self.now + (self.ahead_seconds or 0.0)
