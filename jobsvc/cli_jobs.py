"""Commands about jobs: enqueue, look, wait, cancel, retry, pull."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from .cli_output import (
    IdsArgument,
    JsonOption,
    UrlOption,
    client,
    errors_as_exit_codes,
    exit_code_of_state,
    print_json,
    print_rows,
    print_value,
)
from .client import Client
from .errors import InvalidRequest, WaitTimedOut

FOLLOW_SECONDS = 0.5


def _parsed(text: str) -> Any:
    """An argument is JSON if it reads as JSON, and text otherwise."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _named(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"must be a JSON object: {error}", "--kwargs") from error


def enqueue(
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    args: Annotated[list[str] | None, typer.Argument(help="Arguments: JSON, or text.")] = None,
    kwargs: Annotated[str | None, typer.Option(help="Keyword arguments, a JSON object.")] = None,
    file: Annotated[Path | None, typer.Option(help="Send this file's bytes as the argument.")] = None,
    queue: Annotated[str | None, typer.Option()] = None,
    priority: Annotated[int | None, typer.Option()] = None,
    max_attempts: Annotated[int | None, typer.Option()] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds an attempt may take.")] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds until it may start.")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and print the result.")] = False,
    wait_seconds: Annotated[float | None, typer.Option(help="Give up waiting after this time.")] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Enqueue one job; print its id, or with --wait its result."""
    with errors_as_exit_codes(), client(url) as service:
        options: dict[str, Any] = {
            "queue": queue,
            "priority": priority,
            "max_attempts": max_attempts,
            "timeout": timeout,
            "delay": delay,
        }
        if file is not None:
            if args:
                raise InvalidRequest("takes the place of the arguments", "--file")
            try:
                data = file.read_bytes()
            except OSError as error:
                raise InvalidRequest(str(error), "--file") from error
            job = service.enqueue_bytes(task, data, key=key, **_named(kwargs), **options)
        else:
            arguments = [_parsed(text) for text in args or []]
            job = service.enqueue(task, *arguments, key=key, kwargs=_named(kwargs), **options)
        if not wait and wait_seconds is None:
            print_json({"id": job.id}) if json else print_value(job.id)
            return
        value = job.result(wait_seconds)
        print_json({"id": job.id, "result": value}) if json else print_value(value)


def jobs(
    state: Annotated[str | None, typer.Option()] = None,
    queue: Annotated[str | None, typer.Option()] = None,
    task: Annotated[str | None, typer.Option()] = None,
    batch: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Jobs, newest first."""
    with errors_as_exit_codes(), client(url) as service:
        found = list(service.jobs(limit, state=state, queue=queue, task=task, batch=batch))
        if json:
            print_json(found)
            return
        columns = ("id", "state", "task", "queue", "attempt", "created_at")
        print_rows(columns, ([job[column] for column in columns] for job in found))


def job(job_id: str, json: JsonOption = False, url: UrlOption = None) -> None:
    """One job: its state, its attempts, why it waits."""
    with errors_as_exit_codes(), client(url) as service:
        document = service.job(job_id).refresh()
        if json:
            print_json(document)
            return
        shown = (
            "id",
            "task",
            "queue",
            "state",
            "priority",
            "attempt",
            "waiting",
            "created_at",
            "finished_at",
        )
        print_rows(("field", "value"), [(name, document.get(name)) for name in shown])
        if document["attempts"]:
            columns = ("number", "outcome", "worker", "started_at", "seconds")
            rows = [[attempt.get(column) for column in columns] for attempt in document["attempts"]]
            print_rows(columns, rows)


def result(
    job_id: str,
    timeout: Annotated[float, typer.Option(help="Wait at most this long for the end.")] = 0.0,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """The result of a job."""
    with errors_as_exit_codes(), client(url) as service:
        value = service.job(job_id).result(timeout)
        print_json(value) if json else print_value(value)


def logs(
    job_id: str,
    attempt: Annotated[int | None, typer.Option(help="The latest attempt if not given.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """What a job has written to stdout and stderr."""
    with errors_as_exit_codes(), client(url) as service:
        handle = service.job(job_id)
        if json:
            print_json({"id": job_id, "text": handle.logs(attempt)})
            return
        state = _follow(service, job_id, attempt) if follow else None
        if state is None:
            typer.echo(handle.logs(attempt), nl=False)
        elif code := exit_code_of_state(state):
            raise typer.Exit(code)


def _follow(service: Client, job_id: str, attempt: int | None) -> str:
    """Print output as it comes. The exit code comes from the job's state, never from a closed stream."""
    shown = 0
    handle = service.job(job_id)
    while True:
        state = handle.state
        text = handle.logs(attempt)
        typer.echo(text[shown:], nl=False)
        shown = len(text)
        if state in ("succeeded", "failed", "cancelled"):
            return state
        time.sleep(FOLLOW_SECONDS)


def wait(
    ids: IdsArgument,
    timeout: Annotated[float | None, typer.Option(help="Seconds; without it, as long as it takes.")] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Wait until these jobs have ended; the exit code tells how."""
    with errors_as_exit_codes(), client(url) as service:
        deadline = None if timeout is None else time.monotonic() + timeout
        states: dict[str, str] = {}
        for job_id in ids:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                states[job_id] = str(service.job(job_id).wait(left)["state"])
            except WaitTimedOut:
                print_json(states) if json else print_rows(("id", "state"), states.items())
                raise
        print_json(states) if json else print_rows(("id", "state"), states.items())
        code = max((exit_code_of_state(state) for state in states.values()), default=0)
        if code:
            raise typer.Exit(3 if "failed" in states.values() else code)


def cancel(ids: IdsArgument, json: JsonOption = False, url: UrlOption = None) -> None:
    """Cancel jobs. `running` means asked for, not yet confirmed."""
    with errors_as_exit_codes(), client(url) as service:
        states = {job_id: service.job(job_id).cancel() for job_id in ids}
        print_json(states) if json else print_rows(("id", "state"), states.items())


def retry(ids: IdsArgument, json: JsonOption = False, url: UrlOption = None) -> None:
    """Put failed or cancelled jobs back, with their attempts unspent."""
    with errors_as_exit_codes(), client(url) as service:
        states = {job_id: service.job(job_id).retry() for job_id in ids}
        print_json(states) if json else print_rows(("id", "state"), states.items())


def pull(
    top: Annotated[int, typer.Option(min=1, max=1000)] = 1, json: JsonOption = False, url: UrlOption = None
) -> None:
    """Finished hash jobs that nobody has pulled yet, latest first."""
    with errors_as_exit_codes(), client(url) as service:
        pulled = service.pull(top)
        print_json(pulled) if json else print_rows(("id", "value"), ((p["id"], p["value"]) for p in pulled))


def completions(
    after: Annotated[int, typer.Option(help="Go on after this place.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Finished jobs in order of completion; JSON lines with --json."""
    with errors_as_exit_codes(), client(url) as service:
        for entry in service.completions(after, follow=follow):
            if json:
                print_json(entry)
            else:
                typer.echo(f"{entry.seq}\t{entry.id}\t{entry.state}\t{entry.task}")
