"""From the lines of a comparison to a picture: bars in SVG, on a card that follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from .compare_lines import Cells, Line, cells
from .compare_report import number
from .peers.roster import DURABLE, PEERS

WIDTH, NAME_WIDTH, VALUE_WIDTH, MARGIN = 820, 150, 80, 20
BAR, GAP, PANEL_GAP, TITLE_HEIGHT, LEGEND_HEIGHT = 9, 7, 26, 26, 34

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
    lower_is_better: bool = False


PANELS = (
    Panel(
        "enqueue_each",
        "W1, durable single enqueues: jobs/s (jobsvc: 32 callers over HTTP; others: one caller)",
    ),
    Panel("w1_end_to_end", "W1, no-op, end to end: jobs/s"),
    Panel("w2_end_to_end", "W2, sha512 × 1,000 over 16 KiB, end to end: jobs/s"),
    Panel("latency_p50", "idle, from enqueue to result in hand, median: ms", lower_is_better=True),
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
    height, body = MARGIN, []
    for panel in PANELS:
        bars = bars_of(found, panel)
        if bars:
            body += list(_panel(panel, bars, height))
            height += TITLE_HEIGHT + sum(map(_height, bars)) + PANEL_GAP
    body += list(_legend(height))
    height += LEGEND_HEIGHT
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
            bars.append(Bars("no queue" if peer == "hashing" else peer, False, durable, weaker))
    return sorted(bars, key=lambda each: each.best, reverse=not panel.lower_is_better)


def _height(bars: Bars) -> int:
    return GAP + BAR * max(1, sum(value is not None for value in (bars.durable, bars.weaker)))


def _panel(panel: Panel, bars: list[Bars], top: int) -> Iterator[str]:
    values = [value for each in bars for value in (each.durable, each.weaker) if value is not None]
    scale = Scale(min(values), max(values))
    yield f'<text class="title" x="{MARGIN}" y="{top + 12}">{escape(panel.title)}</text>'
    bottom = top + TITLE_HEIGHT + sum(map(_height, bars))
    for tick in scale.ticks():
        x = scale.x(tick)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + TITLE_HEIGHT - 4}" y2="{bottom}"/>'
        yield f'<text class="small" x="{x:.1f}" y="{bottom + 11}" text-anchor="middle">{number(tick)}</text>'
    y = top + TITLE_HEIGHT
    for each in bars:
        yield from _bars(each, scale, y)
        y += _height(each)


def _bars(bars: Bars, scale: Scale, y: int) -> Iterator[str]:
    middle = y + (_height(bars) - GAP) / 2 + 4
    weight = " class='bold'" if bars.is_ours else ""
    place = f'x="{MARGIN + NAME_WIDTH - 8}" y="{middle:.1f}" text-anchor="end"'
    yield f"<text{weight} {place}>{escape(bars.name)}</text>"
    for value, kind in ((bars.durable, "ours" if bars.is_ours else "durable"), (bars.weaker, "weaker")):
        if value is None:
            continue
        left, right = MARGIN + NAME_WIDTH, scale.x(value)
        yield f'<rect class="{kind}" x="{left}" y="{y}" width="{right - left:.1f}" height="{BAR - 1}"/>'
        yield f'<text class="small" x="{right + 4:.1f}" y="{y + BAR - 1}">{number(value)}</text>'
        y += BAR


class Scale:
    """Logarithmic, from the power of ten below the least value: peers differ by factors."""

    def __init__(self, least: float, most: float) -> None:
        self._low = math.floor(math.log10(least) - 0.001)
        self._high = math.log10(most)

    def x(self, value: float) -> float:
        width = WIDTH - 2 * MARGIN - NAME_WIDTH - VALUE_WIDTH
        part = (math.log10(value) - self._low) / max(self._high - self._low, 0.001)
        return MARGIN + NAME_WIDTH + width * part

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
        x += 270
    yield f'<text class="small" x="{MARGIN}" y="{top + 26}">Logarithmic scales.</text>'
