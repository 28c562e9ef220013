"""From the figures of `scaling` to tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .compare_plot import STYLE

Figures = dict[str, Any]
WIDTH, PANEL_WIDTH, HEIGHT, MARGIN, LEFT = 948, 430, 300, 24, 56
PLOT_HEIGHT, TOP = 190, 62


class Column(NamedTuple):
    key: str
    title: str
    digits: int = 0
    divisor: float = 1.0


TABLES: dict[str, tuple[Column, ...]] = {
    "queued": (
        Column("queued", "queued jobs"),
        Column("enqueue_us", "leader, enqueue, µs a job", 1),
        Column("finish_us", "leader, lease and finish, µs a job", 1),
        Column("bytes_per_job", "memory, bytes a job"),
        Column("enqueue_stall_ms", "longest block: enqueue, ms"),
        Column("drain_stall_ms", "drain, ms"),
        Column("gc_ms", "longest collection, ms"),
        Column("snapshot_bytes", "snapshot, MB", 1, 1e6),
        Column("snapshot_s", "written, CPU s", 2),
        Column("recovery_s", "read back, CPU s", 2),
    ),
    "commit": (
        Column("queued", "queued jobs"),
        Column("p50_ms", "record of 1,000 jobs, synced: p50 ms", 1),
        Column("p99_ms", "p99 ms", 1),
        Column("load", "load of the machine", 1),
    ),
    "workers": (
        Column("workers", "workers"),
        Column("job_ms", "job, ms", 3),
        Column("jobs_s", "jobs/s"),
        Column("calls_s", "calls/s"),
        Column("leader_percent", "leader, % of a core"),
        Column("us_per_call", "µs a call"),
        Column("us_per_job", "µs a job", 1),
        Column("commit_ms", "commit, median ms", 1),
        Column("stall_ms", "longest block, ms", 1),
    ),
    "ray": (Column("ray_call_us", "a call of an async Ray actor, CPU µs", 0),),
    "pairs": (
        Column("pairs", "leaders at the same time"),
        Column("jobs_s", "jobs/s, all"),
        Column("us_per_job", "µs a job", 1),
    ),
}


def report(figures: list[Figures]) -> str:
    """A Markdown table for each kind that was measured."""
    parts = []
    for kind, columns in TABLES.items():
        rows = [each for each in figures if each["kind"] == kind]
        if rows:
            lines = [
                "| " + " | ".join(column.title for column in columns) + " |",
                "|---" * len(columns) + "|",
            ]
            lines += ["| " + " | ".join(_cell(row, column) for column in columns) + " |" for row in rows]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(row: Figures, column: Column) -> str:
    text = f"{row[column.key] / column.divisor:,.{column.digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text and column.digits > 2 else text


# --- the picture --------------------------------------------------------------------------------------


class Curve(NamedTuple):
    name: str
    kind: str  # a class of STYLE
    points: list[tuple[float, float]]


def picture(figures: list[Figures]) -> str:
    queued = [each for each in figures if each["kind"] == "queued"]
    workers = [each for each in figures if each["kind"] == "workers"]
    body = list(
        _panel(
            MARGIN,
            "Leader CPU against queued jobs: µs a job",
            [
                Curve("enqueue", "durable", [(each["queued"], each["enqueue_us"]) for each in queued]),
                Curve("lease and finish", "ours", [(each["queued"], each["finish_us"]) for each in queued]),
            ],
        )
    )
    by_length = sorted({each["job_ms"] for each in workers})
    curves = [
        Curve(
            f"jobs of {length:g} ms",
            "ours" if length == by_length[-1] else "durable",
            [(each["workers"], each["jobs_s"]) for each in workers if each["job_ms"] == length],
        )
        for length in by_length
    ]
    body += list(_panel(MARGIN + PANEL_WIDTH + 40, "One leader against workers: jobs/s", curves))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    card = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6"/>'
    lines = "polyline { fill: none; stroke-width: 2 } polyline.ours { stroke: #0969da; fill: none }"
    lines += " polyline.durable { stroke: #6e7781; fill: none }"
    return "\n".join(
        [
            f'{head} aria-label="How one leader scales">',
            f"<style>{STYLE}{lines}</style>",
            card,
            *body,
            "</svg>\n",
        ]
    )


def _panel(left: int, title: str, curves: list[Curve]) -> Iterator[str]:
    points = [point for curve in curves for point in curve.points]
    yield f'<text class="title" x="{left}" y="30">{title}</text>'
    if not points:
        return
    x_axis = Axis([point[0] for point in points], left + LEFT, left + PANEL_WIDTH - 20)
    y_axis = Axis([point[1] for point in points], TOP + PLOT_HEIGHT, TOP)
    right = left + PANEL_WIDTH
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        yield f'<line class="grid" x1="{left + LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        place = f'x="{left + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end"'
        yield f'<text class="small" {place}>{tick:,.0f}</text>'
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        place = f'x="{x:.1f}" y="{TOP + PLOT_HEIGHT + 18}" text-anchor="middle"'
        yield f'<text class="small" {place}>{tick:,.0f}</text>'
    for number, curve in enumerate(curves):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in curve.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline class="{curve.kind}" points="{line}"/>'
        yield from (f'<circle class="{curve.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
        key = left + LEFT + number * 130
        yield f'<rect class="{curve.kind}" x="{key}" y="40" width="10" height="10"/>'
        yield f'<text class="small" x="{key + 15}" y="49">{curve.name}</text>'


class Axis:
    """Logarithmic, whole powers of ten."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)) + 0.001)
        self._high = max(self._low + 1, math.ceil(math.log10(max(values)) - 0.001))
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        part = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * part

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]
