"""What the shell offers for queues, tasks, states and job ids: asked of the service, briefly and in silence.

`jobsvc --install-completion` sets it up. While somebody types there is no time for a failover and no room for
an error: an answer that does not come at once is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import typer

from .client_tables import STATES

if TYPE_CHECKING:
    from .client import Client

PATIENCE_SECONDS = 0.3
IDS_OFFERED = 50


def _offered(ctx: typer.Context, incomplete: str, ask: Callable[[Client], Iterable[str]]) -> list[str]:
    from .client import Client

    try:
        with Client(ctx.params.get("url"), deadline_seconds=PATIENCE_SECONDS) as service:
            return [each for each in ask(service) if each.startswith(incomplete)]
    except Exception:  # whatever it is, it must not be written over the command that is being typed
        return []


def queue_names(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda service: (each["name"] for each in service.queues()))


def task_names(ctx: typer.Context, incomplete: str) -> list[str]:
    return _offered(ctx, incomplete, lambda service: (each["name"] for each in service.tasks()))


def job_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """The newest ones."""
    return _offered(ctx, incomplete, lambda service: (each["id"] for each in service.jobs(IDS_OFFERED)))


def state_names(incomplete: str) -> list[str]:
    return [state for state in STATES if state.startswith(incomplete)]
