"""A plot of predicted against measured peaks as SVG, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

NAMESPACE = "http://www.w3.org/2000/svg"
SIDE, MARGIN = 560, 64
"""Pixels of the drawing and around it."""
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Paul Tol's bright scheme, distinct to colour-blind eyes as well."""

Point = tuple[float, float, str, str]
"""Measured and predicted gigabytes, group, and what the point is."""


def plot(points: Sequence[Point], title: str) -> str:
    """The drawing.  Points above the diagonal were promised too much."""
    least = 10 ** math.floor(math.log10(min(min(x, y) for x, y, _, _ in points)))
    most = 10 ** math.ceil(math.log10(max(max(x, y) for x, y, _, _ in points)))
    span = math.log10(most / least)

    def place(value: float) -> float:
        return SIDE * math.log10(value / least) / span

    groups = list(dict.fromkeys(group for _, _, group, _ in points))
    width = SIDE + 2 * MARGIN
    body = [
        f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {width + 140} {width}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width + 140}" height="{width}" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN / 2}" font-size="15">{escape(title)}</text>',
        f'<g transform="translate({MARGIN},{MARGIN + SIDE}) scale(1,-1)">',
        *_grid(least, most, place),
        f'<line x1="0" y1="0" x2="{SIDE}" y2="{SIDE}" stroke="#888"/>',
        *(
            f'<circle cx="{place(x):.1f}" cy="{place(y):.1f}" r="3.5" fill="{_colour(groups, group)}" '
            f'fill-opacity="0.6"><title>{escape(what)}</title></circle>'
            for x, y, group, what in points
        ),
        "</g>",
        *_words(least, most, place, groups),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def _ticks(least: float, most: float) -> Iterator[float]:
    value = least
    while value <= most:
        yield from (step * value for step in (1, 2, 5) if step * value <= most)
        value *= 10


def _grid(least: float, most: float, place: Callable[[float], float]) -> Iterator[str]:
    for tick in _ticks(least, most):
        at = place(tick)
        yield f'<path d="M{at:.1f} 0V{SIDE}M0 {at:.1f}H{SIDE}" stroke="#ddd" fill="none"/>'


def _words(least: float, most: float, place: Callable[[float], float], groups: Sequence[str]) -> Iterator[str]:
    bottom = MARGIN + SIDE
    for tick in _ticks(least, most):
        at = place(tick)
        yield f'<text x="{MARGIN + at:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
        yield f'<text x="{MARGIN - 8}" y="{bottom - at + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield f'<text x="{MARGIN + SIDE / 2}" y="{bottom + 42}" text-anchor="middle">measured, GB</text>'
    yield f'<text transform="translate(18,{MARGIN + SIDE / 2}) rotate(-90)" text-anchor="middle">predicted, GB</text>'
    for n, group in enumerate(groups):
        y = MARGIN + 20 * n
        yield f'<circle cx="{MARGIN + SIDE + 16}" cy="{y - 4}" r="5" fill="{_colour(groups, group)}"/>'
        yield f'<text x="{MARGIN + SIDE + 28}" y="{y}">{escape(group)}</text>'


def _colour(groups: Sequence[str], group: str) -> str:
    return COLOURS[groups.index(group) % len(COLOURS)]
