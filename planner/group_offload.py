"""Group offload: what diffusers' hooks do to a program, module by module as they act."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from planner.events import Again, Alloc, Call, Cast, Enter, Event, Exit, Fetch, Free, Load
from planner.group_hooks import Group, Grouping, Hooks, Learnt
from planner.numbering import Names
from planner.offload import lent
from planner.program import PLACED, Component, Program, Recording

SETTLED = 3
"""Calls after which each is like the one before: the first learns the order, the second leaves what it leads to."""


def groupable(program: Program, name: str, grouping: Grouping) -> bool:
    """Whether the component runs under these hooks.

    diffusers loses weights that are cast while copies in pinned memory wait, and by blocks it never loads what an
    autoencoder has beside its lists, for `decode` is no `forward`, nor blocks that are lists themselves.  What a block
    itself holds is brought in vain where a cache passes over it, which no recorded body tells.
    """
    component = program.component(name)
    if program.variant.passes_blocks and "denoiser" in component.traits:
        paths = frozenset(path for s in component.stacks for units in s.lists for unit in units for path in unit.paths)
        every = (event for body in program.recordings for event in body.events)
        if grouping.blocks or any(_holds(program, event, paths) for event in every):
            return False
    events = tuple(program.landmarks)
    if not component.stacks or (grouping.stream and any(isinstance(e, Cast) and e.component == name for e in events)):
        return False
    if grouping.blocks and "lists_of_lists" in component.traits:
        return False
    used = {module for e in events if (module := _module(e)).partition(".")[0] == name}
    own = component.stacks[-1]
    if not grouping.blocks or not own.rest:
        return True
    return used == {name} and not (grouping.stream and len(component.stacks) > 1)


def _holds(program: Program, event: Event, paths: frozenset[str]) -> bool:
    """Whether a call is that of a module at one of these paths which has weights of its own."""
    match event:
        case Call(recording, module, _):
            return module in paths and bool(program.recordings[recording].own)
        case Enter(module, own):
            return module in paths and bool(own)
    return False


def group_offload(program: Program, grouping: Grouping, names: Iterable[str]) -> Program:
    """The program with these components offloaded by groups and all others on the card from the start."""
    chosen = frozenset(names)
    stay = tuple(Load(c.name, c.weights) for c in program.components if c.name not in chosen)
    written = _written(program, grouping, chosen)
    return written.with_course(stay + written.events)


def group_offload_one(program: Program, grouping: Grouping, name: str) -> Program:
    """The program with one component offloaded by groups; where the others wait is written into it by others."""
    written = _written(program, grouping, frozenset((name,)))
    part = written.component(name)
    gone = replace(part, weights=(), units=(), stacks=(), tables=(), traits=part.traits | {"travels"})
    return replace(written, components=tuple(gone if c.name == name else c for c in written.components))


def _written(program: Program, grouping: Grouping, chosen: frozenset[str]) -> Program:
    """The program with the hooks on these components, and nothing of the others."""
    numbered = ((c, place) for place, c in enumerate(program.components, start=1) if c.name in chosen)
    writer = _Writer(program, {c.name: Hooks(program, c, grouping, stream) for c, stream in numbered})
    course = tuple(writer.course())
    stands = 1 if any(type(event) is Again for event in program.landmarks) else program.variant.splits
    for _ in range(min(stands, SETTLED) - 1):  # one call stands for later ones, which know the order and what was left
        course = (*writer.kept(), *writer.course())
    waiting = sum(host_bytes(program.component(name), grouping) for name in chosen)
    if grouping.disk or not grouping.pinned:
        waiting += in_flight((course, *(body.events for body in writer.written)))
    return replace(
        program, placed=(*program.placed, *writer.written), waiting=program.waiting + waiting
    ).with_course(course)  # fmt: skip


def host_bytes(component: Component, grouping: Grouping) -> int:
    """Bytes of host memory in which a component's weights wait; torch pins each tensor in a power of two."""
    whole = sum(component.weights)
    if grouping.disk:
        return 0
    if not grouping.stream or not grouping.pinned:
        return whole
    unpinned = {place for stack in component.stacks for place in stack.rest} if grouping.blocks else frozenset[int]()
    return sum(s if place in unpinned else pinned(s) for place, s in enumerate(component.weights))


def in_flight(bodies: Iterable[Iterable[Event]]) -> int:
    """Bytes of pinned memory through which weights go that do not wait there; torch keeps them, each in its size.

    safetensors 0.8 goes that way, too, when it reads a file to a card, tensor by tensor.
    """
    most: Counter[int] = Counter()
    for event in (event for events in bodies for event in events):
        if isinstance(event, Fetch) and event.source != "pinned":
            most |= Counter(map(pinned, event.weights))
        elif isinstance(event, Load) and event.source == "disk":
            most |= Counter(set(map(pinned, event.weights)))
    return sum(most.elements())


def pinned(size: int) -> int:
    """Bytes that torch's caching host allocator takes for a tensor of `size` bytes."""
    return 1 << (size - 1).bit_length() if size else 0


def _module(event: Event) -> str:
    return event.module if isinstance(event, (Call, Enter)) else ""


class _Anew(NamedTuple):
    """A body in which weights travel, how its buffers are numbered, and what the hooks know after it."""

    recording: Recording
    names: dict[int, int]
    learnt: Learnt


