"""Explain: a plan in words, tables and code, for a terminal or as plain text of at most 80 columns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner import snippet
from planner.device import BARE_CONTEXTS, Device, published_context
from planner.meanings import meaning
from planner.plan import Infeasible, Plan, Promise
from planner.prose import Prose
from planner.request import PICTURES, Fidelity, Request
from planner.techniques.base import Option
from planner.units import format_bytes, format_count, format_flops, format_seconds

WIDTH = 80


def as_text(plan: Plan) -> str:
    """The whole explanation without colour, in lines of at most 80 columns."""
    page = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    for part in renderables(plan):
        page.print(part)
    assert isinstance(page.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in page.file.getvalue().splitlines())


def renderables(plan: Plan) -> tuple[RenderableType, ...]:
    """The whole explanation, part by part, for rich."""
    return (
        Prose(verdict(plan), style="bold"),
        *_bullets("Switched on", map(_change, _changes(plan))),
        Text(),
        *_lines(() if _changes(plan) else (switched_on(plan),)),
        Prose(_baseline(plan)),
        *_heading("To do the same by hand"),
        Text(snippet.code(plan), style="cyan", no_wrap=True, overflow="ignore"),
        *memory(plan),
        *_bullets("Not chosen", (f"{r.what}: {r.reason}" for r in plan.rejected)),
        *_bullets("Notes", plan.notes),
        *_heading("Where this comes from"),
        *_lines(sources(plan)),
    )


def sources(plan: Plan) -> tuple[str, ...]:
    """Budget, card and search, in a sentence each."""
    return _budget(plan), device(plan.device), _search(plan)


def refusal(error: Infeasible) -> tuple[RenderableType, ...]:
    """What the leanest combination would need, for rich; the error's own sentence says the rest."""
    plan = error.leanest
    lead = Prose(f"The leanest combination.  {switched_on(plan)}", style="bold")
    return (lead, *memory(plan), Text(), *_lines([_budget(plan)]))


def verdict(plan: Plan) -> str:
    """The plan in one sentence."""
    needed, free = format_bytes(plan.promise.needed), format_bytes(abs(plan.headroom))
    subject = " ".join(filter(None, (plan.model, size(plan.request), f"on {plan.device.name}")))
    within = format_bytes(plan.budget)
    time = f"about {format_seconds(plan.promise.seconds)}"
    if plan.headroom < 0:
        return f"{subject} does not fit in {within}: needs {needed}, {free} over; {time}."
    return f"{subject} fits in {within}: needs {needed}, {free} stay free; {time}."


def size(request: Request) -> str:
    """What is generated, as far as the request says: `at 832×480, 81 frames, 4 prompts`."""
    shape = f"at {request.width}×{request.height}" if request.width and request.height else ""
    counts = ((request.frames or 0, "frames"), (request.prompts, "prompts"), (request.images, "images per prompt"))
    several = (f"{count} {name}" for count, name in counts if count > 1)
    return " ".join(filter(None, (", ".join(filter(None, (shape, *several))), _pictures(request))))


def _pictures(request: Request) -> str:
    """What the call is handed besides words: `with a start image and a mask`."""
    given = [what for field, what in PICTURES.items() if getattr(request, field)]
    *others, last = given or ("",)
    return f"with {' and '.join(filter(None, (', '.join(others), last)))}" if given else ""


def memory(plan: Plan) -> Iterator[RenderableType]:
    """The phases and their sums, as two tables."""
    yield from _heading("Memory and time, phase by phase")
    yield _phases(plan.promise)
    yield Text()
    yield _sums(plan)


def device(card: Device) -> str:
    """A card's figures and their source, in one sentence."""
    major, minor = card.compute_capability
    free = f", {format_bytes(card.free)} of it free" if card.free < card.total else ""
    figures = [f"{format_bytes(card.total)}{free}"]
    figures += [f"compute capability {major}.{minor}"] if major else []
    figures += [f"{rate(card.bandwidth)} memory", f"{format_flops(card.half_rate)} in half precision"]
    return f"Device: {card.name} with {', '.join(figures)}; figures: {card.source or 'as given'}."


def rate(bytes_per_second: float) -> str:
    """`448 GB/s`."""
    return f"{format_bytes(round(bytes_per_second))}/s"


