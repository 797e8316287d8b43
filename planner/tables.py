"""Tables: cards, shipped pipelines and surveys, for a terminal of any width."""

from __future__ import annotations

from collections import Counter
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
from planner.kernels import ITEM_SIZE
from planner.minimum import Smallest
from planner.plan import Plan
from planner.profiles import PipelineProfile
from planner.prose import Dotted, Prose
from planner.surveys import Anatomy, Frontier, Largest, Row
from planner.techniques.base import Option
from planner.units import format_bytes, format_flops, format_seconds

SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
HOLDERS = 14
LEAST = 0.005
"""Holders shown one by one, and the share of the peak each has at least; the rest are added up."""
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
    ways = {"return": "back to pageable memory", "pinned_return": "back to pinned memory, which no plan does"}
    for name in ("pinned", "pageable", "return", "pinned_return"):
        if measured := getattr(made, f"{name}_rate"):
            table.add_row(ways.get(name, f"from {name} memory"), rate(measured))
    for name in ("products", "singles", "convolutions", "attentions", "traffic"):
        what = {"singles": "fp32 products", "traffic": "elementwise kernels"}.get(name, name)
        table.add_row(what, f"{getattr(made, name):.2f} of expected")
    table.add_row("host, per operation", f"{made.issue * 1e6:.1f} µs")
    if made.context:
        table.add_row("CUDA context", format_bytes(made.context))
    beyond = [each for each in made.scratch if each.beyond]
    if made.scratch:
        kinds = len(made.scratch)
        table.add_row("scratch of convolutions", f"as foreseen in {kinds - len(beyond)} of {kinds} kinds")
    for each in beyond:
        table.add_row(f"  {each.kind}", f"{format_bytes(each.measured)}, not {format_bytes(each.foreseen)}")
    return table


def cards_table() -> Table:
    """The cards that can be planned for by name."""
    table = _table(("--gpu", ""), ("memory", "r"), ("capability", "r"), ("bandwidth", "r"), ("half precision", "r"))
    for known in catalogue():
        device = known.device
        half = format_flops(device.half_rate)
        table.add_row(known.slug, format_bytes(device.total), _capability(device), rate(device.bandwidth), half)
    return table


def pipelines(width: int) -> Iterator[RenderableType]:
    """The shipped pipelines by family, on a terminal of `width` columns; a hub id has its own line where need be."""
    found = by_family()
    name, size = max(len(profile.name) for profile in found), max(len(_size(profile)) for profile in found)
    figures = f"{{:<{size}}}  {{:<5}}  " if width >= NARROW else ""
    line = f"{{:<{name}}}  {figures}{{:>8}}{'  {}' if width >= WIDE else ''}"
    heads = (*(("size", "dtype") if figures else ()), "weights", "hub id")
    yield Text(line.format("name", *heads), style="bold")
    for family, members in groupby(found, key=lambda profile: profile.family):
        yield Text(family, style="bold")
        for profile in members:
            shown = (_size(profile), SHORT[profile.dtype]) if figures else ()
            yield Text(line.format(profile.name, *shown, format_bytes(weights(profile)), profile.hub_id))
            if width < WIDE:
                yield Text(f"  {profile.hub_id}", style="dim", overflow="fold")


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
    """Cards against what fits on them; on narrow terminals the combinations are numbered and named below."""
    if not rows:
        return
    if subject := next((f"{row.plan.model} {explain.size(row.plan.request)}" for row in rows if row.plan), ""):
        yield Prose(f"{subject.strip()}, card by card.", style="bold")
        yield Text()
    priced = any(row.price is not None for row in rows)
    columns = [("card", ""), ("budget", "r"), ("needs", "r"), ("time", "r"), *([("each", "r")] if priced else [])]
    table, numbers = _table(*columns, ("with", ""), fold="with"), dict[str, int]()
    names = _distinct([row.device for row in rows])
    for row in rows:
        words = _changes(row.plan.options) if row.plan else ""
        number = str(numbers.setdefault(words, len(numbers) + 1)) if words else ""
        name = names[row.device] if width >= WIDE else short(names[row.device], 27)
        outcome = _outcome(row, words if width >= WIDE else number, priced)
        table.add_row(name, format_bytes(row.budget), *outcome, style="" if row.plan else "dim")
    yield table
    if width < WIDE and numbers:
        yield Text()
        legend = _table(("", "r"), ("", ""), fold="")
        legend.show_header = False
        for words, place in numbers.items():
            legend.add_row(str(place), Prose(words))
        yield legend


def _changes(options: Sequence[Option]) -> str:
    """What is switched on, in words."""
    return ", ".join(snippet.spoken(option) for option in options if not option.neutral) or "nothing switched on"


def _distinct(devices: Sequence[Device]) -> dict[Device, str]:
    """Names as people say them, with the memory where two cards of one name have not as much."""
    plain = {device: device.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for device in devices}
    count = Counter(plain.values())
    return {
        device: f"{name}, {format_bytes(device.total)}" if count[name] > 1 else name for device, name in plain.items()
    }


