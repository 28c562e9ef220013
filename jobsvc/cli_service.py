"""Commands about the service: up, down, status, doctor, demo; queues, workers, tasks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_completion import queue_names
from .cli_output import (
    CHANGE_SECONDS,
    EXIT_NOT_FOUND,
    EXIT_UNEXPECTED,
    JsonOption,
    UrlOption,
    client,
    errors_as_exit_codes,
    print_json,
    print_rows,
    say,
)
from .client_tables import STATES, status_rows
from .known_variables import complaints
from .service_code import GRACE_SECONDS
from .settings import Settings, from_environment

DEFAULT_DATA = "~/.jobsvc/data"
WATCH_SECONDS = 1.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"

DataOption = Annotated[
    str | None, typer.Option(help="A folder, or s3://BUCKET/PREFIX.", show_default=DEFAULT_DATA)
]
TasksOption = Annotated[list[str] | None, typer.Option(help="Module with tasks; may be repeated.")]
ServiceOption = Annotated[
    str, typer.Option("--service", envvar="JOBSVC_SERVICE", help="Name of the service.")
]
PortOption = Annotated[
    int | None, typer.Option(help="The next free one if it is taken.", show_default="8000")
]
HostOption = Annotated[
    str | None, typer.Option(help="Beyond loopback, JOBSVC_TOKEN must be set.", show_default="127.0.0.1")
]
S3EndpointOption = Annotated[str | None, typer.Option(help="For S3 that is not AWS.")]
RayOption = Annotated[str | None, typer.Option(help="Use this Ray cluster, HOST:PORT.")]
ClusterOption = Annotated[
    Path | None,
    typer.Option("--cluster", metavar="CLUSTER.yaml", help="All of this cluster on EC2.", show_default=False),
]
QueueArgument = Annotated[
    str, typer.Argument(help="Name of the queue.", show_default=False, autocompletion=queue_names)
]


def _settings(data: str | None, tasks: list[str] | None, **chosen: Any) -> Settings:
    """What was said here, else JOBSVC_… variables, else pyproject.toml (tasks), else the defaults."""
    from .project_tasks import tasks_of_project

    for complaint in complaints(os.environ):
        say(complaint)
    if not tasks and "JOBSVC_TASKS" not in os.environ:
        tasks = list(tasks_of_project())
    return from_environment(
        os.environ,
        data=data or os.environ.get("JOBSVC_DATA") or DEFAULT_DATA,
        tasks=tuple(tasks) if tasks else None,
        **chosen,
    )


def up(
    data: DataOption = None,
    port: PortOption = None,
    host: HostOption = None,
    tasks: TasksOption = None,
    service: ServiceOption = "jobsvc",
    s3_endpoint_url: S3EndpointOption = None,
    allow_shell: Annotated[bool, typer.Option("--allow-shell", help="Allow the task jobsvc.shell.")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Take functions by value, from notebooks for example.")
    ] = False,
    ray_address: RayOption = None,
    route_prefix: Annotated[
        str | None, typer.Option(help="With --ray-address: under the Serve that runs there, at /NAME.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Start the service, or find it running; returns when it answers. JOBSVC_… variables are settings too."""
    from . import service as services

    with errors_as_exit_codes("Interrupted; `jobsvc down` ends what was started."):
        settings = _settings(
            data,
            tasks,
            port=port,
            host=host,
            service=service,
            route_prefix=route_prefix,
            s3_endpoint_url=s3_endpoint_url,
            allow_shell=allow_shell or None,
            allow_code=allow_code or None,
        )
        token = os.environ.get("JOBSVC_TOKEN")
        info = services.up(settings, token=token, ray_address=ray_address, say=say)
        if json:
            print_json(info)
            return
        rows = [("API", info.urls[0]), ("API docs", f"{info.urls[0]}/docs"), ("data", info.data)]
        if info.dashboard_url:
            rows += [("Ray dashboard", info.dashboard_url), ("its token", info.ray_token_file or "-")]
        print_rows(("what", "where"), rows)


def down(service: ServiceOption = "jobsvc", cluster: ClusterOption = None, json: JsonOption = False) -> None:
    """End the service and everything that `up` started for it; or a cluster on EC2. The journal stays."""
    from . import service as services
    from .cli_cluster import down_cluster

    if cluster is not None:
        down_cluster(cluster, json)
        return
    with errors_as_exit_codes():
        ended = services.down(service, say=say)
        if json:
            print_json({"service": service, "ended": ended})
        if not ended:
            say(f"no service named {service} is known here")
            raise typer.Exit(EXIT_NOT_FOUND)


