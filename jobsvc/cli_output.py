"""What the commands share: where output goes, and what an exit code means.

stdout carries data, stderr carries talk. `--json` prints one JSON document, or JSON lines where a command
streams. Exit codes:

    0 done   1 unexpected   2 usage   3 a job failed   4 a job was cancelled   5 the wait timed out
    6 not found   7 refused: conflict or not allowed   8 the service cannot be reached   130 Ctrl-C
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .client import Client
from .errors import InvalidRequest, JobFailed, JobsvcError, Refused, Unavailable, WaitTimedOut

EXIT_UNEXPECTED, EXIT_USAGE, EXIT_FAILED, EXIT_CANCELLED = 1, 2, 3, 4
EXIT_TIMED_OUT, EXIT_NOT_FOUND, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 5, 6, 7, 8, 130

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="JOBSVC_URL", help="Address of the service; several by commas.")
]
IdsArgument = Annotated[list[str], typer.Argument(help="Job ids.", metavar="ID...")]

talk = Console(stderr=True, highlight=False)


def client(url: str | None) -> Client:
    return Client(url.split(",") if url else None, deadline_seconds=20.0)


def exit_code_of(error: BaseException) -> int:
    """What a failure means to a script."""
    if isinstance(error, JobFailed):
        return EXIT_CANCELLED if error.state == "cancelled" else EXIT_FAILED
    if isinstance(error, WaitTimedOut):
        return EXIT_TIMED_OUT
    if isinstance(error, Refused):
        missing = error.refusal.code in ("unknown_job", "expired_job", "unknown_queue", "not_found")
        return EXIT_NOT_FOUND if missing else EXIT_REFUSED
    if isinstance(error, Unavailable):
        return EXIT_UNREACHABLE
    if isinstance(error, InvalidRequest):
        return EXIT_USAGE
    return EXIT_UNEXPECTED


def exit_code_of_state(state: str) -> int:
    return {"failed": EXIT_FAILED, "cancelled": EXIT_CANCELLED}.get(state, 0)


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Known errors become one line on stderr and an exit code; others keep their traceback."""
    try:
        yield
    except JobsvcError as error:
        talk.print(f"jobsvc: {error}", style="red", markup=False)
        raise typer.Exit(exit_code_of(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(EXIT_INTERRUPTED) from error


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for people; tab-separated lines, nothing cut, when stdout is not a terminal."""
    if not sys.stdout.isatty():
        sys.stdout.write("\t".join(columns) + "\n")
        for row in rows:
            sys.stdout.write("\t".join(_text(cell) for cell in row) + "\n")
        return
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    Console().print(table)


def _text(cell: Any) -> str:
    return "-" if cell is None else str(cell)


def print_value(value: Any) -> None:
    """A result: bytes as they are, text as text, everything else as JSON."""
    if isinstance(value, bytes):
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    elif isinstance(value, str):
        sys.stdout.write(value + "\n")
    else:
        print_json(value)


def progress_bar() -> Progress:
    """On stderr, and only where someone can see it move."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=talk,
        disable=not sys.stderr.isatty(),
    )
