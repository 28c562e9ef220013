"""What to tell an operator of clocks: the journal's time, a machine's clock, and the store's.

Nothing here is an error. No safety depends on a clock; but what people see does, and how long results stay.
"""

from __future__ import annotations

from .clock_view import ClockView
from .queue_state import GREAT_JUMP_SECONDS

TOLD_SECONDS = 2.0  # less than that is the way of an answer, and a `Date` of whole seconds
_UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"))


def length(seconds: float) -> str:
    """A length of time, for people."""
    for unit_seconds, name in _UNITS:
        if abs(seconds) >= 2 * unit_seconds:
            return f"{abs(seconds) / unit_seconds:.1f} {name}"
    return f"{abs(seconds):.0f} s"


def side(seconds: float) -> str:
    return "ahead of" if seconds > 0 else "behind"


def journal_words(ahead_seconds: float | None) -> str | None:
    """Where the journal's time is, if it is not where this machine's clock is."""
    if ahead_seconds is None or abs(ahead_seconds) < TOLD_SECONDS:
        return None
    speed = "half" if ahead_seconds > 0 else "twice"
    return (
        f"the journal's time is {length(ahead_seconds)} {side(ahead_seconds)} this machine's clock, "
        f"and goes on at {speed} the speed until they meet"
    )


def rest_words(ahead_seconds: float | None) -> str | None:
    """How far the journal's time would jump if the service was started now, if that is far."""
    if ahead_seconds is None or -ahead_seconds < GREAT_JUMP_SECONDS:
        return None
    return (
        f"the journal's last record is {length(ahead_seconds)} old by this machine's clock: at a start the "
        f"journal's time jumps by that, so set the clock right first if it is wrong"
    )


def store_words(ahead_seconds: float | None) -> str | None:
    """How far the store's clock is off, if it is."""
    if ahead_seconds is None or abs(ahead_seconds) < TOLD_SECONDS:
        return None
    apart = f"{length(ahead_seconds)} {side(ahead_seconds)}"
    return f"the store's clock is {apart} this machine's: is that one right?"


def clock_words(clock: ClockView) -> list[str]:
    """All that there is to say of a manager's clock."""
    found = [journal_words(clock.ahead_seconds), store_words(clock.store_ahead_seconds)]
    log_time = clock.log_time
    if clock.jump_seconds and log_time < clock.ages_count_from:
        left = clock.ages_count_from - log_time
        found.append(
            f"the journal's time has jumped by {length(clock.jump_seconds)} at the start: nothing is retired "
            f"because of its age for {length(left)}, so set the clock right if it is wrong"
        )
    elif clock.jump_seconds and log_time - clock.jumped_at < _UNITS[0][0]:
        found.append(f"the journal's time has jumped by {length(clock.jump_seconds)} at the last start")
    return [each for each in found if each is not None]
