"""The raw lines of a comparison, and what several rounds of them say together."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec


class Line(msgspec.Struct):
    """One measurement. What only some of them have is None in the others."""

    at: str
    peer: str
    mode: str
    part: str
    round: int
    measure: str
    value: float | None = None
    unit: str = ""
    reason: str = ""
    by: str = ""
    of: str = ""
    jobs: int | None = None
    checked: int | None = None
    killed: int | None = None
    finished: int | None = None
    held: int | None = None
    first_start_seconds: float | None = None
    deadline_seconds: float | None = None
    load_before: float = 0.0
    scale: float = 1.0
    versions: list[str] = []
    machine: str = ""
    sync_ms: float = 0.0
    commit: str = ""


def read_lines(path: Path) -> Iterator[Line]:
    if not path.exists():
        return
    for text in path.read_text().splitlines():
        yield msgspec.json.decode(text, type=Line)


def latest(lines: Iterable[Line]) -> list[Line]:
    """Of a session that was begun again, after it had failed, only what the last time has told."""
    found = {(line.peer, line.mode, line.part, line.round, line.measure): line for line in lines}
    return list(found.values())


class Cell(NamedTuple):
    """The median of a measure's rounds, and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread_percent(self) -> float:
        """Half the distance of the extremes."""
        return (self.high - self.low) / 2 / self.median * 100 if self.median else 0.0


Cells = dict[tuple[str, str, str], Cell]  # by peer, mode and measure


def cells(lines: Iterable[Line]) -> Cells:
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for line in lines:
        if line.value is not None:
            values[line.peer, line.mode, line.measure].append(line.value)
    return {
        key: Cell(statistics.median(found), min(found), max(found), len(found))
        for key, found in values.items()
    }
