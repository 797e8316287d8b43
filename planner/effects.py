"""Effects: replaying a body that changes a list of its caller's, such as the cached features of a video autoencoder.

Such a body frees what the caller held and leaves new tensors in the caller's list.  Its events name those buffers by
where they stood among the arguments, so that the same change can be made to the arguments of a later call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.events import Alloc, Call, Event, Free
from planner.metas import tensors
from planner.recorder import Recorder
from planner.signature import Opaque, Shape, made_anew, mapped, shape_of


@dataclass(frozen=True, slots=True)
class Effect:
    """What a body did: its events, and arguments and outputs afterwards, tensors as shapes.

    Buffers born in it go by the serials of that time; `outer` gives the place among the arguments of each it freed.
    """

    events: tuple[Event, ...]
    outer: dict[int, int]
    after: Any
    outputs: Any


def effect_of(
    recorder: Recorder, events: Sequence[Event], before: Sequence[int], arguments: Any, out: Any
) -> Effect | None:
    """The effect of a body that just ended; None where it reaches further than its arguments.

    `before` holds the serials of the argument tensors as the body began.
    """
    born = {serial for event in events for serial in _births(event)}
    freed = {event.buffer for event in events if isinstance(event, Free)}
    outer = {serial: before.index(serial) for serial in freed - born if serial in before}
    used: set[int] = set()

    def describe(tensor: torch.Tensor) -> Shape:
        storage = tensor.untyped_storage()
        serial = recorder.serial_of(storage)
        place = before.index(serial) if serial >= 0 and serial in before else None
        if serial not in born and place is None:
            raise Opaque("a tensor from outside")
        used.add(serial)
        return shape_of(tensor, serial if serial in born else -1 - (place or 0))

    try:
        after, outputs = mapped((arguments, out), describe)
    except Opaque:
        return None
    if freed - born - outer.keys() or not born - freed <= used:
        return None
    return Effect(events=tuple(events), outer=outer, after=after, outputs=outputs)


def repeat(effect: Effect, recorder: Recorder, arguments: Any, mode: FakeTensorMode) -> Any:
    """Note the body again, change the arguments as it did, and return its outputs."""
    given = list(tensors(arguments))
    bases: dict[int, torch.Tensor] = {}

    def remake(shape: Shape) -> torch.Tensor:
        if shape.source >= 0:
            return made_anew(shape, bases, mode)
        argument = given[-1 - shape.source]
        if argument.size() == shape.size and argument.stride() == shape.stride:
            return argument
        return argument.as_strided(shape.size, shape.stride, shape.offset)

    with torch.utils._python_dispatch._disable_current_modes():
        after, outputs = mapped((effect.after, effect.outputs), remake)
    freed = {serial: given[place].untyped_storage() for serial, place in effect.outer.items()}
    recorder.repeat(effect.events, freed, {serial: base.untyped_storage() for serial, base in bases.items()})
    positional, named = arguments
    for old, new in (*zip(positional, after[0], strict=True), *((named[name], after[1][name]) for name in named)):
        if isinstance(old, list):
            old[:] = new
        elif isinstance(old, dict):
            old.update(new)
    return outputs


def _births(event: Event) -> tuple[int, ...]:
    match event:
        case Alloc(serial, _):
            return (serial,)
        case Call(_, _, kept):
            return tuple(serial for _, serial in kept)
    return ()