def reload(
    service: ServiceOption = "jobsvc",
    grace: Annotated[
        float,
        typer.Option(min=0, help="Seconds that jobs may go on with the old code; then they are given back."),
    ] = GRACE_SECONDS,
    json: JsonOption = False,
) -> None:
    """Bring changed code of the tasks into the running service, without losing a job or a request."""
    from . import service as services

    with errors_as_exit_codes("Interrupted; the same command again brings all of the code in."):
        for complaint in complaints(os.environ):
            say(complaint)
        code = services.reload(service, grace_seconds=grace, say=say)
        if json:
            print_json({"service": service, "code": code.digest, "tasks": code.tasks})


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Who leads, how far the standby is, how many jobs there are, what runs where."""
    with errors_as_exit_codes(), client(url, CHANGE_SECONDS if watch else 5.0) as connection:
        while True:
            document = connection.status()
            if watch and sys.stdout.isatty() and not json:
                sys.stdout.write(CLEAR_SCREEN)
            if json:
                print_json(document)
            else:
                print_rows(("what", "is"), status_rows(document))
            if not watch:
                return
            time.sleep(WATCH_SECONDS)


def queues(json: JsonOption = False, url: UrlOption = None) -> None:
    """Every queue, its counts, and how long its oldest job has waited."""
    with errors_as_exit_codes(), client(url) as connection:
        found = connection.queues()
        if json:
            print_json(found)
            return
        print_rows(
            ("name", "pool", "paused", *STATES, "oldest_seconds", "ended_per_second"),
            (
                [
                    *(queue[name] for name in ("name", "pool", "paused")),
                    *(queue["counts"].get(state, 0) for state in STATES),
                    queue["oldest_queued_age_seconds"],
                    queue["finished_per_second"],
                ]
                for queue in found
            ),
        )


def pause(queue: QueueArgument, json: JsonOption = False, url: UrlOption = None) -> None:
    """Pause a queue: nothing new is started from it."""
    _set_paused(queue, True, json, url)


def resume(queue: QueueArgument, json: JsonOption = False, url: UrlOption = None) -> None:
    """Resume a paused queue."""
    _set_paused(queue, False, json, url)


def _set_paused(queue: str, paused: bool, json: bool, url: str | None) -> None:
    with errors_as_exit_codes(), client(url, CHANGE_SECONDS) as connection:
        document = connection.pause(queue, paused)
        if json:
            print_json(document)
        else:
            print_rows(("name", "paused"), [(document["name"], document["paused"])])


def workers(json: JsonOption = False, url: UrlOption = None) -> None:
    """Every worker, and what it runs."""
    heard = ("pid", "node", "seen_seconds_ago")
    columns = ("name", "pool", "state", "current_job", "leases", *heard, "held_back_since", "held_back")
    with errors_as_exit_codes(), client(url) as connection:
        found = connection.workers()
        print_json(found) if json else print_rows(
            columns, ([each[name] for name in columns] for each in found)
        )


def tasks(json: JsonOption = False, url: UrlOption = None) -> None:
    """The tasks that the service knows."""
    columns = ("name", "parameters", "queue", "pool", "max_attempts", "timeout_seconds", "description")
    with errors_as_exit_codes(), client(url) as connection:
        found = connection.tasks()
        print_json(found) if json else print_rows(
            columns, ([each[name] for name in columns] for each in found)
        )


def doctor(
    data: DataOption = None,
    port: PortOption = None,
    host: HostOption = None,
    tasks: TasksOption = None,
    s3_endpoint_url: S3EndpointOption = None,
    ray_address: RayOption = None,
    cluster: Annotated[str | None, typer.Option(help="Examine this cluster file instead.")] = None,
    json: JsonOption = False,
) -> None:
    """Find what would keep a service from working here; exit code 1 if there is something."""
    from .cluster_doctor import examine_cluster
    from .doctor import examine

    with errors_as_exit_codes():
        if cluster:
            findings = examine_cluster(cluster)
        else:
            settings = _settings(data, tasks, port=port, host=host, s3_endpoint_url=s3_endpoint_url)
            findings = examine(settings, ray_address)
        if json:
            print_json(findings)
        else:
            print_rows(("check", "ok", "found"), ((each.check, each.ok, each.found) for each in findings))
        if not all(finding.ok for finding in findings):
            raise typer.Exit(EXIT_UNEXPECTED)


def demo(
    jobs: Annotated[int, typer.Option(min=10, max=100_000, help="How many files are hashed.")] = 2_000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running.")] = False,
    json: JsonOption = False,
) -> None:
    """A fresh service, real work, its leader killed half way: shows that nothing is lost."""
    from .demo import run_demo

    with errors_as_exit_codes():
        report = run_demo(jobs, keep=keep, say=say)
        if json:
            print_json(report)
        else:
            print_rows(("what", "is"), report.rows())
        if not report.right:
            raise typer.Exit(EXIT_UNEXPECTED)
