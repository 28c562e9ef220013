"""How handles show themselves: tables in notebooks, and one line of progress.

Showing never asks the service: a table that waited for an answer would freeze its cell. So each one says as
of when it is.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UPDATE_SECONDS = 0.25
MARKS = {
    "scheduled": "◷",
    "queued": "○",
    "running": "▶",
    "succeeded": "✓",
    "failed": "✕",
    "cancelled": "⊘",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> str:
    """An HTML table; everything in it is escaped."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_text(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    small = f"<small>{html.escape(note)}</small>" if note else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{small}"


def as_of(seconds: float | None) -> str:
    return (
        "not asked yet" if seconds is None else f"as of {time.strftime('%H:%M:%S', time.localtime(seconds))}"
    )


def state_text(state: str) -> str:
    return f"{MARKS[state]} {state}" if state in MARKS else state


def counts_table(counts: Mapping[str, int], note: str = "") -> str:
    return table(("state", "jobs"), [(state_text(state), count) for state, count in counts.items()], note)


def _text(cell: Any) -> str:
    return "-" if cell is None else str(cell)


class ProgressLine:
    """How far something is: a bar on a terminal, a line of HTML in a notebook, nothing anywhere else."""

    def __init__(self, what: str, total: int | None, show: bool | None = None) -> None:
        self._what = what
        self._total = total
        self._next_update = 0.0
        self._cell: Any = None
        self._bar: Any = None
        if show is False or (show is None and not (sys.stderr.isatty() or in_notebook())):
            return
        if in_notebook():
            self._cell = _new_cell()
        else:
            self._bar = _new_bar()
            self._task = self._bar.add_task(what, total=total)

    @property
    def is_shown(self) -> bool:
        return self._bar is not None or self._cell is not None

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, counts: Mapping[str, int] | None = None) -> None:
        """Show this much; the last update, when all is done, is always shown."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        if self._cell is None:
            return
        now = time.monotonic()
        if now < self._next_update and done != self._total:
            return
        self._next_update = now + UPDATE_SECONDS
        text = f"{self._what}: {done:,}" + ("" if self._total is None else f" of {self._total:,}")
        bar = "" if not self._total else f'<progress max="{self._total}" value="{done}"></progress> '
        self._cell.update(_html(bar + html.escape(text) + (counts_table(counts) if counts else "")))


def in_notebook() -> bool:
    """True where a kernel shows rich output."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _html(text: str) -> Any:
    return sys.modules["IPython"].display.HTML(text)


def _new_cell() -> Any:
    return sys.modules["IPython"].display.display(_html(""), display_id=True)


def _new_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
