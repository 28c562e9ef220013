"""Commands about the service: up, down, status, queues, workers, doctor, demo."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import msgspec
import typer

from .cli_output import (
    EXIT_NOT_FOUND,
    JsonOption,
    UrlOption,
    client,
    errors_as_exit_codes,
    print_json,
    print_rows,
    talk,
)
from .settings import from_environment

DataOption = Annotated[
    str | None, typer.Option(help="A folder, or s3://BUCKET/PREFIX.", show_default="~/.jobsvc/data")
]
TasksOption = Annotated[list[str] | None, typer.Option(help="Module with tasks; may be repeated.")]
ServiceOption = Annotated[str, typer.Option("--service", help="Name of the service.")]
WATCH_SECONDS = 1.0


def _say(text: str) -> None:
    talk.print(text, markup=False)


def up(
    data: DataOption = None,
    port: Annotated[int, typer.Option(help="The next free one if it is taken.")] = 8000,
    host: Annotated[str, typer.Option(help="Beyond loopback, JOBSVC_TOKEN must be set.")] = "127.0.0.1",
    tasks: TasksOption = None,
    service: ServiceOption = "jobsvc",
    s3_endpoint_url: Annotated[str | None, typer.Option(help="For S3 that is not AWS.")] = None,
    allow_shell: Annotated[bool, typer.Option("--allow-shell", help="Allow the task jobsvc.shell.")] = False,
    ray_address: Annotated[str | None, typer.Option(help="Use this Ray cluster.")] = None,
    json: JsonOption = False,
) -> None:
    """Start the service, or find it running; returns when it answers."""
    from . import service as services
    from .project_tasks import tasks_of_project

    with errors_as_exit_codes():
        settings = from_environment(
            os.environ,
            data=data or os.environ.get("JOBSVC_DATA") or "~/.jobsvc/data",
            port=port,
            host=host,
            tasks=tuple(tasks) if tasks else tasks_of_project(),
            service=service,
            s3_endpoint_url=s3_endpoint_url,
            allow_shell=allow_shell or None,
        )
        token = os.environ.get("JOBSVC_TOKEN")
        info = services.up(settings, token=token, ray_address=ray_address, say=_say)
        if json:
            print_json(info)
        else:
            rows = [("API", info.urls[0]), ("docs", f"{info.urls[0]}/docs"), ("data", info.data)]
            if info.dashboard_url:
                rows += [("Ray dashboard", info.dashboard_url), ("its token", info.ray_token_file or "-")]
            print_rows(("what", "where"), rows)


def down(service: ServiceOption = "jobsvc", json: JsonOption = False) -> None:
    """End the service and everything that `up` started for it. The journal stays."""
    from . import service as services

    with errors_as_exit_codes():
        ended = services.down(service, say=_say)
        if json:
            print_json({"service": service, "ended": ended})
        if not ended:
            _say(f"no service named {service} is known here")
            raise typer.Exit(EXIT_NOT_FOUND)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Who leads, how far the standby is, how many jobs there are."""
    with errors_as_exit_codes(), client(url) as connection:
        while True:
            document = connection.status()
            print_json(document) if json else _print_status(document)
            if not watch:
                return
            time.sleep(WATCH_SECONDS)


def _print_status(document: dict[str, Any]) -> None:
    columns = ("name", "role", "epoch", "lag", "pid", "healthy")
    print_rows(columns, ([manager.get(column) for column in columns] for manager in document["managers"]))
    print_rows(("state", "jobs"), document["counts"].items())


def queues(json: JsonOption = False, url: UrlOption = None) -> None:
    """Every queue, its counts, and how long its oldest job has waited."""
    with errors_as_exit_codes(), client(url) as connection:
        found = connection.queues()
        if json:
            print_json(found)
            return
        columns = ("name", "pool", "paused", "counts", "oldest_queued_age_seconds")
        rows = [[msgspec.to_builtins(queue.get(column)) for column in columns] for queue in found]
        print_rows(columns, rows)


def pause(queue: str, json: JsonOption = False, url: UrlOption = None) -> None:
    """Pause a queue: nothing new is started from it."""
    _set_paused(queue, True, json, url)


def resume(queue: str, json: JsonOption = False, url: UrlOption = None) -> None:
    """Resume a paused queue."""
    _set_paused(queue, False, json, url)


def _set_paused(queue: str, paused: bool, json: bool, url: str | None) -> None:
    with errors_as_exit_codes(), client(url) as connection:
        connection.pause(queue, paused)
        answer = {"queue": queue, "paused": paused}
        print_json(answer) if json else print_rows(("queue", "paused"), [(queue, paused)])


def workers(json: JsonOption = False, url: UrlOption = None) -> None:
    """Every worker, and what it runs."""
    with errors_as_exit_codes(), client(url) as connection:
        found = connection.workers()
        if json:
            print_json(found)
            return
        columns = ("name", "pool", "state", "current_job", "pid", "node")
        print_rows(columns, ([worker.get(column) for column in columns] for worker in found))


def doctor(
    data: DataOption = None,
    port: Annotated[int, typer.Option()] = 8000,
    tasks: TasksOption = None,
    s3_endpoint_url: Annotated[str | None, typer.Option()] = None,
    json: JsonOption = False,
) -> None:
    """Find what would keep a service from working here: Python, Ray, ports, store, disk, tasks."""
    from . import doctor as doctors

    with errors_as_exit_codes():
        settings = from_environment(
            os.environ,
            data=data or os.environ.get("JOBSVC_DATA") or "~/.jobsvc/data",
            port=port,
            tasks=tuple(tasks) if tasks else None,
            s3_endpoint_url=s3_endpoint_url,
        )
        findings = doctors.examine(settings)
        if json:
            print_json(findings)
        else:
            print_rows(("check", "ok", "found"), ((f.check, f.ok, f.found) for f in findings))
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)


def demo(
    jobs: Annotated[int, typer.Option(min=10, max=100_000)] = 2_000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running.")] = False,
    json: JsonOption = False,
) -> None:
    """A fresh service, real work, its leader killed half way: shows that nothing is lost."""
    from .demo import run_demo

    with errors_as_exit_codes():
        report = run_demo(jobs, keep=keep, say=_say)
        if json:
            print_json(report)
        else:
            print_rows(
                ("figure", "value"), [(name, getattr(report, name)) for name in report.__struct_fields__]
            )
        if not report.right:
            raise typer.Exit(1)
