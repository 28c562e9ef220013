"""One scenario: callers go on while something happens to the cluster, then the history is judged.

Each scenario leaves a line of figures, printed (`pytest -s`) and written to the file named by
JOBSVC_EC2_FIGURES: the table in the README is made of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.cluster.load import Load, judge

from .cluster import CLIENT_SECONDS, UP_SECONDS, Cluster
from .rig_services import Instance
from .waiting import wait_until

FIGURES_VARIABLE = "JOBSVC_EC2_FIGURES"
JUDGE_SECONDS = 400.0


@dataclass
class Figures:
    """What became of a scenario. `lost` and `finished_twice` are 0, or it has failed.

    `measured` are seconds, if they are no whole numbers.
    """

    scenario: str
    accepted: int = 0
    lost: int = 0
    finished_twice: int = 0
    longest_pause_seconds: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)


made: list[Figures] = []


@contextlib.contextmanager
def scenario(cluster: Cluster, name: str) -> Iterator[tuple[Load, Figures]]:
    """Callers at both ways in during the block; afterwards every job that was accepted has ended, once."""
    figures = Figures(name)
    cluster.forget_addresses()
    with Load(cluster, callers=2, batch=2, pace_seconds=0.2, deadline_seconds=CLIENT_SECONDS) as load:
        load.wait_for(4, 120)
        yield load, figures
        load.wait_for(4, 240)
    cluster.forget_addresses()
    judge(cluster, load.told, JUDGE_SECONDS)
    figures.accepted = len(load.told.accepted)
    figures.longest_pause_seconds = round(max(load.told.pauses), 2)
    note(figures)


def another_head(cluster: Cluster, lost: Instance, figures: Figures, began: float) -> None:
    """Until the guard has brought another head, a job has run, and the pair is whole."""

    def is_there() -> bool:
        return any(each.id != lost.id for each in cluster.rig.instances(kind="head"))

    wait_until(is_there, "another head", UP_SECONDS)
    figures.measured["another head after"] = time.monotonic() - began
    wait_until(lambda: cluster.is_ready(cluster.head), "the new head to answer", UP_SECONDS)
    figures.measured["head answers after"] = time.monotonic() - began
    cluster.forget_addresses()
    job = cluster.client.enqueue("test.double", 1)
    assert job.result(timeout=UP_SECONDS) == 2
    figures.measured["first job run after"] = time.monotonic() - began
    cluster.whole_pair()


def note(figures: Figures) -> None:
    made.append(figures)
    print(f"\n{describe(figures)}")
    if path := os.environ.get(FIGURES_VARIABLE):
        with Path(path).open("a") as lines:
            lines.write(json.dumps(asdict(figures)) + "\n")


def describe(figures: Figures) -> str:
    return (
        f"{figures.scenario}: {figures.accepted} jobs accepted, lost {figures.lost}, finished twice "
        f"{figures.finished_twice}, longest pause {figures.longest_pause_seconds:.1f} s; "
        f"{describe_measured(figures.measured)}"
    )


def describe_measured(measured: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else f"{name} {value:.{1 if value < 10 else 0}f} s"
        for name, value in measured.items()
    )
