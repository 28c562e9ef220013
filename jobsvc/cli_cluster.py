"""Commands about a cluster on EC2, for who pays for it: sweep, and what `down --cluster` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_output import (
    EXIT_UNEXPECTED,
    JsonOption,
    errors_as_exit_codes,
    print_json,
    print_rows,
    say,
)
from .ec2_sweep import WAIT_SECONDS, Report, Verdict

if TYPE_CHECKING:
    from .cluster_file import ClusterFile
    from .ec2_instances import Ec2

COLUMNS = ("kind", "id", "state", "verdict", "why")

ClusterFileArgument = Annotated[Path, typer.Argument(metavar="CLUSTER.yaml", show_default=False)]


def sweep(
    cluster_file: ClusterFileArgument,
    yes: Annotated[bool, typer.Option("--yes", help="End what is left behind, and wait for it.")] = False,
    dead: Annotated[bool, typer.Option("--dead", help="The cluster is dead: no head protects it.")] = False,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for EC2.", min=0)] = WAIT_SECONDS,
    json: JsonOption = False,
) -> None:
    """List what a cluster left behind on EC2; --yes ends it. Exit code 1: something is left, or unknown."""
    from .cluster_down import guards_stand_still
    from .cluster_file import load_cluster_file
    from .ec2_sweep import Case, Sweep

    with errors_as_exit_codes("Interrupted; it may be run again."):
        cluster = load_cluster_file(cluster_file)
        case = Case(
            cluster=cluster.cluster_name,
            manager_types=cluster.manager_types,
            dead=dead,
            guards_stand_still=guards_stand_still(cluster, say),
        )
        work = Sweep(_ec2(cluster), case, say=say)
        report = work.end(wait_seconds) if yes else work.look()
        _show(report, report, json)
        if report.having(Verdict.END) and not yes:
            say("nothing was ended; --yes ends what is left behind")
        if not report.is_clean:
            raise typer.Exit(EXIT_UNEXPECTED)


def down_cluster(cluster_file: Path, json: bool) -> None:
    """What `jobsvc down --cluster` does: end all of it, and show EC2's word for it."""
    from .cluster_down import take_down
    from .cluster_file import load_cluster_file

    with errors_as_exit_codes("Interrupted; run it again to end the rest."):
        cluster = load_cluster_file(cluster_file)
        report = take_down(cluster, _ec2(cluster), say=say)
        _show(report, report.left, json)
        if not report.is_clean:
            say(f"not everything of {report.cluster} is gone, or it is not known; run it again")
            raise typer.Exit(EXIT_UNEXPECTED)
        say(f"nothing of {report.cluster} is left on EC2; its jobs stay in {report.data or 'its store'}")


def _ec2(cluster: ClusterFile) -> Ec2:
    from .ec2_instances import Ec2, ec2_client

    return Ec2(ec2_client(cluster.region, cluster.aws_credentials))


def _show(document: Any, report: Report, json: bool) -> None:
    if json:
        print_json(document)
    else:
        print_rows(COLUMNS, ([getattr(each, name) for name in COLUMNS] for each in report.items))
    for text in report.problems:
        say(text)
    for text in report.unknown:
        say(f"EC2 did not say: {text}")
