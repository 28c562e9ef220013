"""Requests to the store that are made until it answers: for what must happen, and may wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .object_store import ObjectStore, PutOutcome, StoreError

FIRST_PAUSE_SECONDS = 0.05
PAUSE_SECONDS_MAX = 2.0

Answer = TypeVar("Answer")


async def insist(request: Callable[..., Coroutine[Any, Any, Answer]], *arguments: Any) -> Answer:
    """Ask the store until it answers."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await request(*arguments)
        except StoreError:
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)


async def insist_put(store: ObjectStore, key: str, data: bytes) -> None:
    """Put until it is known to be there."""
    pause = FIRST_PAUSE_SECONDS
    while await store.put_new(key, data) is PutOutcome.UNKNOWN:
        await asyncio.sleep(pause)
        pause = min(pause * 2, PAUSE_SECONDS_MAX)
