"""How handles show themselves: tables in notebooks, and one line of progress.

Showing never asks the service: a table that waited for an answer would freeze its cell. So each one says as
of when it is.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

UPDATE_SECONDS = 0.25
ROWS_SHOWN = 50
STATES = ("scheduled", "queued", "running", "succeeded", "failed", "cancelled")
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
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3g}" if cell < 1000 else f"{cell:,.0f}"
    if isinstance(cell, Mapping):  # counts, as a rule: those of 0 say nothing
        return ", ".join(f"{name} {value}" for name, value in cell.items() if value) or "-"
    return str(cell)


class Rows(list[dict[str, Any]]):
    """Documents that a notebook shows as a table of some of their columns."""

    def __init__(self, documents: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
        super().__init__(documents)
        self._columns = columns
        self._asked_at = time.time()

    def _repr_html_(self) -> str:
        rows = ([each.get(column) for column in self._columns] for each in self[:ROWS_SHOWN])
        more = f"{len(self) - ROWS_SHOWN} more, " if len(self) > ROWS_SHOWN else ""
        return table(
            [column.replace("_", " ") for column in self._columns], rows, more + as_of(self._asked_at)
        )


class Status(dict[str, Any]):
    """The status document; a notebook shows one screen of health."""

    def _repr_html_(self) -> str:
        return table(("what", "is"), status_rows(self), f"as of {self.get('now', 'an unknown time')}")


def status_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One screen of health."""
    yield "service", "ready" if document["ready"] else f"not ready: {document['problem']}"
    for manager in document["managers"]:
        lag = "" if manager["lag"] is None else f", {manager['lag']} records behind"
        problem = f", {manager['problem']}" if manager["problem"] else ""
        role = f"{manager['role']}, epoch {manager['epoch']}{lag}{problem} (pid {manager['pid']})"
        yield manager["name"], role
        for each in manager.get("problems", ()):  # those of an older service had none
            failed = f"failed {each['times']} times since {each['since']}: {each['text']}"
            yield f"{manager['name']} {each['part']}", f"{failed}; the rest goes on"
    commits = document["commits"]
    if commits["age_seconds"] is not None:
        yield "last commit", f"{commits['age_seconds']:.1f} s ago"
    for warning in (document.get("clock") or {}).get("warnings", ()):
        yield "clock", warning
    for each in document.get("unserved", ()):
        yield "tasks", each
    if document.get("code_problem"):
        yield "code", document["code_problem"]
    for state in STATES:
        yield f"{state} jobs", f"{document['counts'].get(state, 0):,}"
    for pool in document["pools"] or ():
        waiting = f", {pool['waiting']}" if pool["waiting"] else ""
        yield f"pool {pool['name']}", f"{pool['observed']} of {pool['wanted']} wanted workers{waiting}"
    for worker in document["workers"] or ():
        held_back = f"held back since {worker['held_back_since']}: {worker['held_back']}"
        state = held_back if worker["state"] == "held_back" else worker["state"]
        yield worker["name"], worker["current_job"] or state


def addresses(urls: Sequence[str]) -> str:
    """A service's addresses, as links to its page and to the documentation of its API."""
    rows = "".join(
        f'<tr><td>{html.escape(url)}</td><td><a href="{html.escape(url)}/">page</a></td>'
        f'<td><a href="{html.escape(url)}/docs">API</a></td></tr>'
        for url in urls
    )
    return f"<table><thead><tr><th>jobsvc</th><th></th><th></th></tr></thead><tbody>{rows}</tbody></table>"


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
        redirect_stdout=sys.stdout.isatty(),  # what is written to a pipe meanwhile is data, and goes there
    )
