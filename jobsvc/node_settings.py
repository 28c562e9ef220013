"""How patient the watchdog of a node and the guard are: seconds, from the environment of their units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from .errors import InvalidRequest

Numbers = TypeVar("Numbers", bound=msgspec.Struct)


class WatchdogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """JOBSVC_…"""

    no_head_seconds: float = 600.0
    rebalance_seconds: float = 600.0  # 0: a recommendation is no reason to leave


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """JOBSVC_GUARD_…"""

    poll_seconds: float = 5.0
    gone_seconds: float = 4.0  # EC2 says that it is gone, for so long: in two looks
    head_silent_seconds: float = 60.0  # and EC2's checks say impaired; three times that if they do not
    hold_seconds: float = 900.0  # a lease is worth so much; a head that comes up has so long
    margin_seconds: float = 60.0
    retry_seconds: float = 20.0  # from one `ray up` to the next


def numbers_from(environment: Mapping[str, str], prefix: str, kind: type[Numbers]) -> Numbers:
    """Raises InvalidRequest, naming the variable."""
    values: dict[str, float] = {}
    for field in msgspec.structs.fields(kind):
        variable = f"{prefix}{field.name.upper()}"
        if variable not in environment:
            continue
        try:
            values[field.name] = float(environment[variable])
        except ValueError as error:
            raise InvalidRequest(f"{environment[variable]!r} is not a number", variable) from error
        if not values[field.name] >= 0:
            raise InvalidRequest("must not be negative", variable)
    return kind(**values)
