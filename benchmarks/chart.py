"""Horizontal bars as SVG, written by hand: no dependency, readable on light and dark ground. Axes begin at zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from textwrap import wrap

WIDTH, LEFT, RIGHT = 760, 250, 70
"""Pixels: of the whole, of the names left of the bars, and of the values right of them."""

ROW, BAR = 26, 14

NOTE_CHARACTERS = 120

STYLE = """
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 15px }
    .small { font-size: 11.5px; fill: #59636e }
    .grid { stroke: #d1d9e0; stroke-width: 1 }
    .one { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 4 3 }
    .ours { fill: #1a7f5a }
    .other { fill: #8c96a0 }
    .spread { stroke: #1f2328; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .small { fill: #9198a1 }
      .grid { stroke: #3d444d }
      .one { stroke: #9198a1 }
      .ours { fill: #3fb68b }
      .other { fill: #6e7681 }
      .spread { stroke: #e6edf3 }
    }
"""


@dataclass(frozen=True)
class Bar:
    """One value, with the range in which half of all rounds lie."""

    name: str
    value: float
    low: float
    high: float
    is_ours: bool = False


@dataclass
class Panel:
    """Bars on one axis."""

    title: str
    unit: str
    decimals: int = 1
    bars: list[Bar] = field(default_factory=list)
    has_line_at_one: bool = False


def draw(title: str, panels: list[Panel], notes: list[str]) -> str:
    """The chart."""
    body: list[str] = []
    y = 30
    body.append(_text(16, y, title, "title"))
    for panel in panels:
        y += 34
        body.append(_text(16, y, panel.title, "title"))
        y += 10
        body += _panel(panel, y)
        y += ROW * len(panel.bars) + 40
    for line in (line for note in notes for line in wrap(note, NOTE_CHARACTERS)):
        y += 18
        body.append(_text(16, y, line, "small"))
    height = y + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'role="img" aria-labelledby="title description">',
            f'  <title id="title">{escape(title, quote=False)}</title>',
            f'  <desc id="description">{escape(_description(panels), quote=False)}</desc>',
            f"  <style>{STYLE}  </style>",
            *(f"  {line}" for line in body),
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, top: int) -> Iterator[str]:
    longest = max(bar.high for bar in panel.bars)
    step = _step(longest)
    steps = math.ceil(longest / step)
    scale = (WIDTH - LEFT - RIGHT) / (steps * step)
    bottom = top + ROW * len(panel.bars)
    for number in range(steps + 1):
        x = LEFT + number * step * scale
        yield f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>'
        yield _text(x, bottom + 16, f"{number * step:g}", "small", "middle")
    yield _text(LEFT + steps * step * scale, bottom + 32, panel.unit, "small", "end")
    for number, bar in enumerate(panel.bars):
        middle = top + number * ROW + ROW / 2
        yield _text(LEFT - 10, middle + 4.5, bar.name, "", "end")
        kind = "ours" if bar.is_ours else "other"
        yield (
            f'<rect class="{kind}" x="{LEFT}" y="{middle - BAR / 2:g}" width="{bar.value * scale:.1f}" height="{BAR}"/>'
        )
        low, high = LEFT + bar.low * scale, LEFT + bar.high * scale
        yield (
            f'<path class="spread" d="M{low:.1f} {middle:g}H{high:.1f}'
            f'M{low:.1f} {middle - 3:g}v6M{high:.1f} {middle - 3:g}v6"/>'
        )
        yield _text(max(high, LEFT + bar.value * scale) + 8, middle + 4.5, f"{bar.value:.{panel.decimals}f}")
    if panel.has_line_at_one:
        yield f'<path class="one" d="M{LEFT + scale:.1f} {top - 4}V{bottom + 4}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{x:g}" y="{y:g}"{attributes}>{escape(text, quote=False)}</text>'


def _step(longest: float) -> float:
    """A round number of which four to ten make the axis."""
    power = 10.0 ** math.floor(math.log10(longest / 4))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if longest / (power * factor) <= 8)


def _description(panels: list[Panel]) -> str:
    return " ".join(
        f"{panel.title}, {panel.unit}: "
        + ", ".join(f"{bar.name} {bar.value:.{panel.decimals}f}" for bar in panel.bars)
        + "."
        for panel in panels
    )
