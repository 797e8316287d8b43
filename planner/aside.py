"""Aside: a component whose weights stay on the host and whose calls are worked out there, while the card waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod

from planner.events import Alloc, Aside, Call, Cast, Enter, Event, Exit, Free, Run
from planner.kernels import ITEM_SIZE, Attention, Conv, Kernel
from planner.program import Component, Program

SINGLE = ITEM_SIZE["float32"]
"""Bytes of a number there: convolutions in half precision are slow on CPUs, or not to be had."""


@dataclass(slots=True)
class Tally:
    """Running totals of what the host does; bytes as the card would hold them."""

    flops: int = 0
    held: int = 0
    most: int = 0
    """Largest `held`, with what a convolution reorders: input, weight and output once more (oneDNN's blocked layouts,
    328 MB seen and 319 counted for Stable Diffusion's decode at 256²)."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Buffers that live."""


def calls_of(program: Program, name: str) -> Iterator[str]:
    """The methods in which the pipeline calls a component: `decode`, or nothing for a call of the module itself."""
    for event in program.landmarks:
        if isinstance(event, (Call, Enter)) and event.module.partition(".")[0] == name:
            yield event.module.partition(".")[2]


def worked_aside(program: Program, name: str) -> Program:
    """The program with a component on the host: of its calls the card sees only what they take and return."""
    component = program.component(name)
    wide = _factor(program, component)
    course: list[Event] = []
    most, inside = 0, list[Event]()
    for event in program.events:
        if isinstance(event, Cast) and event.component == name:
            continue
        if inside or (isinstance(event, (Call, Enter)) and event.module.partition(".")[0] == name):
            inside.append(event)
            if _depth(inside):
                continue
            tally = _tally(program, tuple(inside))
            course += _seen(inside, tally)
            most, inside = max(most, tally.most), []
        else:
            course.append(event)
    copied = sum(component.weights) * (SINGLE // ITEM_SIZE[component.dtype]) if component.dtype != "float32" else 0
    away = replace(
        component, weights=(), anchored=(), units=(), stacks=(), tables=(), lasting=(),
        traits=component.traits | {"travels"},
    )  # fmt: skip
    return replace(
        program, components=tuple(away if c is component else c for c in program.components),
        waiting=program.waiting + sum(component.weights) + copied + most * wide,
    ).with_course(tuple(course))  # fmt: skip


def _depth(events: list[Event]) -> int:
    return sum(isinstance(event, Enter) - isinstance(event, Exit) for event in events)


def _factor(program: Program, component: Component) -> int:
    """Bytes there for each on the card: two where half precision has not been cast up before the call."""
    casts = any(isinstance(event, Cast) and event.component == component.name for event in program.events)
    return 1 if casts else SINGLE // ITEM_SIZE[component.dtype]


def _seen(inside: list[Event], tally: Tally) -> Iterator[Event]:
    """What is left of a call on the card: inputs go, the host works, outputs come."""
    head = inside[0]
    assert isinstance(head, (Call, Enter))
    freed = [event for event in inside if isinstance(event, Free)]
    own = {event.buffer for event in inside if isinstance(event, Alloc)}
    yield Enter(head.module, ())
    yield Aside(tally.flops, sum(tally.sizes.values()))
    yield from (Alloc(buffer, size) for buffer, size in tally.sizes.items())
    inner = {buffer for event in inside if isinstance(event, Call) for _, buffer in event.kept}
    yield from (event for event in freed if event.buffer not in own | inner)
    yield Exit()


def _tally(program: Program, events: tuple[Event, ...]) -> Tally:
    """What a stretch of events does; bodies called again are known."""
    tally = Tally()
    for event in events:
        match event:
            case Alloc(buffer, size):
                tally.sizes[buffer] = size
                tally.held += size
                tally.most = max(tally.most, tally.held)
            case Free(buffer):
                tally.held -= tally.sizes.pop(buffer, 0)
            case Run(index):
                flops, scratch = work(program.kernels[index])
                tally.flops += flops
                tally.most = max(tally.most, tally.held + scratch)
            case Call(recording, _, kept):
                _add(tally, _body(program, recording), kept)
    return tally


def _body(program: Program, recording: int) -> Tally:
    """The same of a body, for all programs of one table: their kernels differ by the backend of attention at most."""
    known = program.anew.get((_body, recording))
    if not isinstance(known, Tally):
        known = program.anew[_body, recording] = _tally(program, program.body(recording))
    return known


def _add(tally: Tally, body: Tally, kept: tuple[tuple[int, int], ...]) -> None:
    tally.flops += body.flops
    tally.most = max(tally.most, tally.held + body.most)
    for inner, buffer in kept:
        tally.sizes[buffer] = body.sizes[inner]
        tally.held += body.sizes[inner]


def work(kernel: Kernel) -> tuple[int, int]:
    """Floating-point operations of a kernel, and bytes it reorders beside its inputs and outputs."""
    if isinstance(kernel, Conv):
        numbers = sum(prod(shape) for shape in (kernel.input, kernel.weight, kernel.output))
        return 2 * prod(kernel.output) * prod(kernel.weight[1:]), numbers * ITEM_SIZE[kernel.dtype]
    if isinstance(kernel, Attention):
        scores = kernel.batch * kernel.heads * kernel.queries * kernel.keys
        return 2 * scores * (kernel.head_size + kernel.value_size), 0
    return kernel.flops, 0
