"""From the lines of a comparison to a picture: bars in SVG, on a card that follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from .compare_lines import Cells, Line, cells
from .compare_report import number
from .peers.roster import DURABLE, PEERS, TITLES

COLUMNS, COLUMN_WIDTH, COLUMN_GAP, MARGIN = 2, 450, 24, 20
WIDTH = 2 * MARGIN + COLUMNS * COLUMN_WIDTH + (COLUMNS - 1) * COLUMN_GAP
NAME_WIDTH, VALUE_WIDTH = 146, 44
BAR, GAP, ROW_GAP, TITLE_HEIGHT, LEGEND_HEIGHT = 10, 6, 30, 40, 34

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 13px }
  .small { font-size: 10.5px; fill: #59636e } .card { fill: #ffffff; stroke: #d1d9e0 }
  .ours { fill: #0969da } .durable { fill: #6e7781 } .weaker { fill: #c4cbd2 } .grid { stroke: #d1d9e0 }
  .bold { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .card { fill: #151b23; stroke: #3d444d }
    .ours { fill: #4493f8 } .durable { fill: #9198a1 } .weaker { fill: #484f58 } .grid { stroke: #3d444d }
  }
"""


class Panel(NamedTuple):
    measure: str
    title: str
    words: str
    lower_is_better: bool = False


PANELS = (
    Panel("w1_end_to_end", "W1 end to end: jobs/s", "no-op, 200-byte argument; all results in hand"),
    Panel("w2_end_to_end", "W2 end to end: jobs/s", "sha512 × 1,000 over 16 KiB; all results in hand"),
    Panel("enqueue_each", "W1 one by one: jobs/s", "jobsvc: 32 callers over HTTP; the others: one caller"),
    Panel("latency_p50", "Idle latency: ms, less is better", "from enqueue to result, median", True),
)


class Bars(NamedTuple):
    """A peer's bars in a panel: what is durable before the answer, and what is not."""

    name: str
    is_ours: bool
    durable: float | None
    weaker: float | None

    @property
    def best(self) -> float:
        return self.durable if self.durable is not None else (self.weaker or 0.0)


def picture(lines: list[Line]) -> str:
    found = cells(lines)
    shown = [(panel, bars) for panel in PANELS if (bars := bars_of(found, panel))]
    top, body = MARGIN, []
    for first in range(0, len(shown), COLUMNS):
        row = shown[first : first + COLUMNS]
        for column, (panel, bars) in enumerate(row):
            body += list(_panel(panel, bars, MARGIN + column * (COLUMN_WIDTH + COLUMN_GAP), top))
        top += TITLE_HEIGHT + max(sum(map(_height, bars)) for _, bars in row) + ROW_GAP
    body += list(_legend(top))
    height = top + LEGEND_HEIGHT
    label = "jobsvc and other job queues on one machine"
    size = f'viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    card = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", card, *body, "</svg>"]) + "\n"


def bars_of(found: Cells, panel: Panel) -> list[Bars]:
    """Best first."""
    bars = []
    for peer, entry in PEERS.items():
        values = {mode: found.get((peer, mode, panel.measure)) for mode in entry.modes}
        medians = {mode: cell.median for mode, cell in values.items() if cell is not None and cell.median > 0}
        if peer == "jobsvc":
            for mode, name in (("fsync", "jobsvc"), ("s3", "jobsvc, ministack")):
                if mode in medians:
                    bars.append(Bars(name, True, medians[mode], None))
        elif medians:
            durable = next((value for mode, value in medians.items() if mode in DURABLE), None)
            weaker = next((value for mode, value in medians.items() if mode not in DURABLE), None)
            bars.append(Bars(TITLES.get(peer, peer), False, durable, weaker))
    return sorted(bars, key=lambda each: each.best, reverse=not panel.lower_is_better)


def _height(bars: Bars) -> int:
    return GAP + BAR * max(1, sum(value is not None for value in (bars.durable, bars.weaker)))


def _panel(panel: Panel, bars: list[Bars], left: int, top: int) -> Iterator[str]:
    values = [value for each in bars for value in (each.durable, each.weaker) if value is not None]
    scale = Scale(min(values), max(values))
    yield f'<text class="title" x="{left}" y="{top + 12}">{escape(panel.title)}</text>'
    yield f'<text class="small" x="{left}" y="{top + 27}">{escape(panel.words)}</text>'
    y = top + TITLE_HEIGHT
    bottom = y + sum(map(_height, bars))
    for tick in scale.ticks():
        x = left + NAME_WIDTH + scale.width(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{bottom}"/>'
        yield f'<text class="small" x="{x:.1f}" y="{bottom + 11}" text-anchor="middle">{number(tick)}</text>'
    for each in bars:
        yield from _bars(each, scale, left, y)
        y += _height(each)


def _bars(bars: Bars, scale: Scale, left: int, y: int) -> Iterator[str]:
    middle = y + (_height(bars) - GAP) / 2 + 4
    weight = ' class="bold"' if bars.is_ours else ""
    start = left + NAME_WIDTH
    yield f'<text{weight} x="{start - 8}" y="{middle:.1f}" text-anchor="end">{escape(bars.name)}</text>'
    for value, kind in ((bars.durable, "ours" if bars.is_ours else "durable"), (bars.weaker, "weaker")):
        if value is None:
            continue
        width = scale.width(value)
        yield f'<rect class="{kind}" x="{start}" y="{y}" width="{width:.1f}" height="{BAR - 1}"/>'
        yield f'<text class="small" x="{start + width + 4:.1f}" y="{y + BAR - 2}">{number(value)}</text>'
        y += BAR


class Scale:
    """Logarithmic, from the power of ten below the least value: peers differ by factors."""

    def __init__(self, least: float, most: float) -> None:
        self._low = math.floor(math.log10(least) - 0.001)
        self._high = math.log10(most)

    def width(self, value: float) -> float:
        part = (math.log10(value) - self._low) / max(self._high - self._low, 0.001)
        return (COLUMN_WIDTH - NAME_WIDTH - VALUE_WIDTH) * part

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, math.floor(self._high) + 1)]


def _legend(top: int) -> Iterator[str]:
    x = MARGIN
    for kind, text in (
        ("ours", "jobsvc: an answer means that it is on disk, or in S3"),
        ("durable", "others, the same: fsync always, or commit"),
        ("weaker", "others with fsync every second, or with nothing durable"),
    ):
        yield f'<rect class="{kind}" x="{x}" y="{top + 2}" width="10" height="10"/>'
        yield f'<text class="small" x="{x + 15}" y="{top + 11}">{text}</text>'
        x += 310
    yield f'<text class="small" x="{MARGIN}" y="{top + 26}">Logarithmic scales.</text>'
