"""Commands about jobs: enqueue, look, wait, cancel, retry, pull."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from .cli_completion import task_names
from .cli_output import (
    CHANGE_SECONDS,
    LOOK_SECONDS,
    BatchOption,
    IdArgument,
    IdsArgument,
    JsonOption,
    QueueOption,
    StateOption,
    TaskOption,
    UrlOption,
    client,
    complain,
    errors_as_exit_codes,
    exit_code_of,
    exit_code_of_states,
    print_json,
    print_rows,
    print_states,
    print_value,
    say,
    shown_lines,
)
from .errors import InvalidRequest, Refusal, Refused, WaitTimedOut

if TYPE_CHECKING:
    from .client import Client

JOB_COLUMNS = ("id", "state", "task", "queue", "attempt", "created_at", "error")
JOB_FIELDS = (
    "id",
    "task",
    "queue",
    "state",
    "waiting",
    "cancel_requested",
    "priority",
    "attempt",
    "max_attempts",
    "created_at",
    "run_at",
    "finished_at",
    "payload_bytes",
    "labels",
    "batch",
)
FAILED_NAMED = 10
ATTEMPT_COLUMNS = ("number", "outcome", "worker", "started_at", "seconds", "error")
TimeoutOption = Annotated[
    float | None, typer.Option(min=0, help="Seconds; without it, as long as it takes.", show_default=False)
]


def _parsed(text: str) -> Any:
    """An argument is JSON if it reads as JSON, and text otherwise."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text