def _phases(promise: Promise) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("phase", overflow="fold")
    for name in ("weights", "activations", "workspace", "peak", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    worst = max(promise.phases, key=lambda phase: phase.peak, default=None)
    for phase in promise.phases:
        parts = map(format_bytes, (phase.weights, phase.activations, phase.scratch, phase.peak))
        table.add_row(Text(phase.name), *parts, format_seconds(phase.seconds), style="bold" if phase is worst else "")
    table.add_row(Text("together"), "", "", "", "", format_seconds(promise.seconds), style="dim")
    return table


def _sums(plan: Plan) -> Table:
    promise = plan.promise
    worst = max(promise.phases, key=lambda phase: phase.peak, default=None)
    where = f"highest in {worst.name}; " if worst else ""
    rows = [
        ("allocated", promise.allocated, f"{where}torch.cuda.max_memory_allocated()"),
        ("context", promise.context, f"what CUDA holds outside torch, {_known(plan.device)}"),
        ("needed", promise.needed, "allocated and context"),
        ("reserved", promise.reserved, "torch's cache under the budget; torch.cuda.max_memory_reserved()"),
    ]
    if plan.headroom >= 0:
        rows.insert(3, ("headroom", plan.headroom, f"what stays free of {format_bytes(plan.budget)}"))
    if promise.host:
        rows.append(("host", promise.host, "in host memory: what waits or is worked on there"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, amount, words in rows:
        table.add_row(name, format_bytes(amount), Text(words))
    return table


def _known(device: Device) -> str:
    """Where the size of the context comes from."""
    if device.context != published_context(device.compute_capability):
        return "as measured"
    return "as published" if device.compute_capability in BARE_CONTEXTS else "the most that is published"


def switched_on(plan: Plan) -> str:
    """What the plan changes, in one sentence."""
    named = ", ".join(map(_named, _changes(plan)))
    return f"Switched on: {named}." if named else "Nothing has to be switched on."


def _changes(plan: Plan) -> tuple[Option, ...]:
    return tuple(option for option in plan.options if not option.neutral)


def _named(option: Option) -> str:
    """An option, and its fidelity where it is not exact."""
    return snippet.spoken(option) + ("" if option.fidelity == Fidelity.EXACT else f" ({option.fidelity.name.lower()})")


def _change(option: Option) -> str:
    """The same with what it does."""
    return ": ".join(filter(None, (_named(option), meaning(option))))


def _baseline(plan: Plan) -> str:
    needed, over = plan.baseline.needed, plan.baseline.needed - plan.budget
    time = f"about {format_seconds(plan.baseline.seconds)}"
    if plan.baseline_fits:
        return f"With nothing switched on: {format_bytes(needed)}, fits too; {time}."
    short = f", {format_bytes(over)} over" if over > 0 else " once torch's allocator has rounded and split"
    return f"With nothing switched on: {format_bytes(needed)}, does not fit{short}."


def _budget(plan: Plan) -> str:
    others = plan.device.total - plan.device.free
    left = f" ({format_bytes(others)} of the card are in use by others)" if others else ""
    return (
        f"Budget {plan.request.budget}: {format_bytes(plan.budget)}{left}, of which "
        f"{format_bytes(plan.promise.context)} are CUDA's context; torch may reserve {format_bytes(plan.capacity)}."
    )


def _search(plan: Plan) -> str:
    whole = f" of {format_count(plan.combinations)}" if plan.combinations else ""
    return (
        f"Search: {format_count(plan.explored)}{whole} combinations priced, the others ruled out; none that fits is "
        f"faster than {format_seconds(plan.bound)}.  Fidelity: up to {plan.request.fidelity.name.lower()}."
    )


def _heading(title: str) -> tuple[Text, Text]:
    return Text(), Text(title, style="bold underline")


def _lines(sentences: Iterable[str]) -> Iterator[Prose]:
    return map(Prose, sentences)


def _bullets(title: str, sentences: Iterable[str]) -> Iterator[RenderableType]:
    for place, sentence in enumerate(sentences):
        if not place:
            yield from _heading(title)
        hanging = Table.grid(padding=(0, 1))
        hanging.add_row("-", Prose(sentence))
        yield Padding(hanging, (0, 0, 0, 0))
