"""Pictures: a plan's memory over time, what budgets buy, what each technique saves and costs; as SVG."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any, NamedTuple

from planner import drawing as d
from planner.census import Holding
from planner.plan import Plan
from planner.snippet import spoken
from planner.surveys import Anatomy, Frontier
from planner.units import format_bytes, format_seconds

LEAST, SHORT = 0.16, 0.64
"""Shares of the time that the shortest phase counts for at least, to be seen, and all short ones together at most."""
TOP, BOTTOM = 56.0, 296.0
"""Edges of the plot of memory over time."""
SPECK = 0.002
"""Share of the weights below which a component has no colour of its own: nobody would see it."""
NOTES = 24
"""Phases named below the picture at most, for want of room above it."""


Formats = Callable[[Any], str]


class Column(NamedTuple):
    """A stretch of one phase: its share of the phase's time, and bytes by layer from the bottom up."""

    share: float
    layers: tuple[int, ...]


class Panel(NamedTuple):
    """One phase."""

    name: str
    seconds: float
    columns: tuple[Column, ...]


class Layer(NamedTuple):
    """One colour of the stack."""

    name: str
    colour: str


def memory(plan: Plan, anatomy: Anatomy | None = None, frame: d.Frame = d.BROAD) -> str:
    """Memory over time, phase by phase, against the budget; finer, and by component, where the anatomy is known.

    Phases are as wide as their time, but never too narrow to see; one too narrow for its name has a number instead.
    """
    layers, panels = _fine(anatomy) if anatomy else _coarse(plan)
    held = max((sum(column.layers) for panel in panels for column in panel.columns), default=1)
    top = max(held, plan.budget) * 1.08
    stacks, notes = _panels(layers, panels, top, frame)
    limit, left = _level(plan.budget, top), frame.left
    parts = [*_bytes_axis(top, frame), *stacks, d.line(left, limit, frame.right, limit, dashed=True)]
    parts += [d.text(left + 6, limit - 5, f"budget {format_bytes(plan.budget)}", kind="limit")]
    named, end = d.legend(((layer.name, layer.colour) for layer in layers), left, BOTTOM + 28, frame)
    numbered, end = d.legend(notes, left, end + 22, frame) if notes else ([], end)
    parts += [*named, *numbered]
    parts += [d.text(left, end + 22, "As wide as its time; short phases are widened.", kind="faint")]
    return d.picture(end + 34, parts, f"Memory of {plan.model} over time", frame)


def _coarse(plan: Plan) -> tuple[list[Layer], list[Panel]]:
    """From the promise alone: each phase as high as its peak."""
    layers = [
        Layer("CUDA context", d.CONTEXT), Layer("weights", d.PALETTE[0]), Layer("activations", d.ACTIVATIONS),
        Layer("workspace", d.WORKSPACE),
    ]  # fmt: skip
    context = plan.promise.context
    panels = [
        Panel(p.name, p.seconds, (Column(1.0, (context, p.weights, p.activations, p.scratch)),))
        for p in plan.promise.phases
        if p.seconds > 0
    ]
    return layers, panels


