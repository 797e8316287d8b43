"""Streaming: a component partly on the card, the rest fetched from pinned host memory while it computes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed, BadRequest
from planner.events import Cast
from planner.program import Component, Program, Variant
from planner.request import Request
from planner.streamable import held, units_of
from planner.streaming import aligned, block, differs, spread, stream, streamable, successor
from planner.techniques.base import Option, Outline, Scope, Undo
from planner.techniques.entrance import on_call
from planner.techniques.live import default_device, modules
from planner.techniques.mover import Cargo, Mover, moved, own_stream, room

STEPS = 32
"""Shares of a denoiser between nothing and all of it that are offered at most: each about 3 % of its weights."""
WORTH = 0.01
"""Part of all weights below which a component is not worth a choice of its own."""
IMPORT = "from planner.techniques.streaming import move_units"
"""diffusers moves all of a component or none; this line is ours."""
_VALUE = re.compile(r"(\d+)/(\d+)(?:-until-(\w+))?")


@dataclass(frozen=True, slots=True)
class Streaming:
    """Some units of a component travel at every pass; the others stay on the card, or stay while it works.  Exact."""

    device: str = ""
    """Where the pipeline computes; empty: cuda where there is one, else cpu."""
    steps: int = STEPS
    """How finely the share of a denoiser is chosen."""
    name: str = "streaming"
    scope: Scope = "component"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        whole = sum(sum(component.weights) for component in program.components)
        able = [c for c in program.components if c.units and sum(c.weights) >= WORTH * whole]
        return tuple(
            self._option(component, count, until)
            for component in able
            if streamable(program, component.name)
            for count, until in self._choices(component, successor(program, component.name))
        )

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return variant

    def rewrite(self, program: Program, option: Option) -> Program:
        component = program.component(option.component)
        count, _, until = parsed(option)
        sizes = [block(component, unit) for unit in component.units]
        away = [component.units[place].path for place in spread(sizes, count)]
        return stream(program, component.name, away, until)

    def outlines(self, program: Program, options: Sequence[Option]) -> Sequence[Outline | None]:
        """None for weights that change their size on the way, and for passes that differ."""
        component = program.component(options[0].component)
        cast = any(isinstance(event, Cast) and event.component == component.name for event in program.landmarks)
        if cast or differs(program, component):
            return [None] * len(options)
        blocks = {unit.path: block(component, unit) for unit in component.units}
        whole = sum(map(aligned, component.weights))
        return [_outline(blocks, whole, option) for option in options]

    def apply(self, pipe: Any, option: Option) -> Undo:
        count, of, until = parsed(option)
        parts = modules(pipe)
        if option.component not in parts or (until and until not in parts):
            raise ApplyFailed(
                f"The plan streams {option.component!r} of {len(parts)} components, which this pipeline does not have; "
                "plan this pipeline."
            )
        return move_units(parts[option.component], count, device=self.device, until=parts.get(until), of=of)

    def _choices(self, component: Component, after: str) -> Iterator[tuple[int, str]]:
        """How many units travel, and until when the others stay: finely for what runs at every step, leanest last."""
        units = len(component.units)
        if "denoiser" in component.traits:
            steps = min(units, self.steps)
            counts = sorted({-(-units * step // steps) for step in range(1, steps + 1)})
        else:
            counts = [units]
        if after:
            yield from ((count, after) for count in (0, *counts[:-1]))
        yield from ((count, "") for count in counts)

    def _option(self, component: Component, count: int, until: str) -> Option:
        value = f"{count}/{len(component.units)}" + (f"-until-{until}" if until else "")
        extra = f", until=pipe.{until}" if until else ""
        call = f"move_units(pipe.{component.name}, {count}{extra})"
        return Option(technique=self.name, value=value, component=component.name, calls=(IMPORT, call))


def _outline(blocks: Mapping[str, int], whole: int, option: Option) -> Outline:
    """What an option moves of a component's units and their bytes, and of its bytes in all."""
    count, _, until = parsed(option)
    units, sizes = list(blocks.items()), list(blocks.values())
    away = set(spread(sizes, count))
    gone = range(len(sizes)) if until else away
    return Outline(
        kept=whole - sum(sizes[n] for n in gone),
        aboard=tuple(sizes[n] for n in gone if n not in away),
        until=until,
        away=tuple(units[n] for n in sorted(away)),
    )


def move_units(module: Any, count: int, *, device: str = "", until: Any = None, of: int | None = None) -> Undo:
    """Have `count` units of a component travel to `device` at every pass, spread evenly, and return what undoes it.

    The other units are moved there now or, with `until`, whenever the component is first called, and leave when the
    module `until` is called.  Raises ApplyFailed where the component has not the number `of` units, or weights that
    cannot travel.
    """
    import torch

    units = units_of(module)
    if count > len(units) or (of is not None and of != len(units)):
        raise ApplyFailed(
            f"The plan streams {count} of {of or count} units, this {type(module).__name__} has {len(units)}; "
            "plan this pipeline as it is now."
        )
    target, tensors = torch.device(device or default_device()), list(held(module))
    stream = own_stream(target)
    weights = [[tensors[place] for place in unit.places] for unit in units]
    away = set(spread([sum(map(room, group)) for group in weights], count))
    travelling = away if until is None else set(range(len(units)))
    plain = (torch.nn.Parameter, torch.Tensor)  # a packed weight is made of the latter
    if strange := next((p for n in travelling for p in weights[n] if type(p) not in plain), None):
        raise ApplyFailed(
            f"{type(module).__name__} holds 1 or more weights of type {type(strange).__name__}, which cannot be copied "
            "byte by byte; leave `streaming` out for it."
        )
    gone = {id(p) for n in travelling for p in weights[n]}
    with ExitStack() as undos:
        cargos = {}
        for n in sorted(travelling):
            cargos[n] = Cargo(units[n].modules, weights[n], target, stream)
            undos.callback(cargos[n].dissolve)
        mover = Mover([cargos[n] for n in sorted(away)], [cargos[n] for n in sorted(travelling - away)])
        undos.callback(mover.detach)
        undos.callback(moved([t for t in tensors if id(t) not in gone], target))
        undos.callback(on_call(module, target, mover.begin, after=mover.end, travelling=True))
        if until is not None:
            undos.callback(on_call(until, target, mover.evict))
        return undos.pop_all().close


def parsed(option: Option) -> tuple[int, int, str]:
    """Units that travel at every pass, units there are, and the component that drives the others out."""
    match = _VALUE.fullmatch(str(option.value))
    if match is None:
        raise BadRequest(f"{option.value!r} is not a share to stream; write 12/57, or 12/57-until-vae.")
    return int(match[1]), int(match[2]), match[3] or ""
