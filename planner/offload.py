"""Where weights are while a program runs: loads and drops written into it, as diffusers' and accelerate's hooks act."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from itertools import chain, count

from planner.events import Again, Alloc, Call, Cast, Drop, Empty, Ending, Enter, Event, Exit, Free, Load
from planner.program import Program, calls, streamed


def resident(program: Program) -> Program:
    """Every component on the card from the start; what stays of those that travel was moved there before the others."""
    order = sorted(program.components, key=lambda component: "travels" not in component.traits)
    loads = tuple(Load(component.name, component.weights) for component in order)
    return program.with_course(loads + program.recordings[program.course].events)


class _Lent:
    """What a component takes out of lists it was handed, where a hook hands it copies of them (`send_to_device`).

    The lists themselves, and the tensors in them, stay with the pipeline until it has made those of the component's
    next call, and the last of them until it returns.
    """

    def __init__(self, events: Iterable[Event], names: Container[str], *, remembering: bool) -> None:
        self._events, self._names, self._remembering = tuple(events), names, remembering
        self._fresh = count(1 + max(map(_last, self._events), default=0))
        self._born: set[int] = set()
        """Buffers of the component that is under way."""
        self._late: dict[str, list[int]] = {}
        """Buffers of its caller that a component let go."""
        self._makers: dict[int, str] = {}
        """The component whose call left a buffer."""
        self._here = ""
        """The component whose body is written out here."""
        self._renamed: dict[int, int] = {}
        """Buffers whose number is not free yet."""

    def events(self) -> Iterator[Event]:
        """The course with those tensors freed where their lists end."""
        depth, inside = 0, False
        for event in self._events:
            if isinstance(event, Enter):
                self._here = self._here if depth else event.module.partition(".")[0]
                inside = inside if depth else self._here in self._names
                if not depth:
                    yield from map(Free, self._late.pop(self._here, ()))
                depth += 1
            if isinstance(event, Again):
                yield from self._ended()
                self._renamed = {}
            self._note(event)
            yield from self._lent(event) if inside else self._others(event)
            if isinstance(event, Exit):
                depth -= 1
                if not depth:
                    inside, self._here, self._born = False, "", set()
        yield from self._ended()

    def _ended(self) -> Iterator[Event]:
        """What all lists still held, when the pipeline returns."""
        held, self._late = chain(*self._late.values()), {}
        yield from map(Free, held)

    def _lent(self, event: Event) -> Iterator[Event]:
        match event:
            case Free(buffer) if buffer not in self._born and not self._is_own(buffer):
                self._late.setdefault(self._here, []).append(self._renamed.pop(buffer, buffer))
                return
            case Alloc(buffer):
                self._born.add(buffer)
            case Call(_, _, kept):
                self._born.update(buffer for _, buffer in kept)
        yield from self._others(event)

    def _others(self, event: Event) -> Iterator[Event]:
        """The event under numbers that are free."""
        match event:
            case Alloc(buffer):
                self._begin(buffer)
            case Call(_, _, kept):
                for _, buffer in kept:
                    self._begin(buffer)
        yield self._own(event)

    def _is_own(self, buffer: int) -> bool:
        return self._remembering and self._makers.get(buffer) == self._here

    def _note(self, event: Event) -> None:
        """Who made what comes to life here; nobody's are the pipeline's own."""
        match event:
            case Alloc(buffer):
                self._makers[buffer] = self._here
            case Call(_, module, kept):
                maker = self._here or module.partition(".")[0]
                self._makers |= {buffer: maker for _, buffer in kept}

    def _begin(self, buffer: int) -> None:
        if any(buffer in held for held in self._late.values()):
            self._renamed[buffer] = next(self._fresh)

    def _own(self, event: Event) -> Event:
        """The event under the numbers given out here."""
        match event:
            case Alloc(buffer, size):
                return Alloc(self._renamed.get(buffer, buffer), size)
            case Free(buffer):
                self._born.discard(buffer)
                return Free(self._renamed.pop(buffer, buffer))
            case Call(recording, module, kept) if self._renamed:
                again = tuple((inner, self._renamed.get(outer, outer)) for inner, outer in kept)
                return Call(recording, module, again)
        return event


def _last(event: Event) -> int:
    """The highest number of a buffer that an event gives out."""
    if isinstance(event, Alloc):
        return event.buffer
    return max((outer for _, outer in event.kept), default=0) if isinstance(event, Call) else 0


def lent(events: tuple[Event, ...], names: Container[str], *, remembering: bool = False) -> tuple[Event, ...]:
    """A course in which hooks hand these components copies of the lists they are given.

    What one that is `remembering` made itself in an earlier call was in none of them.
    """
    if not any(isinstance(event, Enter) for event in events):
        return events
    return tuple(_Lent(events, names, remembering=remembering).events())


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
    stay = frozenset(here)
    yield from (Load(name, weights[name]) for name in weights if name in here)
    moved = {name for name in weights if name in chain or name not in program.excluded}
    ended = False

    def end() -> Iterator[Event]:
        """As a call ends all is offloaded, and what is excluded comes back."""
        yield from (Drop(name, copied=True) for name in weights if name in here)
        here.clear()
        here.update(stay)
        yield Empty()
        yield from (Load(name, weights[name]) for name in weights if name in here)

    for event, called in calls(lent(program.events, moved, remembering=program.variant.remembers)):
        if isinstance(event, Cast):
            weights[event.component] = event.weights
            if event.component not in here:
                continue  # cast where it is: on the host
        if isinstance(event, Ending) or (isinstance(event, Again) and not ended):
            yield from end()
        ended = isinstance(event, Ending) or (ended and not isinstance(event, Again))
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
    moved = {c.name for c in program.components} - excluded
    recording = program.recordings[program.course]
    handed = lent(recording.events, moved, remembering=program.variant.remembers)
    course = streamed(replace(recording, events=handed), excluded)
    events = tuple(e for e in course if not isinstance(e, Cast) or e.component in excluded)
    family = f"{program.family}/sequential"
    return replace(program, family=family, waiting=_all(program)).with_course(stay + events)


def _all(program: Program) -> int:
    """Bytes of all weights: those that travel come back to where they were."""
    return sum(sum(component.weights) for component in program.components)
