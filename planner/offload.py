"""Where weights are while a program runs: loads and drops written into it, as diffusers' and accelerate's hooks act."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.program import Cast, Drop, Empty, Enter, Event, Exit, Load, Program, calls, streamed


def resident(program: Program) -> Program:
    """Every component on the card from the start; what stays of those that travel was moved there before the others."""
    order = sorted(program.components, key=lambda component: "travels" not in component.traits)
    loads = tuple(Load(component.name, component.weights) for component in order)
    return program.with_course(loads + program.recordings[program.course].events)


def model_offload(program: Program) -> Program:
    """`enable_model_cpu_offload`: a component arrives when called and leaves when its successor in the chain is called.

    Components outside the chain arrive when called and stay; excluded ones are on the card from the start.
    """
    return replace(program, waiting=_all(program)).with_course(tuple(_moved(program)))


def _moved(program: Program) -> Iterator[Event]:
    weights = {c.name: c.weights for c in program.components}
    chain = [name for name in program.chain if name in weights]
    before = dict(zip(chain[1:], chain, strict=False))
    here = {name for name in weights if name in program.excluded and name not in chain}
    yield from (Load(name, weights[name]) for name in weights if name in here)
    for event, called in calls(program.recordings[program.course].events):
        if isinstance(event, Cast):
            weights[event.component] = event.weights
            if event.component not in here:
                continue  # cast where it is: on the host
        if (name := called.partition(".")[0]) in weights:
            if before.get(name) in here:
                here.discard(before[name])
                yield Drop(before[name], copied=True)
                yield Empty()
            if name not in here:  # arriving is part of the phase that begins
                here.add(name)
                yield from (Enter(called, ()), Load(name, weights[name]), Exit())
        yield event
    yield from (Drop(name, copied=True) for name in weights if name in here and name not in program.excluded)


def sequential_offload(program: Program) -> Program:
    """`enable_sequential_cpu_offload`: each module's own weights are there while it runs.  Excluded components stay."""
    excluded = program.excluded
    stay = tuple(Load(c.name, c.weights if c.name in excluded else c.anchored) for c in program.components)
    course = streamed(program.recordings[program.course], excluded)
    events = tuple(e for e in course if not isinstance(e, Cast) or e.component in excluded)
    family = f"{program.family}/sequential"
    return replace(program, family=family, waiting=_all(program)).with_course(stay + events)


def _all(program: Program) -> int:
    """Bytes of all weights: those that travel come back to where they were."""
    return sum(sum(component.weights) for component in program.components)
