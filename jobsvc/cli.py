"""The command line: `jobsvc --help`. The commands are in the modules `cli_*`."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from . import cli_bench, cli_change, cli_cluster, cli_jobs, cli_node, cli_output, cli_service, cli_watch

app = typer.Typer(
    name="jobsvc",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=(cli_output.__doc__ or "").partition("Exit codes:")[2].strip(),
)

PANELS = {
    "Service": (
        cli_service.up,
        cli_service.down,
        cli_service.reload,
        cli_service.status,
        cli_service.doctor,
        cli_service.demo,
        cli_bench.bench,
    ),
    "Jobs": (
        cli_jobs.enqueue,
        cli_jobs.jobs,
        cli_jobs.job,
        cli_jobs.result,
        cli_jobs.logs,
        cli_jobs.wait,
        cli_watch.watch,
        cli_change.cancel,
        cli_change.retry,
        cli_change.failures,
        cli_jobs.pull,
        cli_jobs.completions,
    ),
    "Queues, workers, tasks": (
        cli_service.queues,
        cli_service.pause,
        cli_service.resume,
        cli_service.workers,
        cli_service.tasks,
    ),
    "On EC2": (cli_cluster.sweep,),
}
ON_MACHINES = "On the machines of a cluster"
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(cli_node.node, name="node", rich_help_panel=ON_MACHINES)
app.command(rich_help_panel=ON_MACHINES)(cli_node.guard)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jobsvc {_installed_version()}")
        raise typer.Exit


def _installed_version() -> str:
    try:
        return metadata.version("jobsvc")
    except metadata.PackageNotFoundError:
        return "(not installed)"  # run from a checkout


@app.callback()
def jobsvc(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A durable job service for Ray clusters."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
