"""One scenario: callers go on while something happens to the cluster, then the history is judged.

Each scenario leaves a line of figures, printed (`pytest -s`) and written to the file named by
JOBSVC_EC2_FIGURES: the table in the README is made of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.cluster.load import Load, judge

from .cluster import CLIENT_SECONDS, Cluster

FIGURES_VARIABLE = "JOBSVC_EC2_FIGURES"
JUDGE_SECONDS = 240.0


@dataclass
class Figures:
    """What became of a scenario. `lost` and `finished_twice` are 0, or it has failed."""

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
    with Load(cluster, callers=2, batch=2, pace_seconds=0.1, deadline_seconds=CLIENT_SECONDS) as load:
        load.wait_for(4, 120)
        yield load, figures
        load.wait_for(4, 240)
    cluster.forget_addresses()
    judge(cluster, load.told, JUDGE_SECONDS)
    figures.accepted = len(load.told.accepted)
    figures.longest_pause_seconds = round(max(load.told.pauses), 2)
    note(figures)


def note(figures: Figures) -> None:
    made.append(figures)
    print(f"\n{describe(figures)}")
    if path := os.environ.get(FIGURES_VARIABLE):
        with Path(path).open("a") as lines:
            lines.write(json.dumps(asdict(figures)) + "\n")


def describe(figures: Figures) -> str:
    measured = "".join(f", {name} {seconds:.1f} s" for name, seconds in figures.measured.items())
    return (
        f"{figures.scenario}: {figures.accepted} jobs accepted, lost {figures.lost}, finished twice "
        f"{figures.finished_twice}, longest pause {figures.longest_pause_seconds:.1f} s{measured}"
    )
