"""The command line: `jobsvc --help`. The commands are in `cli_jobs` and `cli_service`."""

from __future__ import annotations

import typer

from . import cli_jobs, cli_output, cli_service

app = typer.Typer(
    name="jobsvc",
    help="A durable job service for Ray clusters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=(cli_output.__doc__ or "").partition("Exit codes:")[2].strip(),
)

for command in (
    cli_service.up,
    cli_service.down,
    cli_service.status,
    cli_service.demo,
    cli_service.doctor,
    cli_jobs.enqueue,
    cli_jobs.jobs,
    cli_jobs.job,
    cli_jobs.result,
    cli_jobs.logs,
    cli_jobs.wait,
    cli_jobs.cancel,
    cli_jobs.retry,
    cli_jobs.pull,
    cli_jobs.completions,
    cli_service.queues,
    cli_service.pause,
    cli_service.resume,
    cli_service.workers,
):
    app.command()(command)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
