"""What an actor is doing, in the title of its process: for `ps` and the Ray dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ray import _raylet

TITLE_SECONDS = 1.0


async def keep_title(title: Callable[[], str]) -> None:
    """For ever. Ray sets the title too, at each call, so it is set again and again; and by a setter of
    its own, beside which the setproctitle package does nothing."""
    while True:
        _raylet.setproctitle(f"ray::jobsvc {title()}")  # type: ignore[attr-defined]
        await asyncio.sleep(TITLE_SECONDS)
