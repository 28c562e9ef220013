"""What the commands share: where output goes, and what an exit code means.

stdout carries data, stderr carries talk. `--json` prints one JSON document, or JSON lines where a command
streams. Where stdout is not a terminal, tables are tab-separated lines: nothing is cut, coloured or boxed.

Exit codes:

    0 done   1 unexpected   2 usage   3 a job failed   4 a job was cancelled   5 the wait timed out
    6 not found   7 refused: conflict or not allowed   8 the service cannot be reached   130 Ctrl-C
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from . import cli_completion as offered
from .errors import InvalidRequest, JobFailed, JobsvcError, Refused, Unavailable, WaitTimedOut

if TYPE_CHECKING:
    from rich.table import Table

    from .client import Client

EXIT_UNEXPECTED, EXIT_USAGE, EXIT_FAILED, EXIT_CANCELLED = 1, 2, 3, 4
EXIT_TIMED_OUT, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 5, 6, 7, 8, 130
NOT_FOUND_CODES = frozenset({"unknown_job", "expired_job", "unknown_queue", "not_found"})
LOOK_SECONDS = 5.0  # a command that only looks gives up soon
CHANGE_SECONDS = 30.0  # one that changes something, or waits, outlasts a failover

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="JOBSVC_URL", help="Address of the service; several by commas.")
]
IdArgument = Annotated[
    str, typer.Argument(help="Job id.", metavar="ID", show_default=False, autocompletion=offered.job_ids)
]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Job ids.", metavar="ID...", show_default=False, autocompletion=offered.job_ids),
]
StateOption = Annotated[
    str | None,
    typer.Option(help="scheduled, queued, running, succeeded …", autocompletion=offered.state_names),
]
QueueOption = Annotated[str | None, typer.Option(autocompletion=offered.queue_names)]
TaskOption = Annotated[str | None, typer.Option(autocompletion=offered.task_names)]
BatchOption = Annotated[str | None, typer.Option(help="Name of a batch.")]

ID_WIDTH = 36
STATE_STYLES = {
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "raised": "red",
    "timed_out": "red",
    "crashed": "red",
    "lost": "yellow",
    "cancelled": "dim",
    "scheduled": "dim",
}
_CONTROLS = (*range(32), 127, *range(128, 160))
_ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS} | {9: "\\t", 10: "\\n", 13: "\\r"}
_ESCAPES_BUT_LINES = {code: text for code, text in _ESCAPES.items() if code not in (9, 10)}


def client(url: str | None, deadline_seconds: float = LOOK_SECONDS) -> Client:
    from .client import Client  # here, so that `--help` does not wait for it

    return Client(url, deadline_seconds=deadline_seconds)


# --- endings --------------------------------------------------------------------------------------------


def exit_code_of(error: BaseException) -> int:
    """What a failure means to a script."""
    if isinstance(error, JobFailed):
        return EXIT_CANCELLED if error.state == "cancelled" else EXIT_FAILED
    if isinstance(error, WaitTimedOut):
        return EXIT_TIMED_OUT
    if isinstance(error, Refused):
        return EXIT_NOT_FOUND if error.refusal.code in NOT_FOUND_CODES else EXIT_REFUSED
    if isinstance(error, Unavailable):
        return EXIT_UNREACHABLE
    if isinstance(error, InvalidRequest):
        return EXIT_USAGE
    return EXIT_UNEXPECTED


def exit_code_of_states(states: Iterable[str]) -> int:
    """3 if any job failed, else 4 if any was cancelled, else 0."""
    found = set(states)
    return EXIT_FAILED if "failed" in found else EXIT_CANCELLED if "cancelled" in found else 0


@contextmanager
def errors_as_exit_codes(on_interrupt: str = "") -> Iterator[None]:
    """Known errors become a line on stderr and an exit code; others keep their traceback.

    A file or folder that cannot be used is known too. A pipe that was closed has no name, and is not.
    """
    try:
        yield
    except (JobsvcError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        complain(error)
        raise typer.Exit(exit_code_of(error)) from error
    except KeyboardInterrupt as error:
        if on_interrupt:
            say(f"\n{on_interrupt}")
        raise typer.Exit(EXIT_INTERRUPTED) from error


def for_each_id(ids: Sequence[str], do: Callable[[str], str], json: bool) -> None:
    """Do it to every job, print the states they are in now, and end with what the first error means."""
    states: dict[str, str] = {}
    code = 0
    for job_id in ids:
        try:
            states[job_id] = do(job_id)
        except (Refused, InvalidRequest) as error:
            complain(error, f"{job_id}: ")
            code = code or exit_code_of(error)
    print_states(states, json)
    if code:
        raise typer.Exit(code)


# --- talk -----------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Talk: to people, never data."""
    typer.echo(text, err=True)


def complain(error: BaseException, about: str = "") -> None:
    text = f"jobsvc: {about}{shown_lines(str(error))}"
    is_coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    typer.echo(typer.style(text, fg="red") if is_coloured else text, err=True)
    for note in getattr(error, "__notes__", ()):
        typer.echo(shown_lines(note), err=True)


def shown_lines(text: str) -> str:
    """Text of several lines, without characters that would move a terminal's cursor."""
    return text.translate(_ESCAPES_BUT_LINES)


# --- data -----------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def print_states(states: dict[str, str], json: bool) -> None:
    if json:
        print_json(states)
    elif states:
        print_rows(("id", "state"), states.items())


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for people; tab-separated lines when stdout is not a terminal."""
    if not sys.stdout.isatty():
        sys.stdout.write("\t".join(columns) + "\n")
        for row in rows:
            sys.stdout.write("\t".join(_text(cell) for cell in row) + "\n")
        return
    from rich.console import Console

    Console().print(rich_table(columns, rows))


def rich_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table for a terminal. Where that is narrow, cells take more lines; an id stays in one piece."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for column in columns:
        is_id = column == "id" or column.endswith("_id")
        table.add_column(
            column.upper().replace("_", " "), overflow="fold", min_width=ID_WIDTH if is_id else None
        )
    now = datetime.datetime.now(datetime.UTC)
    for row in rows:
        cells = []
        for column, cell in zip(columns, row, strict=True):
            text = _age(cell, now) if column.endswith("_at") and cell else _text(cell)
            cells.append(Text(text, STATE_STYLES.get(text, "") if column in ("state", "outcome") else ""))
        table.add_row(*cells)
    return table


def _age(time_text: str, now: datetime.datetime) -> str:
    """`12 min ago`, for people; programs and pipes get the time itself."""
    seconds = (now - datetime.datetime.fromisoformat(time_text)).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if abs(seconds) >= length or unit == "s":
            text = f"{abs(seconds) / length:.0f} {unit}"
            return f"{text} ago" if seconds >= 0 else f"in {text}"
    raise AssertionError("not reached")


def print_value(value: Any) -> None:
    """A result: bytes as they are, text as text, everything else as JSON."""
    if isinstance(value, bytes):
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    elif isinstance(value, str):
        sys.stdout.write(value + "\n")
    else:
        print_json(value)


def _text(cell: Any) -> str:
    """One cell, without characters that would move a terminal's cursor or break the line."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3f}".rstrip("0").rstrip(".")
    if isinstance(cell, dict | list):
        return msgspec.json.encode(cell).decode()
    return str(cell).translate(_ESCAPES)
