"""Tables: cards, shipped pipelines and surveys, for a terminal of any width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from planner import explain, profiles, snippet
from planner.calibration import Calibration
from planner.cards import catalogue
from planner.census import Count
from planner.device import Device
from planner.explain import rate
from planner.plan import Plan
from planner.profiles import PipelineProfile
from planner.program import ITEM_SIZE
from planner.surveys import Anatomy, Frontier, Largest, Row
from planner.units import format_bytes, format_seconds

SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
HOLDERS = 14
"""Holders shown one by one; the rest are added up."""
WIDE, NARROW = 100, 80
"""Columns from which a hub id needs no second line, and below which sizes and dtypes are left out."""


def devices_table(devices: Iterable[Device]) -> Table:
    """The cards of a machine."""
    table = _table(("card", ""), ("memory", "r"), ("free", "r"), ("capability", "r"), fold="card")
    for place, device in enumerate(devices):
        link = f"PCIe {device.pcie[0]}.0, {device.pcie[1]} lanes" if all(device.pcie) else ""
        more = ", ".join(filter(None, (link, "MIG slice" * device.mig, f"driver {device.driver}")))
        table.add_row(
            Text(f"{place}: {device.name}\n   {device.uuid}\n   {more}"),
            format_bytes(device.total),
            format_bytes(device.free),
            _capability(device),
        )
    return table


def calibration_table(made: Calibration) -> Table:
    """What was measured of a card."""
    table = _table(("measured", ""), ("", "r"))
    for name in ("pinned", "pageable", "return"):
        if measured := getattr(made, f"{name}_rate"):
            table.add_row({"return": "back to pageable memory"}.get(name, f"from {name} memory"), rate(measured))
    for name in ("products", "singles", "convolutions", "attentions", "traffic"):
        what = {"singles": "fp32 products", "traffic": "elementwise kernels"}.get(name, name)
        table.add_row(what, f"{getattr(made, name):.2f} of expected")
    table.add_row("host, per operation", f"{made.issue * 1e6:.1f} µs")
    if made.context:
        table.add_row("CUDA context", format_bytes(made.context))
    return table


def cards_table() -> Table:
    """The cards that can be planned for by name."""
    table = _table(("--gpu", ""), ("memory", "r"), ("capability", "r"), ("bandwidth", "r"), ("half precision", "r"))
    for known in catalogue():
        device = known.device
        half = f"{device.half_rate / 1e12:.3g} TFLOP/s"
        table.add_row(known.slug, format_bytes(device.total), _capability(device), rate(device.bandwidth), half)
    return table


def pipelines_table(width: int) -> Table:
    """The shipped pipelines by family, on a terminal of `width` columns."""
    figures = (("size", ""), ("dtype", "")) if width >= NARROW else ()
    table = _table(("name", ""), *figures, ("weights", "r"), ("hub id", ""), fold="hub id")
    for family, members in groupby(by_family(), key=lambda profile: profile.family):
        table.add_section()
        table.add_row(Text(family, style="bold"))
        for profile in members:
            hub_id = profile.hub_id if width >= WIDE else profile.hub_id.replace("/", "/\n")
            shown = (_size(profile), SHORT[profile.dtype]) if figures else ()
            table.add_row(profile.name, *shown, format_bytes(weights(profile)), Text(hub_id))
    return table


def by_family() -> list[PipelineProfile]:
    """The shipped pipelines, sorted."""
    found = map(profiles.find, profiles.names())
    return sorted(found, key=lambda profile: (profile.family.casefold(), profile.name))


def weights(profile: PipelineProfile) -> int:
    """Bytes of the parameters of all components that are loaded, each in its dtype."""
    return sum(part.parameters * ITEM_SIZE[part.dtype] for part in profile.loaded if part.parameters)


def _size(profile: PipelineProfile) -> str:
    wanted = profile.defaults
    return "×".join(str(figure) for figure in (wanted.width, wanted.height, wanted.frames) if figure)


def _capability(device: Device) -> str:
    major, minor = device.compute_capability
    return f"{major}.{minor}" if major else "–"


def _table(*columns: tuple[str, str], fold: str = "") -> Table:
    """An empty table; the column `fold` gives way on narrow terminals."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, side in columns:
        table.add_column(name, justify="right" if side else "left", no_wrap=name != fold, overflow="fold")
    return table


def comparison(rows: Sequence[Row], width: int) -> Iterator[RenderableType]:
    """Cards against what fits on them."""
    if not rows:
        return
    priced = any(row.price is not None for row in rows)
    columns = [("card", ""), ("budget", "r"), ("needs", "r"), ("time", "r"), *([("each", "r")] if priced else [])]
    table = _table(*columns, ("with", ""), fold="with")
    for row in rows:
        name = row.device.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
        lead = (name if width >= WIDE else short(name, 22), format_bytes(row.budget))
        table.add_row(*lead, *_outcome(row, priced), style="" if row.plan else "dim")
    subject = next((f"{row.plan.model} {explain.size(row.plan.request)}" for row in rows if row.plan), "")
    if subject:
        yield Text(f"{subject.strip()}, card by card.", style="bold")
        yield Text()
    yield table