def _outcome(row: Row, words: str, priced: bool) -> Iterator[RenderableType]:
    price: list[RenderableType] = [f"{row.price:#.3g}" if row.price is not None else ""] if priced else []
    if row.plan:
        yield from (format_bytes(row.plan.promise.needed), format_seconds(row.plan.promise.seconds), *price, words)
    elif row.shortage:
        missing = row.shortage
        over = f"{format_bytes(missing.over)} over in {missing.phase}"
        yield from (format_bytes(missing.smallest_budget), "–", *price, Prose(over))
    else:
        yield from ("–", "–", *price, Prose(row.refusal))


def short(name: str, most: int) -> str:
    """A name cut to `most` columns."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def frontier(found: Frontier, width: int) -> Iterator[RenderableType]:
    """Budgets against time, with a bar for the time."""
    yield Prose(f"{found.model} {explain.size(found.request)} at the speed of {found.device.name}.", style="bold")
    yield Text()
    table = _table(("budget", "r"), ("time", "r"), ("", ""), ("with", ""), fold="with")
    slowest = max(point.seconds for point in found.points) if found.points else 1
    for point in found.points:
        bar = "█" * max(round(point.seconds / slowest * (20 if width >= WIDE else 10)), 1)
        fits = point.budget <= found.device.total
        row = (format_bytes(point.budget), format_seconds(point.seconds), Text(bar, style="cyan"))
        table.add_row(*row, Prose(_changes(point.options)), style="" if fits else "dim")
    yield table
    yield Text()
    yield Prose(
        f"With nothing switched on: {format_bytes(found.bare.budget)}, {format_seconds(found.bare.seconds)}.  The card "
        f"has {format_bytes(found.device.total)}."
    )


def largest(found: Largest) -> Iterator[RenderableType]:
    """The most that fits, what stops the next step, and the plan in short."""
    plan = found.plan
    what = {"size": "image", "batch": "batch", "frames": "video"}[found.kind]
    lead = f"The largest {what} of {plan.model} within {format_bytes(plan.budget)} on {plan.device.name} is"
    yield Prose(f"{lead} {explain.size(plan.request).removeprefix('at ')}.", style="bold")
    if found.next and found.shortage:
        beyond = explain.size(found.next).removeprefix("at ")
        missing = found.shortage
        yield Prose(f"{beyond} would be {format_bytes(missing.over)} over in {missing.phase}.")
    else:
        yield Text("The search ended there; no limit was met.")
    yield Text()
    yield Prose(explain.switched_on(plan))
    yield from explain.memory(plan)


def smallest(found: Smallest) -> Iterator[RenderableType]:
    """The least budget, what is over within less, and the plan in short."""
    plan = found.plan
    lead = f"The smallest budget of {plan.model} {explain.size(plan.request)} on {plan.device.name}"
    yield Prose(f"{lead} is {format_bytes(plan.budget)}.", style="bold")
    yield Prose(f"Nothing fits {format_bytes(found.below)}: {found.phase} is over.")
    yield Text()
    yield Prose(explain.switched_on(plan))
    yield from explain.memory(plan)


def anatomy(found: Anatomy, phase: str | None, width: int) -> Iterator[RenderableType]:
    """Who holds the memory at the peak of a phase, the largest first."""
    count = found.count(phase)
    plan = found.plan
    yield Prose(
        f"{plan.model} {explain.size(plan.request)} as planned on {plan.device.name}: {format_bytes(count.peak)} "
        f"at the peak of {count.phase}, while {count.at or 'the pipeline'} runs.",
        style="bold",
    )
    yield Text()
    yield from _sums_by_kind(count, width)
    yield Text()
    table = _table(("bytes", "r"), ("share", "r"), ("what", ""), ("where", ""), ("made by", ""), fold="where")
    shown = [holding for holding in count.holdings[:HOLDERS] if holding.bytes >= count.peak * LEAST]
    for holding in shown:
        made = f"{holding.op} ×{holding.tensors}" if holding.tensors > 1 else holding.op
        where = ".".join(filter(None, (holding.component, holding.block)))
        size = format_bytes(holding.bytes)
        table.add_row(size, count.share(holding.bytes), holding.kind, Dotted(where), Text(made))
    rest = count.holdings[len(shown) :]
    if rest:
        others = sum(holding.bytes for holding in rest)
        table.add_row(format_bytes(others), count.share(others), f"{len(rest)} more", style="dim")
    yield table
    yield Text()
    if phases := ", ".join(f"{c.phase} {format_bytes(c.peak)}" for c in found.counts if c is not count):
        yield Prose(f"Other phases: {phases}.")


def _sums_by_kind(count: Count, width: int) -> Iterator[RenderableType]:
    sums: dict[str, int] = {}
    for holding in count.holdings:
        sums[holding.kind] = sums.get(holding.kind, 0) + holding.bytes
    table = _table(("", ""), ("bytes", "r"), ("share", "r"), ("", ""))
    for kind, size in sorted(sums.items(), key=lambda pair: -pair[1]):
        bar = "█" * round(size / count.peak * (40 if width >= WIDE else 24))
        table.add_row(kind, format_bytes(size), count.share(size), Text(bar or "▏", style="cyan"))
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