def _fine(anatomy: Anatomy) -> tuple[list[Layer], list[Panel]]:
    """From the timeline, weights divided as they are at each phase's peak."""
    held = {count.phase: _weights(count.holdings) for count in anatomy.counts}
    names = list(dict.fromkeys(name for parts in held.values() for name in parts))
    splits = _splits(anatomy.plan)
    layers = [Layer("CUDA context", d.CONTEXT)]
    rank = sorted(names, key=lambda name: -max(parts.get(name, 0) for parts in held.values()))
    layers += [Layer(f"{name} weights", d.PALETTE[rank.index(name) % len(d.PALETTE)]) for name in names]
    layers += [Layer("activations", d.ACTIVATIONS), Layer("workspace", d.WORKSPACE)]
    panels = []
    for stretch in anatomy.timeline:
        parts = held.get(stretch.phase, {})
        whole = sum(parts.values()) or 1
        columns = tuple(
            Column(
                moment.seconds / (stretch.seconds or 1),
                (
                    anatomy.plan.promise.context,
                    *(moment.weights * parts.get(name, 0) // whole for name in names),
                    moment.activations,
                    moment.workspace,
                ),
            )
            for moment in stretch.moments
        )
        panels.append(Panel(stretch.phase, stretch.seconds * splits, columns))
    return layers, panels


def _weights(holdings: Sequence[Holding]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for holding in holdings:
        if holding.kind == "weights":
            sums[holding.component] = sums.get(holding.component, 0) + holding.bytes
    return {name: held for name, held in sums.items() if held >= SPECK * sum(sums.values())}


def _splits(plan: Plan) -> int:
    """Calls the request is split into."""
    split = plan.option("split")
    return int(split.value) if split and isinstance(split.value, int) else 1


def _level(amount: float, top: float) -> float:
    """Where an amount of bytes is drawn on an axis that ends with `top`."""
    return BOTTOM - amount / top * (BOTTOM - TOP)


def _bytes_axis(top: float, frame: d.Frame) -> Iterator[str]:
    for tick in d.ticks(top):
        y = _level(tick, top)
        yield d.line(frame.left, y, frame.right, y)
        yield d.text(frame.left - 8, y + 4, f"{tick / 1e9:.3g} GB" if tick else "0", anchor="end", kind="faint")


def _panels(
    layers: Sequence[Layer], panels: Sequence[Panel], top: float, frame: d.Frame
) -> tuple[list[str], list[tuple[str, str]]]:
    """The stacks with their names, and names with the numbers that stand for them where they have no room."""
    whole = sum(panel.seconds for panel in panels) or 1
    least = min(LEAST, SHORT / max(len(panels), 1))
    shares = [max(panel.seconds / whole, least) for panel in panels]
    parts, notes, left = list[str](), list[tuple[str, str]](), float(frame.left)
    for panel, share in zip(panels, shares, strict=True):
        width = share / sum(shares) * (frame.right - frame.left)
        parts += _stack(layers, panel, left, width - min(2.0, width / 4), top)
        middle, time, name = left + width / 2, format_seconds(panel.seconds), panel.name
        if d.width_of(name) > width - 4:
            name = str(len(notes) + 1)
            notes.append((f"{panel.name}, {time}", name))
        if d.width_of(name) <= width:
            parts.append(d.text(middle, 28, name, anchor="middle"))
        if d.width_of(time) <= width - 4:
            parts.append(d.text(middle, 44, time, anchor="middle", kind="faint"))
        left += width
    more = [(f"… and {len(notes) - NOTES} more", "")] if len(notes) > NOTES else []
    return parts, notes[:NOTES] + more


def _stack(layers: Sequence[Layer], panel: Panel, left: float, width: float, top: float) -> Iterator[str]:
    """Areas one on top of the other, from the bottom up, each drawn down to the axis and covered by the one below."""
    for depth in range(len(layers) - 1, -1, -1):
        points, x = [(left, BOTTOM)], left
        for column in panel.columns:
            y = _level(sum(column.layers[: depth + 1]), top)
            points += [(x, y), (x + column.share * width, y)]
            x += column.share * width
        if any(column.layers[depth] for column in panel.columns):
            yield d.area([*points, (x, BOTTOM)], layers[depth].colour)


def frontier(found: Frontier, frame: d.Frame = d.BROAD) -> str:
    """Seconds against budget as stairs, the combinations numbered below."""
    points, (_, left, right) = found.points, frame
    most, slow = max(p.budget for p in points) * 1.12, max(p.seconds for p in points)
    fast = min(p.seconds for p in points)
    floor_, ceiling = max(fast - (slow - fast) * 0.3 - slow * 0.02, 0), slow + (slow - fast) * 0.15 + slow * 0.01
    bottom, height = 280.0, 230.0

    def x(budget: float) -> float:
        return left + budget / most * (right - left)

    def y(seconds: float) -> float:
        return bottom - (seconds - floor_) / (ceiling - floor_) * height

    parts = [d.text(left, 20, f"Time against budget, {found.model}", size=14)]
    parts += [d.text(left, 38, f"at the speed of {found.device.name}", kind="faint")]
    for tick in d.ticks(most, 8 if frame == d.BROAD else 4):
        parts += [d.text(x(tick), bottom + 18, f"{tick / 1e9:.3g} GB", anchor="middle", kind="faint")]
    for seconds in d.moments(floor_, ceiling):
        parts += [d.line(left, y(seconds), right, y(seconds))]
        parts += [d.text(left - 6, y(seconds) + 4, _even(seconds), anchor="end", kind="faint", size=10)]
    if found.device.total <= most:
        own = x(found.device.total)
        parts += [d.line(own, bottom - height, own, bottom, dashed=True)]
        words, after = f"this card, {format_bytes(found.device.total)}", own < (left + right) / 2
        start = own + (6 if after else -6)
        parts += [d.text(start, bottom - height + 12, words, anchor="start" if after else "end", kind="limit")]
    parts += list(_stairs([(x(p.budget), y(p.seconds)) for p in points], right))
    listed, end = _listed(found, bottom + 48, frame)
    return d.picture(end, [*parts, *listed], f"Time of {found.model} against budget", frame)


def _even(seconds: float) -> str:
    """A round duration without the zeros that say how well others are known: `50 s`, `2.5 s`."""
    return re.sub(r"(\.\d*?)0+ ", lambda found: f"{found[1].rstrip('.')} ", format_seconds(seconds))


def _listed(found: Frontier, y: float, frame: d.Frame) -> tuple[list[str], float]:
    """What each numbered point switches on, and where the list ends."""
    parts, beside = list[str](), frame == d.BROAD
    margin = frame.left if beside else 10
    start = margin + (194 if beside else 24)
    for number, point in enumerate(found.points, start=1):
        words = ", ".join(spoken(option) for option in point.options if not option.neutral) or "nothing switched on"
        lead = f"{format_bytes(point.budget)}, {format_seconds(point.seconds)}"
        parts += [d.text(margin, y, str(number)), d.text(margin + 24, y, lead)]
        y += 0 if beside else 17
        for line in wrap(words, int((frame.right - start) / d.LETTER), break_on_hyphens=False):
            parts += [d.text(start, y, line, kind="faint")]
            y += 17
        y += 4
    return parts, y


def _stairs(points: Sequence[tuple[float, float]], right: float) -> Iterator[str]:
    path = [points[0]]
    for (_, before), (x, y) in pairwise(points):
        path += [(x, before), (x, y)]
    path += [(float(right), path[-1][1])]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    yield f'<polyline points="{line}" fill="none" stroke="{d.ACTIVATIONS}" stroke-width="2.4"/>'
    above = -100.0
    for number, (x, y) in enumerate(points, start=1):
        yield f'<circle class="rim" cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{d.PALETTE[0]}" stroke="{d.LIGHT.paper}"/>'
        if x - above > 14:  # numbers of points that touch would cover each other
            yield d.text(x + 4, y - 9, str(number))  # beside the riser, above the tread
            above = x


class Columns(NamedTuple):
    """Where the changes of a plan are drawn: their names, two bars of at most so many units, and the rows' distance."""

    name: float
    memory: float
    wide: float
    time: float
    narrow: float
    row: float
    below: float
    """Units by which bars are below their name."""


def techniques(anatomy: Anatomy, frame: d.Frame = d.BROAD) -> str:
    """What each change of the plan saves and costs, one on top of the other, from nothing switched on."""
    plan, steps = anatomy.plan, anatomy.steps
    most, slow = max(plan.budget, *(s.budget for s in steps)), max(s.seconds for s in steps) or 1
    at = Columns(16, 258, 140, 540, 96, 26, 0) if frame == d.BROAD else Columns(6, 6, 58, 200, 36, 46, 20)
    limit = at.memory + at.wide * plan.budget / most
    parts = [d.text(at.name, 26, "What each change saves and costs", size=14)]
    parts += [d.text(at.memory, 48, "memory needed", kind="faint"), d.text(at.time, 48, "time", kind="faint")]
    y = 60.0
    for number, step in enumerate(steps):
        before = steps[max(number - 1, 0)]
        room = frame.right - at.name if at.below else at.memory - at.name - 8
        parts += [d.text(at.name, y + 14, d.fitted(step.what, room))]
        size, seconds, bars = at.wide * step.budget / most, at.narrow * step.seconds / slow, y + at.below
        parts += [
            d.bar(at.memory, bars + 2, size, 15, d.PALETTE[0]),
            d.bar(at.time, bars + 2, seconds, 15, d.ACTIVATIONS),
        ]
        parts += [d.text(at.memory + at.wide + 8, bars + 14, _said(step.budget, before.budget, format_bytes))]
        parts += [d.text(at.time + at.narrow + 8, bars + 14, _said(step.seconds, before.seconds, format_seconds))]
        parts += [d.line(limit, bars - 3, limit, bars + 22, dashed=True)]
        y += at.row
    parts += [d.text(max(limit, 70), y + 14, f"budget {format_bytes(plan.budget)}", anchor="middle", kind="limit")]
    return d.picture(y + 26, parts, f"What each change of the plan for {plan.model} saves and costs", frame)


def _said(value: float, before: float, form: Formats) -> str:
    """A figure and how it differs from the one before."""
    change = value - before
    if abs(change) < abs(before) / 1000:
        return form(value)
    return f"{form(value)} ({'+' if change > 0 else '−'}{form(abs(change))})"
