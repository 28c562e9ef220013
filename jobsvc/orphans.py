"""Packs that no job refers to: found by the time in their keys, and deleted.

A pack is stored before the command or the report that refers to it. If that is refused, or never arrives, the
pack stays and nobody knows it. Its key begins with the time at which it was made, as 12 hexadecimal digits of
milliseconds (a UUIDv7 begins so, too). What is older than a day and not referred to will never be: a
replica gives up after `request_deadline_seconds`, a worker after `orphan_seconds`, and a leader reads the
outbox of every worker that it misses within its first minutes, long before it looks here for the first time.

Two clocks made that age, and either may be wrong by days. So it only says what to look at: deleted is what
nobody refers to at a second look, a long time after the first one by the monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable

from .insistence import insist
from .object_store import ObjectStore

PREFIXES = ("payloads/", "results/")
ORPHAN_SECONDS = 86_400.0
FIRST_LOOK_SECONDS = 3_600.0  # of a leadership
LOOK_EVERY_SECONDS = 6 * 3_600.0
SURE_SECONDS = 1_800.0  # from the first look to the second: far longer than anything is under way
SUSPECTS_MAX = 100_000  # of one look; what is beyond waits for the next one
_TIME_DIGITS = 12


def made_at(key: str) -> float | None:
    """Wall-clock seconds at which a pack was made; None if its key does not tell."""
    digits = key.rpartition("/")[2].replace("-", "")[:_TIME_DIGITS]
    try:
        return int(digits, 16) / 1000 if len(digits) == _TIME_DIGITS else None
    except ValueError:
        return None


def orphaned(keys: Iterable[str], referred: Container[str], now: float) -> list[str]:
    """Those of the keys that are old enough and not referred to."""
    found = []
    for key in keys:
        made = made_at(key)
        if made is not None and made < now - ORPHAN_SECONDS and key not in referred:
            found.append(key)
    return found


async def keep_deleting(
    store: ObjectStore,
    referred: Container[str],
    now: Callable[[], float],
    deleted: Callable[[int], None],
) -> None:
    """For ever: look now and then, and delete what is found. `deleted` is told how many there were."""
    await asyncio.sleep(FIRST_LOOK_SECONDS)
    while True:
        for prefix in PREFIXES:
            suspects = orphaned(await insist(store.list, prefix), referred, now())[:SUSPECTS_MAX]
            if not suspects:
                continue
            await asyncio.sleep(SURE_SECONDS)
            keys = [key for key in suspects if key not in referred]
            await insist(store.delete_many, keys)
            deleted(len(keys))
        await asyncio.sleep(LOOK_EVERY_SECONDS)
