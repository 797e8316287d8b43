"""Drawing: the few shapes our pictures are made of, as SVG text that follows the reader's light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

LETTER = 6.4
"""Units a letter takes at 12, on average; sans-serif faces differ by a tenth."""
PALETTE = ("#4453a8", "#6b7bd1", "#98a5ea", "#2f3a78", "#b9c2f2", "#7f8bb8")
"""Weights, component by component."""
ACTIVATIONS, WORKSPACE, CONTEXT = "#25a18e", "#f0a93b", "#b6bcc8"


class Frame(NamedTuple):
    """Units of a picture's own width, which scales to the page, and the edges of the plots in it."""

    width: int
    left: int
    right: int


BROAD = Frame(800, 64, 784)
NARROW = Frame(380, 62, 370)
"""For a page, and for a phone, where letters of the other would be too small to read."""


class Theme(NamedTuple):
    """Colours of all that carries no meaning of its own, and of limits."""

    paper: str
    ink: str
    faint: str
    grid: str
    limit: str


LIGHT = Theme("#ffffff", "#1c2430", "#667080", "#dfe3ea", "#d43d51")
DARK = Theme("#14181f", "#e6e9ef", "#98a2b3", "#2b323d", "#ff7686")


def themed(picture: str, theme: Theme) -> str:
    """Rules that show pictures, as a selector of CSS names them, in a theme."""
    return (
        f"{picture} .paper {{ fill: {theme.paper}; }} "
        f"{picture} text {{ fill: {theme.ink}; stroke: {theme.paper}; }} "
        f"{picture} .faint {{ fill: {theme.faint}; }} {picture} .limit {{ fill: {theme.limit}; }} "
        f"{picture} .grid {{ stroke: {theme.grid}; }} {picture} .dashed {{ stroke: {theme.limit}; }} "
        f"{picture} .rim {{ stroke: {theme.paper}; }}\n"
    )


STYLE = f"""
.vp text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  stroke-width: 3px; stroke-linejoin: round; paint-order: stroke; }}
{themed(".vp", LIGHT)}@media (prefers-color-scheme: dark) {{ {themed(".vp", DARK)}}}
"""


def picture(height: float, parts: Iterable[str], title: str, frame: Frame = BROAD) -> str:
    """A whole picture; `title` is read out where it cannot be seen."""
    width = frame.width
    return (
        f'<svg class="vp" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="100%" role="img" '
        f'style="max-width:{width * 1.25:g}px"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height:g}" fill="{LIGHT.paper}"/>{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", kind: str = "") -> str:
    """Words at a point; `anchor`: start, middle or end."""
    own = f' class="{kind}"' if kind else ""
    weight = ' font-weight="600"' if size > 13 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}{own}>{escape(words)}</text>'
    )


def width_of(words: str, size: int = 12) -> float:
    """Units that words take, nearly."""
    return len(words) * LETTER * size / 12


def fitted(words: str, room: float) -> str:
    """Words cut to what `room` units hold."""
    most = max(int(room / LETTER), 2)
    return words if len(words) <= most else f"{words[: most - 1]}…"


def bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="2" fill="{colour}"/>'


def line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    """A thin line; a dashed one is a limit."""
    colour = LIGHT.limit if dashed else LIGHT.grid
    look = ' class="dashed" stroke-width="1.6" stroke-dasharray="6 4"' if dashed else ' class="grid"'
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{look}/>'


def area(points: Sequence[tuple[float, float]], colour: str) -> str:
    """A filled shape."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{path}" fill="{colour}"/>'


def legend(entries: Iterable[tuple[str, str]], x: float, y: float, frame: Frame = BROAD) -> tuple[list[str], float]:
    """Names with their colours, or with numbers that stand for them, in rows; and where the last row ends."""
    parts, place = [], x
    for name, mark in entries:
        room = width_of(name) + 30
        if place + room > frame.width - 10 and place > x:
            place, y = x, y + 20
        coloured = mark.startswith("#")
        parts += [bar(place, y - 9, 10, 10, mark) if coloured else text(place + 10, y, mark, anchor="end")]
        parts += [text(place + 15, y, name, kind="" if coloured else "faint")]
        place += room
    return parts, y


def ticks(top: float, count: int = 5) -> list[float]:
    """Round numbers from zero to below `top`."""
    rough = top / count
    scale: float = 10 ** floor(log10(rough))
    step = next(n * scale for n in (1, 2, 2.5, 5, 10) if n * scale >= rough)
    return [n * step for n in range(int(top / step) + 1)]


def moments(least: float, most: float, count: int = 5) -> list[float]:
    """Round times from `least` to `most` seconds: whole minutes and hours where there are such."""
    rough = (most - least) / count
    scale: float = 10 ** floor(log10(rough))
    sixties = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
    steps = sixties if 1 < rough < sixties[-1] else [n * scale for n in (1, 2, 2.5, 5, 10)]
    step = next(each for each in steps if each >= rough)
    return [n * step for n in range(ceil(least / step), floor(most / step) + 1)]
