"""Whether a cluster is meant to be up: said once in its store, heeded by its guard.

`down` ends the machines one by one, and the guard is made to bring back a head that is gone: without a word
from the operator it would build what is just being taken down. So `down` says it first, where the guard can
read it.

A statement is an object that is never changed, `cluster/state/NAME/<number>-down` or `-up`; the greatest
number holds. Two that are made at the same time may have one number; then the cluster is down, because what
is ended wrongly comes back by one command, and what goes on wrongly costs money unseen.

A head that a person starts says "up"; one that a guard starts says nothing. `down` ends machines until none
is left, so a head that a guard had just begun to build is ended too.
"""

from __future__ import annotations

import asyncio

import msgspec

from .object_store import ObjectStore, PutOutcome, StoreError

PREFIX = "cluster/state/"
DOWN, UP = "down", "up"
TRIES = 6
PAUSE_SECONDS = 0.2  # doubles with each try


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Who said it: for people who look into the store."""

    cluster: str
    state: str
    by: str


async def announce_down(store: ObjectStore, cluster_name: str, by: str) -> None:
    """The cluster is not wanted any more: no guard may bring its head back. Raises StoreError."""
    await _announce(store, cluster_name, DOWN, by)


async def announce_up(store: ObjectStore, cluster_name: str, by: str) -> None:
    """The cluster is wanted; what was said before holds no more. Raises StoreError."""
    await _announce(store, cluster_name, UP, by)


async def is_down(store: ObjectStore, cluster_name: str) -> bool:
    """True if the last word is that this cluster is not wanted. Raises StoreError: nothing is known then."""
    return (await _last(store, cluster_name))[1] == DOWN


async def _announce(store: ObjectStore, cluster_name: str, state: str, by: str) -> None:
    body = msgspec.json.encode(Mark(cluster=cluster_name, state=state, by=by))
    for attempt in range(TRIES):
        number, held = await _last(store, cluster_name)
        if held == state:
            return  # it is said: by us, in a try whose answer was lost, or by somebody else
        key = f"{_folder(cluster_name)}{number + 1:010d}-{state}"
        if await store.put_new(key, body) is PutOutcome.CREATED:
            return
        await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
    raise StoreError(f"the store did not take it in {TRIES} tries that {cluster_name} is {state}")


async def _last(store: ObjectStore, cluster_name: str) -> tuple[int, str]:
    """Number and state of the statement that holds; 0 and up if none was made."""
    folder = _folder(cluster_name)
    found = [_parsed(key.removeprefix(folder)) for key in await store.list(folder)]
    # "down" is before "up": of two with one number, down holds
    return min(found, key=lambda each: (-each[0], each[1]), default=(0, UP))


def _parsed(name: str) -> tuple[int, str]:
    number, _, state = name.partition("-")
    return int(number), state


def _folder(cluster_name: str) -> str:
    return f"{PREFIX}{cluster_name}/"