def _named(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(f"must be a JSON object: {error}", "--kwargs") from error


def _labels(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    for pair in pairs:
        if "=" not in pair:
            raise InvalidRequest(f"{pair!r} is not NAME=VALUE", "--label")
    return dict(pair.split("=", 1) for pair in pairs)


def _content(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InvalidRequest(str(error), "--file") from error


def enqueue(
    task: Annotated[
        str, typer.Argument(help="Name of the task.", show_default=False, autocompletion=task_names)
    ],
    args: Annotated[
        list[str] | None, typer.Argument(help="Arguments: JSON, or text.", show_default=False)
    ] = None,
    kwargs: Annotated[str | None, typer.Option(help="Keyword arguments, a JSON object.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Send this file's bytes as the argument; - is stdin.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Instead of the task's own.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs first.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="The first run included.")] = None,
    attempt_seconds: Annotated[float | None, typer.Option(help="How long an attempt may take.")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds until it may start.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    batch: Annotated[str | None, typer.Option(help="Name of a batch, to list its jobs by.")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same job.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and print the result.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="Wait at most so many seconds.")] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Enqueue one job; print its id, or with --wait its result."""
    options: dict[str, Any] = {
        "queue": queue,
        "priority": priority,
        "max_attempts": max_attempts,
        "timeout": attempt_seconds,
        "delay": delay,
        "batch": batch,
    }
    with errors_as_exit_codes("The job goes on."), client(url, CHANGE_SECONDS) as service:
        named = _named(kwargs)
        options["labels"] = _labels(label)
        if file is not None:
            if args:
                raise InvalidRequest("takes the place of the arguments", "--file")
            job = service.enqueue_bytes(task, _content(file), key=key, kwargs=named, **options)
        else:
            job = service.enqueue(task, *map(_parsed, args or []), key=key, kwargs=named, **options)
        if not wait and timeout is None:
            print_json({"id": job.id}) if json else print_value(job.id)
            return
        say(f"job {job.id}")
        value = job.result(timeout)
        print_json({"id": job.id, "result": value}) if json else print_value(value)


def jobs(
    state: StateOption = None,
    queue: QueueOption = None,
    task: TaskOption = None,
    batch: BatchOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000)] = 50,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Jobs, newest first."""
    with errors_as_exit_codes(), client(url) as service:
        found = list(service.jobs(limit + 1, state=state, queue=queue, task=task, batch=batch))
        shown = found[:limit]
        if json:
            print_json(shown)
        else:
            print_rows(JOB_COLUMNS, ([_error_line(job, column) for column in JOB_COLUMNS] for job in shown))
        if len(found) > limit:
            say(f"the newest {limit:,}; --limit shows more")


def _error_line(document: dict[str, Any], column: str) -> Any:
    value = document.get(column)
    return f"{value['type']}: {value['message']}" if column == "error" and value else value


def job(job_id: IdArgument, json: JsonOption = False, url: UrlOption = None) -> None:
    """One job: its state, its attempts, why it waits."""
    with errors_as_exit_codes(), client(url) as service:
        document = service.job(job_id).refresh()
        if json:
            print_json(document)
            return
        rows = [(name, document[name]) for name in JOB_FIELDS if document[name] not in (None, {}, False)]
        if document["running"]:
            rows.append(("running_on", document["running"]["worker"]))
        print_rows(("field", "value"), rows)
        if document["attempts"]:
            attempts = document["attempts"]
            print_rows(
                ATTEMPT_COLUMNS,
                [[_error_line(each, column) for column in ATTEMPT_COLUMNS] for each in attempts],
            )
        if document["error"] and document["error"]["traceback"]:
            print_value(shown_lines(document["error"]["traceback"].rstrip()))


def result(
    job_id: IdArgument,
    timeout: Annotated[float, typer.Option(min=0, help="Wait at most so many seconds for the end.")] = 0.0,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """The result of a job: bytes and text as they are, everything else as JSON."""
    with errors_as_exit_codes(), client(url, CHANGE_SECONDS if timeout else LOOK_SECONDS) as service:
        value = service.job(job_id).result(timeout)
        print_json(value) if json else print_value(value)


def logs(
    job_id: IdArgument,
    attempt: Annotated[int | None, typer.Option(min=1, help="The latest one if not given.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Only so many lines from the end.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """What a job has written to stdout and stderr. With --follow, the exit code tells how the job ended."""
    with (
        errors_as_exit_codes(f"The job goes on; `jobsvc logs -f {job_id}` is here again."),
        client(url, CHANGE_SECONDS if follow else LOOK_SECONDS) as service,
    ):
        handle = service.job(job_id)
        if not follow:
            text = handle.logs(attempt, tail)
            print_json({"id": job_id, "text": text}) if json else typer.echo(text, nl=False)
            return
        if tail is not None:
            raise InvalidRequest("does not go with --follow", "--tail")
        for text in handle.follow(attempt):
            print_json({"id": job_id, "text": text}) if json else typer.echo(text, nl=False)
        code = exit_code_of_states([handle.state])
        if code and attempt is None:
            raise typer.Exit(code)


def wait(
    ids: IdsArgument = None,
    batch: BatchOption = None,
    timeout: TimeoutOption = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Wait until these jobs have ended, or all of a batch; the exit code tells how."""
    what = f"--batch {batch!r}" if batch else " ".join(ids or ())
    with (
        errors_as_exit_codes(f"The jobs go on; `jobsvc wait {what}` waits again."),
        client(url, CHANGE_SECONDS) as service,
    ):
        if bool(ids) == bool(batch):
            raise InvalidRequest("say job ids, or --batch", "ID")
        code = _wait_for_batch(service, batch, timeout, json) if batch else _wait(service, ids, timeout, json)
        if code:
            raise typer.Exit(code)


def _wait(service: Client, ids: Sequence[str] | None, timeout: float | None, json: bool) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    states: dict[str, str] = {}
    codes: list[int] = []
    for job_id in ids or ():
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            states[job_id] = str(service.job(job_id).wait(left)["state"])
        except (WaitTimedOut, Refused) as error:
            complain(error)
            codes.append(exit_code_of(error))
    print_states(states, json)
    return exit_code_of_states(states.values()) or next(iter(codes), 0)


def _wait_for_batch(service: Client, batch: str, timeout: float | None, json: bool) -> int:
    """Counts by state are the data; failed jobs are named on stderr."""
    found = service.batch(batch)
    if not len(found):
        raise Refused(Refusal("unknown_job", f"no job is in a batch named {batch!r}", "--batch"))
    counts = found.progress(timeout)
    print_json(counts) if json else print_rows(("state", "jobs"), counts.items())
    failures = found.failures()
    for failed in failures[:FAILED_NAMED]:
        say(f"{failed.id} {failed.known_state} {shown_lines(failed.known_error)}".rstrip())
    if len(failures) > FAILED_NAMED:
        say(f"and {len(failures) - FAILED_NAMED} more")
    return exit_code_of_states(counts)


def pull(
    top: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 1,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Finished hash jobs that nobody has pulled yet, latest first."""
    with errors_as_exit_codes(), client(url, CHANGE_SECONDS) as service:
        pulled = service.pull(top)
        print_json(pulled) if json else print_rows(("id", "value"), ((p["id"], p["value"]) for p in pulled))


def completions(
    after: Annotated[str, typer.Option(help="Go on after this place: a cursor, or a number.")] = "0",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what finishes from now on.")
    ] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Finished jobs in order of completion, a line each; JSON lines with --json."""
    with errors_as_exit_codes(), client(url, CHANGE_SECONDS if follow else LOOK_SECONDS) as service:
        for entry in service.completions(after, follow=follow):
            if json:
                print_json(entry)
            else:
                typer.echo(f"{entry.seq}\t{entry.id}\t{entry.state}\t{entry.task}")