def _outcome(row: Row, priced: bool) -> Iterator[RenderableType]:
    price = [f"{row.price:.3g}" if row.price is not None else ""] if priced else []
    if row.plan:
        words = ", ".join(snippet.spoken(option) for option in row.plan.options if not option.neutral)
        yield from (format_bytes(row.plan.promise.needed), format_seconds(row.plan.promise.seconds), *price)
        yield Text(words or "nothing")
    elif row.shortage:
        missing = row.shortage
        yield from (format_bytes(missing.smallest_budget), "–", *price)
        yield Text(f"does not fit: {format_bytes(missing.over)} over in {missing.phase}")


def short(name: str, most: int) -> str:
    """A name cut to `most` columns."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def frontier(found: Frontier, width: int) -> Iterator[RenderableType]:
    """Budgets against time, with a bar for the time."""
    yield Text(f"{found.model} {explain.size(found.request)} at the speed of {found.device.name}.", style="bold")
    yield Text()
    table = _table(("budget", "r"), ("time", "r"), ("", ""), ("with", ""), fold="with")
    slowest = max(point.seconds for point in found.points) if found.points else 1
    for point in found.points:
        words = ", ".join(snippet.spoken(option) for option in point.options if not option.neutral)
        bar = "█" * max(round(point.seconds / slowest * (20 if width >= WIDE else 10)), 1)
        fits = point.budget <= found.device.total
        row = (format_bytes(point.budget), format_seconds(point.seconds), Text(bar, style="cyan"))
        table.add_row(*row, Text(words or "nothing"), style="" if fits else "dim")
    yield table
    yield Text()
    yield Text(
        f"With nothing switched on: {format_bytes(found.bare.budget)}, {format_seconds(found.bare.seconds)}.  The card "
        f"has {format_bytes(found.device.total)}."
    )


def largest(found: Largest) -> Iterator[RenderableType]:
    """The most that fits, what stops the next step, and the plan in short."""
    plan = found.plan
    what = {"size": "image", "batch": "batch", "frames": "video"}[found.kind]
    lead = f"The largest {what} of {plan.model} within {format_bytes(plan.budget)} on {plan.device.name} is"
    yield Text(f"{lead} {explain.size(plan.request).removeprefix('at ')}.", style="bold")
    if found.next and found.shortage:
        beyond = explain.size(found.next).removeprefix("at ")
        missing = found.shortage
        yield Text(f"{beyond} would be {format_bytes(missing.over)} over in {missing.phase}.")
    else:
        yield Text("The search ended there; no limit was met.")
    yield Text()
    yield Text(explain.switched_on(plan))
    yield from explain.memory(plan)


def anatomy(found: Anatomy, phase: str | None, width: int) -> Iterator[RenderableType]:
    """Who holds the memory at the peak of a phase, the largest first."""
    count = found.count(phase)
    plan = found.plan
    yield Text(
        f"{plan.model} {explain.size(plan.request)} as planned on {plan.device.name}: {format_bytes(count.peak)} "
        f"at the peak of {count.phase}, while {count.at or 'the pipeline'} runs.",
        style="bold",
    )
    yield Text()
    yield from _sums_by_kind(count, width)
    yield Text()
    table = _table(("bytes", "r"), ("share", "r"), ("what", ""), ("where", ""), ("made by", ""), fold="where")
    shown = count.holdings[:HOLDERS]
    for holding in shown:
        number = f" ×{holding.tensors}" if holding.tensors > 1 else ""
        where = ".".join(filter(None, (holding.component, holding.block)))
        share = f"{holding.bytes / count.peak:.0%}"
        table.add_row(format_bytes(holding.bytes), share, holding.kind, Text(where), Text(f"{holding.op}{number}"))
    rest = count.holdings[HOLDERS:]
    if rest:
        size = sum(holding.bytes for holding in rest)
        table.add_row(format_bytes(size), f"{size / count.peak:.0%}", f"{len(rest)} more", style="dim")
    yield table
    yield Text()
    others = ", ".join(f"{c.phase} {format_bytes(c.peak)}" for c in found.counts if c is not count)
    yield Text(f"Other phases: {others}.")


def _sums_by_kind(count: Count, width: int) -> Iterator[RenderableType]:
    sums: dict[str, int] = {}
    for holding in count.holdings:
        sums[holding.kind] = sums.get(holding.kind, 0) + holding.bytes
    table = _table(("", ""), ("bytes", "r"), ("share", "r"), ("", ""))
    for kind, size in sorted(sums.items(), key=lambda pair: -pair[1]):
        bar = "█" * round(size / count.peak * (40 if width >= WIDE else 24))
        table.add_row(kind, format_bytes(size), f"{size / count.peak:.0%}", Text(bar or "▏", style="cyan"))
    yield table


def ran(plan: Plan, seen: Mapping[str, Any], files: Sequence[object]) -> Iterator[RenderableType]:
    """A run beside its promise."""
    table = _table(("", ""), ("promised", "r"), ("seen", "r"))
    for name in ("allocated", "reserved"):
        if seen[name] is not None:
            table.add_row(name, format_bytes(getattr(plan.promise, name)), format_bytes(seen[name]))
    table.add_row("time", format_seconds(plan.promise.seconds), format_seconds(seen["seconds"]))
    yield Text()
    yield table
    if seen["allocated"] is None:
        yield Text(f"It ran on the CPU; what was promised is for {plan.device.name}.", style="dim")
    yield Text()
    yield Text(f"Wrote {', '.join(map(str, files))}.")
