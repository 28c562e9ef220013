"""`jobsvc watch`: how many jobs are in which state, and the newest ones, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_output import (
    CHANGE_SECONDS,
    LOOK_SECONDS,
    BatchOption,
    JsonOption,
    QueueOption,
    StateOption,
    TaskOption,
    UrlOption,
    client,
    errors_as_exit_codes,
    print_json,
    print_rows,
    rich_table,
)
from .client_tables import STATES, state_text
from .errors import Unavailable

if TYPE_CHECKING:
    from .client import Client

COLUMNS = ("id", "state", "task", "queue", "attempt", "worker", "waiting", "error")

Show = Callable[[dict[str, Any]], None]


def watch(
    state: StateOption = None,
    queue: QueueOption = None,
    task: TaskOption = None,
    batch: BatchOption = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Newest jobs shown.")] = 20,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 1.0,
    looks: Annotated[
        int | None, typer.Option(min=1, help="End after so many looks.", show_default="never")
    ] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Counts and the newest jobs, live; a document a line with --json. Ctrl-C ends it."""
    filters = {"state": state, "queue": queue, "task": task, "batch": batch}
    patience = (
        LOOK_SECONDS if sys.stdout.isatty() else CHANGE_SECONDS
    )  # a terminal shows the trouble meanwhile
    with errors_as_exit_codes(), client(url, patience) as service, _shown(json) as show:
        look, last = 0, None
        while True:
            try:
                last = _look(service, limit, filters)
            except Unavailable as error:
                if last is None or not sys.stdout.isatty():
                    raise
                last = {**last, "problem": f"{error} (what is shown is of {last['now']})"}
            show(last)
            look += 1
            if look == looks:
                return
            time.sleep(seconds)


def _look(service: Client, limit: int, filters: dict[str, str | None]) -> dict[str, Any]:
    status = service.status()
    head = {name: status[name] for name in ("now", "ready", "problem", "leader", "epoch", "counts")}
    return {**head, "jobs": list(service.jobs(limit, **filters))}


@contextmanager
def _shown(json: bool) -> Iterator[Show]:
    """How a look is shown: JSON, a table in its place on a terminal, lines anywhere else."""
    if json:
        yield print_json
    elif not sys.stdout.isatty():
        yield lambda seen: print_rows(COLUMNS, _rows(seen))
    else:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            yield lambda seen: live.update(_screen(seen), refresh=True)


def _rows(seen: dict[str, Any]) -> Iterator[Sequence[Any]]:
    for job in seen["jobs"]:
        error = job["error"]
        yield [
            f"{error['type']}: {error['message']}" if column == "error" and error else job[column]
            for column in COLUMNS
        ]


def _screen(seen: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    from .cli_output import shown_lines

    counts = "   ".join(f"{state_text(state)} {seen['counts'].get(state, 0):,}" for state in STATES)
    leader = f"leader {seen['leader'] or 'none'}, epoch {seen['epoch']}"
    lines = [Text(f"{seen['now']}   {leader}", style="bold"), Text(counts)]
    if seen["problem"]:
        lines.append(Text(shown_lines(seen["problem"]), style="red"))
    return Group(*lines, rich_table(COLUMNS, _rows(seen)))
