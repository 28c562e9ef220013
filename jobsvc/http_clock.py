"""Times in what the API answers, the service's own time, and what there is to say of clocks."""

from __future__ import annotations

import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from .clock_words import clock_words
from .commands import ManagerStatus

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class ClockDocument(msgspec.Struct):
    """The journal's time beside the clock of the leader's machine, and that of the store."""

    journal_ahead_seconds: Annotated[float | None, Meta(description="of that clock; below 0: behind")]
    store_ahead_seconds: Annotated[float | None, Meta(description="null: the store has no clock of its own")]
    jump_seconds: Annotated[float, Meta(description="of the journal's time, at a start from rest")]
    jumped_at: Time | None
    warnings: list[str]


def time_text(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds. Times beyond the calendar are cut to its ends."""
    seconds = min(max(seconds, 0.0), 253_402_300_799.0)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def optional_time(seconds: float | None) -> str | None:
    return None if seconds is None else time_text(seconds)


def clock_document(leader: ManagerStatus | None) -> ClockDocument | None:
    """None if no leader could say."""
    clock = None if leader is None else leader.clock
    if clock is None:
        return None
    return ClockDocument(
        None if clock.ahead_seconds is None else round(clock.ahead_seconds, 3),
        None if clock.store_ahead_seconds is None else round(clock.store_ahead_seconds, 3),
        round(clock.jump_seconds, 3),
        time_text(clock.jumped_at) if clock.jump_seconds else None,
        clock_words(clock),
    )


def service_time(leader: ManagerStatus | None, wall: float) -> float:
    """What the times of jobs are to be compared with: the journal's time; else the clock of a replica."""
    return wall if leader is None or leader.clock is None else leader.clock.log_time
