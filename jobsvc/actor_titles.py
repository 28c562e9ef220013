"""What an actor is doing, in the title of its process: for `ps` and the Ray dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ray import _raylet

TITLE_SECONDS = 1.0


def set_title(actor: object, title: str) -> None:
    """Ray sets the title too, by a setter of its own, beside which the setproctitle package does nothing: at
    each call to the call's name, and after it to the name of the actor's class. So that name is the title as
    well, in this process."""
    type(actor).__name__ = f"jobsvc {title}"
    _raylet.setproctitle(f"ray::jobsvc {title}")  # type: ignore[attr-defined]


async def keep_title(actor: object, title: Callable[[], str]) -> None:
    """For ever."""
    while True:
        set_title(actor, title())
        await asyncio.sleep(TITLE_SECONDS)