class _Writer:
    """Writes the course anew, and the bodies in which weights travel."""

    def __init__(self, program: Program, hooks: Mapping[str, Hooks]) -> None:
        self._program, self._hooks = program, hooks
        self._known: dict[tuple[object, ...], tuple[int, dict[int, int], tuple[Group, ...]]] = {}
        self.written: list[Recording] = []

    def course(self) -> Iterator[Event]:
        """The events of the outermost body."""
        program = self._program
        begun = (event for event in program.events if isinstance(event, Enter) and event.module in self._hooks)
        names = {event.module for event in begun if self._hooks[event.module].group("", event.own)}
        events = lent(program.events, names, remembering=program.variant.remembers)
        yield from self._body(events, None, "", Names(count()))

    def kept(self) -> Iterator[Event]:
        """What waits on the card when the pipeline is called again."""
        for hooks in self._hooks.values():
            yield from hooks.kept()

    def _body(self, events: Iterable[Event], hooks: Hooks | None, path: str, names: Names) -> list[Event]:
        """Events of one body of a component, or of the course where `hooks` is None."""
        inside: list[tuple[Hooks | None, str, Group | None]] = [(hooks, path, None)]
        written: list[Event] = []
        for event in events:
            if isinstance(event, Alloc):
                written.append(Alloc(names.new(event.buffer), event.size))
                continue
            if isinstance(event, Free):
                written.append(Free(names.gone(event.buffer)))
                continue
            now, here, group = inside[-1]
            match event:
                case Call():
                    written += self._call(event, now, here, names)
                case Enter(module, own):
                    written.append(Enter(module, ()))
                    outside = now is None
                    inside.append(self._entered(now, here, module, own))
                    now, here, group = inside[-1]
                    if now and outside:
                        written += (*now.resume(), *now.board())
                        now.stray()
                    written += now.begin(group, here) if now and group else ()
                case Exit():
                    inside.pop()
                    written += now.end(group, here) if now and group else ()
                    written += (*now.leave(), *now.stay()) if now and inside[-1][0] is None else ()
                    written.append(event)
                case Cast(component, sizes) if component in self._hooks:
                    self._hooks[component].cast(sizes)
                case _:
                    written.append(event)
        return written

    def _entered(
        self, hooks: Hooks | None, here: str, module: str, own: tuple[int, ...]
    ) -> tuple[Hooks | None, str, Group | None]:
        """The hooks, path and group of a module that is written into its caller."""
        if hooks is not None:
            path = _joined(here, module)
            return hooks, path, hooks.group(path, own) if module else None
        component, _, method = module.partition(".")
        hooks = self._hooks.get(component)
        return hooks, "", hooks.group("", own) if hooks and not method else None

    def _call(self, call: Call, hooks: Hooks | None, here: str, names: Names) -> list[Event]:
        if hooks is None:
            own = self._hooks.get(call.module.partition(".")[0])
            if own is None:
                return [call._replace(kept=names.kept(call.kept))]
            return [*own.resume(), self._placed(call, own, names), *own.stay()]
        path, recording = _joined(here, call.module), self._program.recordings[call.recording]
        group = hooks.group(path, recording.own) if call.module else None
        written = list(hooks.begin(group, path)) if group else []
        if hooks.within(path, call.recording):
            inner = Names(names.numbers)
            written.append(Enter(call.module, ()))
            written += self._body(recording.events, hooks, path, inner)
            written.append(Exit())
            names.inherit(call.kept, inner)
        else:
            written.append(call._replace(kept=names.kept(call.kept)))
        written += hooks.end(group, path) if group else ()
        return written

    def _placed(self, call: Call, hooks: Hooks, names: Names) -> Call:
        """The call of a component's body in which its weights travel."""
        key = call.recording, hooks.component.name, hooks.state
        if key not in self._known:
            recording, names_inside = self._anew(call, hooks)
            self._known[key] = PLACED + len(self._program.placed) + len(self.written), names_inside, hooks.now.left
            self.written.append(recording)
        index, numbers, hooks.now.left = self._known[key]
        kept = tuple((numbers[survivor], outer) for survivor, outer in call.kept)
        return Call(index, call.module, names.kept(kept))

    def _anew(self, call: Call, hooks: Hooks) -> tuple[Recording, dict[int, int]]:
        """That body, and how its buffers are numbered now; what others wrote from the same is not written again."""
        origin = (*hooks.origin, call.recording, "." in call.module)
        known = self._program.anew.get(origin)
        if not isinstance(known, _Anew):
            recording, inner = self._program.recordings[call.recording], Names(count())
            events = tuple(self._whole(call, recording, hooks, inner))
            hooks.now.past = (*hooks.now.past, origin[-2:])
            known = _Anew(replace(recording, own=(), events=events), inner.names, hooks.now.copy())
            self._program.anew[origin] = known
        hooks.now = known.learnt.copy()
        return known.recording, known.names

    def _whole(self, call: Call, recording: Recording, hooks: Hooks, names: Names) -> Iterator[Event]:
        group = hooks.group("", recording.own) if "." not in call.module else None
        yield from hooks.board()
        yield from hooks.begin(group, "") if group else ()
        yield from self._body(recording.events, hooks, "", names)
        yield from hooks.end(group, "") if group else ()
        yield from hooks.leave()


def _joined(here: str, module: str) -> str:
    return f"{here}.{module}" if here and module else here or module
