"""Where weights are while a program runs: loads and drops written into it, as diffusers' and accelerate's hooks act."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.program import Call, Cast, Drop, Empty, Enter, Event, Exit, Load, Program, Recording


def resident(program: Program) -> Program:
    """Every component on the card from the start."""
    loads = tuple(Load(c.name, c.weights) for c in program.components)
    return program.with_course(loads + program.recordings[program.course].events)


def model_offload(program: Program) -> Program:
    """`enable_model_cpu_offload`: a component arrives when called and leaves when its successor in the chain is called.

    Components outside the chain arrive when called and stay; excluded ones are on the card from the start.
    """
    return program.with_course(tuple(_moved(program)))


def _moved(program: Program) -> Iterator[Event]:
    weights = {c.name: c.weights for c in program.components}
    chain = [name for name in program.chain if name in weights]
    before = dict(zip(chain[1:], chain, strict=False))
    here = {name for name in weights if name in program.excluded and name not in chain}
    yield from (Load(name, weights[name]) for name in weights if name in here)
    for event in program.recordings[program.course].events:
        if isinstance(event, Cast):
            weights[event.component] = event.weights
            if event.component not in here:
                continue  # cast where it is: on the host
        if isinstance(event, (Call, Enter)) and (name := event.module.partition(".")[0]) in weights:
            if before.get(name) in here:
                here.discard(before[name])
                yield Drop(before[name], copied=True)
                yield Empty()
            if name not in here:
                here.add(name)
                yield Load(name, weights[name])
        yield event
    yield from (Drop(name, copied=True) for name in weights if name in here and name not in program.excluded)


def sequential_offload(program: Program) -> Program:
    """`enable_sequential_cpu_offload`: each module's own weights are there while it runs.  Excluded components stay.

    The table holds each body twice, as recorded for components that stay, then with its weights coming and going.
    """
    excluded, shift = program.excluded, len(program.recordings)
    stay = tuple(Load(c.name, c.weights if c.name in excluded else c.anchored) for c in program.components)
    streamed = tuple(_streamed(r, shift, frozenset()) for r in program.recordings)
    course = _streamed(program.recordings[program.course], shift, excluded)
    events = tuple(e for e in course.events if not isinstance(e, Cast) or e.component in excluded)
    placed = replace(
        program,
        recordings=program.recordings + streamed,
        course=shift + program.course,
        family=f"{program.family}/sequential",
    )
    return placed.with_course(stay + events)


def _streamed(recording: Recording, shift: int, stay: frozenset[str]) -> Recording:
    """The body with its weights coming and going; it calls bodies `shift` further on, but not for what stays."""
    events: list[Event] = [Load("", recording.own), Empty()] if recording.own else []
    inlined: list[bool] = []
    for event in recording.events:
        if isinstance(event, Call) and event.module.partition(".")[0] not in stay:
            events.append(event._replace(recording=event.recording + shift))
        else:
            events.append(event)
        if isinstance(event, Enter):
            own = () if event.module.partition(".")[0] in stay else event.own
            inlined.append(bool(own))
            events += [Load("", own), Empty()] if own else []
        elif isinstance(event, Exit) and inlined.pop():
            events.append(Drop("", copied=False))
    if recording.own:
        events.append(Drop("", copied=False))
    return replace(recording, events=tuple(events))
