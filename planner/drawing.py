"""Drawing: the few shapes our pictures are made of, as SVG text that follows the reader's light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10

WIDTH = 800
"""Units of a picture's own width; it scales to the page."""
LETTER = 6.4
"""Units a letter takes at 12, on average; sans-serif faces differ by a tenth."""
PALETTE = ("#4453a8", "#6b7bd1", "#98a5ea", "#2f3a78", "#b9c2f2", "#7f8bb8")
"""Weights, component by component."""
INK, FAINT, GRID, PAPER = "#1c2430", "#667080", "#dfe3ea", "#ffffff"
ACTIVATIONS, WORKSPACE, CONTEXT, LIMIT = "#25a18e", "#f0a93b", "#b6bcc8", "#d43d51"
STYLE = f"""
.vp text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: {INK};
  stroke: {PAPER}; stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; }}
.vp .faint {{ fill: {FAINT}; }}
.vp .limit {{ fill: {LIMIT}; }}
@media (prefers-color-scheme: dark) {{
  .vp .paper {{ fill: #14181f; }}
  .vp text {{ fill: #e6e9ef; stroke: #14181f; }}
  .vp .faint {{ fill: #98a2b3; }}
  .vp .limit {{ fill: #ff7686; }}
  .vp .grid {{ stroke: #2b323d; }}
  .vp .rim {{ stroke: #14181f; }}
}}
"""


def picture(height: float, parts: Iterable[str], title: str) -> str:
    """A whole picture; `title` is read out where it cannot be seen."""
    return (
        f'<svg class="vp" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="100%" role="img" '
        f'style="max-width:{WIDTH * 1.25:g}px"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect class="paper" width="{WIDTH}" height="{height:g}" fill="{PAPER}"/>{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", kind: str = "") -> str:
    """Words at a point; `anchor`: start, middle or end."""
    own = f' class="{kind}"' if kind else ""
    weight = ' font-weight="600"' if size > 13 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}{own}>{escape(words)}</text>'
    )


def fitted(words: str, room: float) -> str:
    """Words cut to what `room` units hold."""
    most = max(int(room / LETTER), 2)
    return words if len(words) <= most else f"{words[: most - 1]}…"


def bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="2" fill="{colour}"/>'


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str = GRID, dashed: bool = False) -> str:
    """A thin line; a dashed one is a limit."""
    look = ' stroke-width="1.6" stroke-dasharray="6 4"' if dashed else ' class="grid"'
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{look}/>'


def area(points: Sequence[tuple[float, float]], colour: str) -> str:
    """A filled shape."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{path}" fill="{colour}"/>'


def legend(entries: Iterable[tuple[str, str]], x: float, y: float) -> tuple[list[str], float]:
    """Names with their colours in rows, and where the last row ends."""
    parts, place = [], x
    for name, colour in entries:
        room = len(name) * LETTER + 30
        if place + room > WIDTH - 10 and place > x:
            place, y = x, y + 20
        parts += [bar(place, y - 9, 10, 10, colour), text(place + 15, y, name)]
        place += room
    return parts, y


def ticks(top: float, count: int = 5) -> list[float]:
    """Round numbers from zero to below `top`."""
    rough = top / count
    scale: float = 10 ** floor(log10(rough))
    step = next(n * scale for n in (1, 2, 2.5, 5, 10) if n * scale >= rough)
    return [n * step for n in range(int(top / step) + 1)]
