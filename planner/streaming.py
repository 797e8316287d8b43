"""Streaming: part of a component's weights wait in pinned host memory and come to the card just before they are needed.

A unit is fetched while the one before it computes and is dropped when it has run: host memory keeps its copy, so
nothing travels back.  Units that stay between them give the copies time, so those that travel are spread evenly.
Where a step cache has passes differ, which unit comes next is guessed from the last pass, as the mover does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

from planner.events import Alloc, Await, Call, Drop, Enter, Event, Exit, Fetch, Free, Run
from planner.numbering import Names
from planner.program import PLACED, Component, Program, Recording, Unit

T = TypeVar("T")

LAYER = 2
"""Weights a single layer has at most: its matrix and its bias."""
ALIGNED = 512
"""Each weight of a unit starts at a multiple of this in the one block that holds them all."""


def aligned(size: int) -> int:
    """Bytes that a weight of `size` bytes takes in its unit's block."""
    return -(-size // ALIGNED) * ALIGNED


def block(component: Component, unit: Unit) -> int:
    """Bytes of the block in which a unit's weights lie and travel."""
    return sum(aligned(component.weights[place]) for place in unit.places)


def spread(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """Which `count` of these many things travel, so that at every point about the same share of the bytes does."""
    total, seen, gone = sum(sizes), 0, 0
    chosen: list[int] = []
    for place, size in enumerate(sizes):
        left = len(sizes) - place
        seen += size
        wanted = gone + size / 2 <= seen * count / len(sizes) if total else True
        if len(chosen) < count and (wanted or count - len(chosen) >= left):
            chosen.append(place)
            gone += size
    return tuple(chosen)


def streamable(program: Program, name: str) -> bool:
    """Whether every call of the component stands on its own, and nothing uses a unit's weights but the unit itself.

    A unit that is not called is one the request has no use for, such as a vision tower, unless it is a single layer.
    Passes stand on their own but under a step cache, where they hand tensors on to later ones.
    """
    component = program.component(name)
    standing = all(isinstance(call, Call) for call in _calls(program, name))
    if not component.units or not (standing or differs(program, component)):
        return False
    bodies = {call.recording for call in passes(program, name)}
    pieces = [flat(program, component, recording) for recording in bodies]
    pieces += [_Flat(program, component).entered(inside) for inside in _entered(program, name)]
    seen = {piece.path for events in pieces for piece in events if isinstance(piece, Begin)}
    return bool(seen) and all(unit.path in seen or len(unit.places) > LAYER for unit in component.units)


def differs(program: Program, component: Component) -> bool:
    """Whether passes of the component hand on to later ones, or pass over, what others do not."""
    return program.variant.remembers and "denoiser" in component.traits


def successor(program: Program, name: str) -> str:
    """The component called first after the last call of `name` that does not work in between; empty where none is."""
    order = [_owner(event) for event in program.landmarks if _is_call(event)]
    if name not in order:
        return ""
    first, last = order.index(name), len(order) - 1 - order[::-1].index(name)
    return next((later for later in order[last + 1 :] if later not in order[first : last + 1]), "")


def stream(program: Program, name: str, away: Collection[str], until: str = "") -> Program:
    """The program with the units of `away` fetched anew whenever the component runs.

    The others are on the card from the start, or, with `until`, from the component's first call to that of the
    component named there.
    """
    component = program.component(name)
    gone = {unit.path: unit for unit in component.units if until or unit.path in away}
    travelling = {place for unit in gone.values() for place in unit.places}
    blocks = {path: block(component, unit) for path, unit in gone.items()}
    visiting = tuple(size for path, size in blocks.items() if path not in away)
    fetched = {path: blocks[path] for path in away}
    writer = (_Inline if differs(program, component) else _Writer)(program, component, fetched)
    course = _course(program, name, writer, visiting, until)
    kept = tuple(size for place, size in enumerate(component.weights) if place not in travelling)
    left = replace(component, weights=kept, units=(), traits=component.traits | {"travels"})
    return replace(
        program, components=tuple(left if c.name == name else c for c in program.components),
        placed=(*program.placed, *writer.written), waiting=program.waiting + sum(blocks.values()),
    ).with_course(course)  # fmt: skip


def _course(
    program: Program, name: str, writer: _Writer | _Inline, visiting: tuple[int, ...], until: str
) -> tuple[Event, ...]:
    """The course in long pieces between the calls that matter."""
    here, done = False, 0
    events, course = program.events, list[Event]()
    for place in program.recordings[program.course].landmarks:
        event = events[place]
        if not isinstance(event, (Call, Enter)) or (owner := _owner(event)) not in (name, until) or not owner:
            continue
        if place < done:  # inside a pass that is written anew already
            continue
        course += events[done:place]
        done = place
        if owner == until and here:
            here = False
            course += (Enter(event.module, ()), Drop(name, copied=False), Exit())
        end = place if isinstance(event, Call) else _end(events, place)
        if owner == name and _is_pass(events[place : end + 1]):
            if visiting and not here:
                here = True
                course += (Enter(event.module, ()), Fetch(name, visiting), Await(name), Exit())
            done = end + 1
            course += writer.written_anew(event, events[place + 1 : end])
    return (*course, *events[done:])


def _is_pass(events: Sequence[Event]) -> bool:
    """Whether something is computed, and not only weights moved as a component begins."""
    return any(isinstance(event, (Call, Run)) for event in events)


def _end(events: Sequence[Event], place: int) -> int:
    """Where what is entered there ends."""
    depth = 0
    for end in range(place, len(events)):
        depth += isinstance(events[end], Enter) - isinstance(events[end], Exit)
        if not depth:
            break
    return end


def _entered(program: Program, name: str) -> Iterator[Sequence[Event]]:
    """What happens in each pass of a component that is written into the course."""
    events, done = program.events, 0
    for place in program.recordings[program.course].landmarks:
        event = events[place]
        if place >= done and isinstance(event, Enter) and _owner(event) == name:
            done = _end(events, place)
            yield from (inside,) if _is_pass(inside := events[place + 1 : done]) else ()


def _calls(program: Program, name: str) -> Iterator[Event]:
    return (event for event in program.landmarks if _is_call(event) and _owner(event) == name)


def passes(program: Program, name: str) -> Iterator[Call]:
    """The calls of a component that stand on their own."""
    return (event for event in _calls(program, name) if isinstance(event, Call))


def flat(program: Program, component: Component, recording: int) -> Sequence[Event | Begin | End]:
    """One body of a component with everything around its units written out."""
    writer = _Flat(program, component)
    writer.write(recording)
    return writer.events


def _is_call(event: Event) -> bool:
    return isinstance(event, (Call, Enter)) and bool(event.module)


def _module(event: Event) -> str:
    return event.module if isinstance(event, (Call, Enter)) else ""


def _owner(event: Event) -> str:
    return _module(event).partition(".")[0]


@dataclass(frozen=True, slots=True)
class Begin:
    """A unit is about to run."""

    path: str


@dataclass(frozen=True, slots=True)
class End:
    """It has run."""

    path: str


@dataclass(slots=True)
class _Flat:
    """A component's body with everything around its units written out; buffers are numbered anew."""

    program: Program
    component: Component
    events: list[Event | Begin | End] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _units: dict[str, str] = field(default_factory=dict)
    """Name of the unit at each path."""
    _above: frozenset[str] = frozenset()
    """Paths of the modules that hold units."""

    def __post_init__(self) -> None:
        self._units = {path: unit.path for unit in self.component.units for path in unit.paths}
        self._above = frozenset(above for path in self._units for above in _holders(path))

    def write(self, recording: int) -> dict[int, int]:
        """Write out one body; its surviving buffers by their new numbers."""
        names = Names(self._numbers)
        self._body(self.program.body(recording), "", names)
        return names.names

    def entered(self, inside: Iterable[Event]) -> list[Event | Begin | End]:
        """What a pass that is written into the course does; the course's buffers keep their numbers."""
        names = _Others(self._numbers)
        self._body(inside, "", names)
        self.events = list(renamed(self.events, {new: old for old, new in names.names.items()}))
        return self.events

    def _body(self, events: Iterable[Event], path: str, names: Names) -> None:
        inside: list[str] = []
        for event in events:
            here = inside[-1] if inside else path
            match event:
                case Alloc(buffer, size):
                    self.events.append(Alloc(names.new(buffer), size))
                case Free(buffer):
                    self.events.append(Free(names.gone(buffer)))
                case Call(inner, module, kept):
                    self._call(inner, module, kept, self._path(here, module), names)
                case Enter(module, _):
                    inside.append(self._path(here, module))
                    self.events += [event, *([Begin(self._units[inside[-1]])] if inside[-1] in self._units else [])]
                case Exit():
                    done = inside.pop()
                    self.events += [*([End(self._units[done])] if done in self._units else []), event]
                case _:
                    self.events.append(event)

    def _call(self, inner: int, module: str, kept: tuple[tuple[int, int], ...], path: str, names: Names) -> None:
        if path in self._units:
            unit = self._units[path]
            self.events += [Begin(unit), Call(inner, module, names.kept(kept)), End(unit)]
        elif path in self._above and module:
            local = Names(self._numbers)
            self.events.append(Enter(module, ()))
            self._body(self.program.body(inner), path, local)
            self.events.append(Exit())
            names.inherit(kept, local)
        else:
            self.events.append(Call(inner, module, names.kept(kept)))

    def _path(self, here: str, module: str) -> str:
        """Where a module lies.  One that is used past its parent is known by the only place that ends with its name.

        What is inside a unit holds none.
        """
        path = f"{here}.{module}" if here and module else here or module
        known = self._units.keys() | self._above
        if path in known or not module or any(above in self._units for above in _holders(path)):
            return path
        ends = [other for other in known if other == module or other.endswith(f".{module}")]
        return ends[0] if len(ends) == 1 else path


def _holders(path: str) -> Iterator[str]:
    while path := path.rpartition(".")[0]:
        yield path


@dataclass(slots=True)
class _Others(Names):
    """Of events that are part of a course: what it held before keeps its number."""

    def gone(self, buffer: int) -> int:
        return self.names.pop(buffer, buffer)


def renamed(events: Iterable[Event | Begin | End], names: Mapping[int, int]) -> Iterator[Event | Begin | End]:
    """The same with other numbers for some buffers."""
    for event in events:
        match event:
            case Alloc(buffer, size):
                yield Alloc(names.get(buffer, buffer), size)
            case Free(buffer):
                yield Free(names.get(buffer, buffer))
            case Call(recording, module, kept):
                yield Call(recording, module, tuple((inner, names.get(outer, outer)) for inner, outer in kept))
            case _:
                yield event


class _Writer:
    """Bodies of one component with its travelling units fetched and dropped."""

    def __init__(self, program: Program, component: Component, away: Mapping[str, int]) -> None:
        self._program, self._component, self._away = program, component, away
        self._known: dict[tuple[int, bool], tuple[int, dict[int, int]]] = {}
        self._first = True
        self.written: list[Recording] = []

    def written_anew(self, event: Call | Enter, inside: Sequence[Event]) -> tuple[Event, ...]:
        """The call of the body that fetches; the first pass does not know yet what follows what."""
        if not isinstance(event, Call):
            return (event, *inside, Exit())
        if not self._away:
            return (event,)
        first, self._first = self._first, False
        return (self._call(event, first=first),)

    def _call(self, call: Call, *, first: bool) -> Call:
        key = (call.recording, first)
        if key not in self._known:
            pieces = _Flat(self._program, self._component)
            names = pieces.write(call.recording)
            schedule: Callable[..., Iterator[Event]] = serial if first else ahead
            events = tuple(schedule(pieces.events, self._away))
            recording = self._program.recordings[call.recording]
            self._known[key] = PLACED + len(self._program.placed) + len(self.written), names
            self.written.append(replace(recording, own=(), events=events))
        index, names = self._known[key]
        return call._replace(recording=index, kept=tuple((names[inner], outer) for inner, outer in call.kept))


class _Inline:
    """Passes of one component, each written into the course: what they keep and what they pass over differs."""

    def __init__(self, program: Program, component: Component, away: Mapping[str, int]) -> None:
        self._program, self._component = program, component
        self._travel = Travel(away)
        self._numbers = count(1 + max(_buffers(program.events), default=0))
        self.written: list[Recording] = []

    def written_anew(self, event: Call | Enter, inside: Sequence[Event]) -> tuple[Event, ...]:
        """The pass with its travelling units fetched and dropped."""
        pieces = _Flat(self._program, self._component, _numbers=self._numbers)
        if isinstance(event, Enter):
            pieces.entered(inside)
        else:
            names = pieces.write(event.recording)
            pieces.events = list(renamed(pieces.events, {names[inner]: outer for inner, outer in event.kept}))
        travelling: Iterator[Event] = self._travel.through(pieces.events)
        return (event if isinstance(event, Enter) else Enter(event.module, ()), *travelling, Exit())


def _buffers(events: Iterable[Event]) -> Iterator[int]:
    """Every buffer that comes to life in a course."""
    for event in events:
        if isinstance(event, Alloc):
            yield event.buffer
        elif isinstance(event, Call):
            yield from (outer for _, outer in event.kept)


@dataclass(slots=True)
class Travel:
    """What the mover fetches and when: it takes for the next unit the one that came next when the last one ran before.

    One that was fetched in vain leaves when another comes, or when the pass ends.
    """

    away: Mapping[str, int]
    _first: str = ""
    _follows: dict[str, str] = field(default_factory=dict)

    def through(self, events: Iterable[T | Begin | End]) -> Iterator[T | Fetch | Await | Drop]:
        """One more pass.  Kernels and what stands for them are nearly all there is."""
        away, coming = self.away, self._first
        ran: dict[str, None] = {}
        """In the order in which they ran, since the first of them did."""
        yield from self._fetched(coming)
        last = ""
        for event in events:
            if not isinstance(event, (Begin, End)):
                yield event
            elif (path := event.path) not in away:
                continue
            elif isinstance(event, End):
                yield Drop(path, copied=False)
            else:
                if coming != path:
                    yield from (*self._left(coming), *self._fetched(path))
                yield Await(path)
                if path in ran:
                    ran.clear()
                elif ran:
                    self._follows[last] = path
                ran[path], last = None, path
                coming = self._follows.get(path, "")
                yield from self._fetched(coming)
        yield from self._left(coming)
        self._first = next(iter(ran), "")

    def _fetched(self, path: str) -> tuple[Fetch, ...]:
        return (Fetch(path, (self.away[path],)),) if path else ()

    def _left(self, path: str) -> tuple[Await | Drop, ...]:
        """Kernels wait for the copy before anything takes its room."""
        return (Await(path), Drop(path, copied=False)) if path else ()


def serial(events: Iterable[T | Begin | End], away: Mapping[str, int]) -> Iterator[T | Fetch | Await | Drop]:
    """A first pass, with its travelling units and their bytes: each is fetched when it begins."""
    return Travel(away).through(events)


def ahead(events: Sequence[T | Begin | End], away: Mapping[str, int]) -> Iterator[T | Fetch | Await | Drop]:
    """A later pass: each unit is fetched while the travelling one before it computes."""
    travel = Travel(away)
    for _ in travel.through(event for event in events if isinstance(event, (Begin, End))):
        pass  # what follows what is learnt
    return travel.through(events)
