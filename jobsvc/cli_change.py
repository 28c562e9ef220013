"""Commands that change many jobs: cancel and retry, by ids or by what the jobs have in common; failures."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_output import (
    CHANGE_SECONDS,
    BatchOption,
    IdsArgument,
    JsonOption,
    QueueOption,
    StateOption,
    TaskOption,
    UrlOption,
    client,
    errors_as_exit_codes,
    for_each_id,
    print_json,
    print_rows,
    say,
)
from .errors import InvalidRequest

if TYPE_CHECKING:
    from .client import Client

FailureOption = Annotated[
    str | None, typer.Option(help="Fingerprint of a group of failures; see `jobsvc failures`.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Count those that match, change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it to all that match, without asking.")]
Where = dict[str, str | None]


def cancel(
    ids: IdsArgument = None,
    state: StateOption = None,
    queue: QueueOption = None,
    task: TaskOption = None,
    batch: BatchOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Cancel jobs: these, or all that match. `running` means asked for, not yet confirmed."""
    where = {"state": state, "queue": queue, "task": task, "batch": batch}
    with errors_as_exit_codes(_AGAIN), client(url, CHANGE_SECONDS) as service:
        if _by_ids(ids, where):
            for_each_id(ids or (), lambda job_id: service.job(job_id).cancel(), json)
        else:
            _change(service, "cancel", where, dry_run, yes, json)


def retry(
    ids: IdsArgument = None,
    state: StateOption = None,
    queue: QueueOption = None,
    task: TaskOption = None,
    batch: BatchOption = None,
    failure: FailureOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Put failed or cancelled jobs back, with their attempts unspent: these, or all that match."""
    where = {"state": state, "queue": queue, "task": task, "batch": batch, "failure": failure}
    with errors_as_exit_codes(_AGAIN), client(url, CHANGE_SECONDS) as service:
        if _by_ids(ids, where):
            for_each_id(ids or (), lambda job_id: service.job(job_id).retry(), json)
        else:
            _change(service, "retry", where, dry_run, yes, json)


_AGAIN = "Interrupted; what was done stays done, and the same command goes on with the rest."


def _by_ids(ids: list[str] | None, where: Where) -> bool:
    """Whether the jobs are named one by one. There is no default of "all"."""
    filtered = any(value is not None for value in where.values())
    if bool(ids) == filtered:
        raise InvalidRequest("say job ids, or what the jobs have in common, as --queue or --batch", "ID")
    return bool(ids)


def _change(service: Client, action: str, where: Where, dry_run: bool, yes: bool, json: bool) -> None:
    from .client_bulk import change_matching
    from .client_tables import ProgressLine

    top = None
    if dry_run or not yes:
        counted = change_matching(service, action, where, dry_run=True)
        if dry_run:
            _show(counted, json)
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise InvalidRequest(f"{counted['count']:,} jobs match; --yes does it to all of them", "--yes")
        if not _confirmed(f"{action} {counted['count']:,} jobs? [y/N] "):
            raise typer.Exit
        top = counted["top"]
    with ProgressLine(f"{action}: jobs", None) as line:
        done = change_matching(service, action, where, below=top, on_count=line.update)
    _show(done, json)


def _confirmed(question: str) -> bool:
    """Ask on stderr. (`input`, and what is built on it, would write to stdout.)"""
    typer.echo(question, nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _show(done: dict[str, Any], json: bool) -> None:
    if json:
        print_json({name: done[name] for name in ("action", "dry_run", "count", "ids")})
    else:
        print_rows(("action", "jobs"), [(done["action"], done["count"])])
    if done["dry_run"]:
        say("nothing was changed; --yes does it")


def failures(
    limit: Annotated[int, typer.Option(min=1, max=500, help="Groups at most.")] = 50,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Failed jobs, grouped by what went wrong; `retry --failure FINGERPRINT` puts a group back."""
    columns = ("count", "fingerprint", "task", "type", "message", "place", "last_at", "latest_id")
    with errors_as_exit_codes(), client(url) as service:
        found = service.failures(limit)
        print_json(found) if json else print_rows(
            columns, ([each[name] for name in columns] for each in found)
        )
