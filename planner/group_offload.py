"""Group offload: what diffusers' hooks do to a program, module by module as they act (diffusers 0.42.1).

By blocks, the blocks of a module's lists travel in groups, and all else it has travels when its `forward` is called.
By leaves, each module's own weights travel when it is called.  With a stream, copies come from pinned memory, nothing
travels back, and from a module's second call on each group sets out when the one before it begins: the order is learnt
in the first call.  A component that is used past its `forward`, as autoencoders are, learns none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from typing import NamedTuple

from planner.events import (
    Again,
    Alloc,
    Await,
    Call,
    Cast,
    Drop,
    Enter,
    Event,
    Exit,
    Fetch,
    Free,
    Join,
    Load,
    Source,
    Stay,
)
from planner.numbering import Names
from planner.offload import lent
from planner.program import PLACED, STREAMED, Component, Program, Recording

TABLES = "tables"
"""Key of buffers that stay when their group has gone."""
SETTLED = 3
"""Calls after which each is like the one before: the first learns the order, the second leaves what it leads to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """A setting of diffusers' group offload."""

    blocks: int = 0
    """Blocks that travel together; 0: leaf by leaf."""
    stream: bool = False
    pinned: bool = True
    """Whether weights wait in pinned memory; else each is pinned when it sets out (`low_cpu_mem_usage`)."""
    disk: bool = False
    """Whether weights wait on disk."""
    record: bool = False
    """Whether the host goes on while kernels use what it drops (`record_stream`)."""

    @property
    def source(self) -> Source:
        """Where weights wait for the stream."""
        return "disk" if self.disk else "pinned" if self.pinned else "pageable"


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
    writer = _Writer(program, {c.name: _Hooks(program, c, grouping, stream) for c, stream in numbered})
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


@dataclass(frozen=True, slots=True)
class _Group:
    """Weights that travel together."""

    key: str
    sizes: tuple[int, ...]
    first: str
    """Module whose beginning loads it."""
    last: str
    """Module whose end drops it."""
    stream: int
    """Through which it comes; 0: that of the kernels, and it goes back the same way."""
    tables: tuple[int, ...] = ()
    """What comes once more from its second turn on."""
    lasting: tuple[int, ...] = ()
    """What comes with it and stays until it is brought anew."""


@dataclass(slots=True)
class _Order:
    """In which order a module calls its groups; learnt when its first call ends."""

    root: str
    seen: list[_Group] = field(default_factory=list)
    learnt: bool = False

    def within(self, path: str) -> bool:
        """Whether a module lies in it."""
        return path.startswith(f"{self.root}.") if self.root else path != ""


@dataclass(slots=True)
class _Learnt:
    """What hooks know by now."""

    groups: dict[str, _Group]
    """By the module that bears the hook, where these are of blocks."""
    orders: list[_Order]
    follows: dict[str, _Group] = field(default_factory=dict)
    led: set[str] = field(default_factory=set)
    """Groups that set out when the one before them begins."""
    aboard: dict[str, _Group] = field(default_factory=dict)
    """By the module whose beginning loads it."""
    due: set[str] = field(default_factory=set)
    casts: int = 0
    turned: set[str] = field(default_factory=set)
    """Groups with tables that have had a turn."""
    lasting: dict[str, _Group] = field(default_factory=dict)
    """Groups whose lasting tables are on the card."""
    left: tuple[_Group, ...] = ()
    """What the last call left on the card."""
    lingers: bool = False
    past: tuple[object, ...] = ()
    """All that they have met: from the same past they do the same."""

    def copy(self) -> _Learnt:
        """The same, to be learnt from apart."""
        return replace(
            self, orders=[replace(order, seen=[*order.seen]) for order in self.orders],
            groups={**self.groups}, follows={**self.follows}, led={*self.led}, aboard={**self.aboard}, due={*self.due},
            turned={*self.turned}, lasting={**self.lasting},
        )  # fmt: skip


class _Hooks:
    """The hooks on one component, from call to call."""

    def __init__(self, program: Program, component: Component, grouping: Grouping, stream: int) -> None:
        self.component, self._grouping, self._program = component, grouping, program
        self._stream = stream if grouping.stream else 0
        blocks = dict(_by_blocks(component, component.weights, grouping, self._stream)) if grouping.blocks else {}
        roots = [stack.path for stack in component.stacks if stack.rest] if grouping.blocks else [""]
        self.now = _Learnt(blocks, [_Order(root) for root in roots] if grouping.stream else [])
        self._bears: dict[int, bool] = {}
        self._tables = {
            unit.path: tuple(component.weights[place] for place in unit.places) for unit in component.tables
        }
        """Buffers by module that no recorded body owns; they keep their size when weights are cast."""

    def cast(self, sizes: tuple[int, ...]) -> None:
        """The weights change size where they wait; by leaves the bodies recorded since then tell."""
        self.now.casts += 1
        self.now.past = (*self.now.past, sizes)
        if self._grouping.blocks:
            self.now.groups = dict(_by_blocks(self.component, sizes, self._grouping, self._stream))

    @property
    def unstreamed(self) -> Source:
        """Where that waits which comes through no stream."""
        return "disk" if self._grouping.disk else "pageable"

    @property
    def state(self) -> tuple[int, int, int, int, tuple[_Group, ...]]:
        """Casts, orders learnt, tables doubled and lasting, weights left: while these are so, hooks do the same."""
        learnt = sum(order.learnt for order in self.now.orders)
        return self.now.casts, learnt, len(self.now.turned), len(self.now.lasting), self.now.left

    @property
    def origin(self) -> tuple[object, ...]:
        """What they do hangs on, apart from the body they are in."""
        return self._program.family, self.component, self._grouping, self._stream, self.now.past

    def group(self, path: str, own: tuple[int, ...]) -> _Group | None:
        """What a module moves; by leaves that is its own, and the component's hook may move nothing but lead."""
        if self._grouping.blocks:
            group = self.now.groups.get(path)
            return group if group is None or group.key not in self.now.turned else _doubled(group)
        tables = self._tables.get(path, ())
        lasts = bool(self._stream) and not self._grouping.disk and path in self.component.lasting
        own, lasting = (own, tables) if lasts else ((*own, *tables), ())
        if not own and not lasting and (path or not self._grouping.stream):
            return None
        return _Group(path if self._stream else "", own, path, path, self._stream, lasting=lasting)

    def within(self, path: str, recording: int) -> bool:
        """Whether hooks sit in a module."""
        if self._grouping.blocks:
            return any(known.startswith(f"{path}.") for known in self.now.groups)
        if any(known.startswith(f"{path}.") for known in self._tables):
            return True
        if recording not in self._bears:
            events = self._program.recordings[recording].events
            self._bears[recording] = any(map(self._is_borne, events))
        return self._bears[recording]

    def begin(self, group: _Group, path: str) -> Iterator[Event]:
        """Before the `forward` of a module that bears hooks."""
        if path == group.first:
            if group.key not in self.now.led or group.first not in self.now.aboard:
                yield from self._load(group, ahead=False)
            if group.key in self.now.due:
                self.now.due.discard(group.key)
                yield Await(group.key)
            if group.key in self.now.follows:
                yield from self._load(self.now.follows[group.key], ahead=True)
        for order in self.now.orders:
            if not order.learnt and order.within(path):
                order.seen.append(group)

    def end(self, group: _Group, path: str) -> Iterator[Event]:
        """After it."""
        if path == group.last:
            yield from self._dropped(group)
        for order in self.now.orders:
            if order.root == path and not order.learnt:
                order.learnt = True
                chain = [group, *order.seen]
                self.now.follows |= {before.key: after for before, after in pairwise(chain)}
                self.now.led |= {after.key for after in order.seen}

    def stray(self) -> None:
        """In a call that is written into the course they meet what no others do."""
        self.now.past = (*self.now.past, object())

    def leave(self) -> Iterator[Event]:
        """After a call: what set out and was not wanted goes, for the body to be whole; `stay` keeps its room."""
        self.now.left = tuple(group for _, group in sorted(self.now.aboard.items()))
        yield from (Drop(group.key, copied=False) for group in self.now.left)
        yield from self._hand_over()
        self.now.aboard, self.now.due = {}, set()

    def stay(self) -> Iterator[Event]:
        """After a call: what is left on the card waits there for the component's next turn.

        That is so where modules are called several times in a `forward`, as the last of them leads the first again, and
        where this `forward` passed over modules that the first one called.  Which module buffers belong to is not
        recorded, so all of them are taken to be of the first.
        """
        yield from self._take_over()
        if self.now.left:
            self.now.lingers = True
            yield from self.kept()

    def kept(self) -> Iterator[Event]:
        """What waits on the card."""
        if self.now.lingers:
            sizes = tuple(size for group in self.now.left for size in group.sizes)
            yield Stay(f"{self.component.name}/left", sizes, self._stream)

    def resume(self) -> Iterator[Event]:
        """Before a call: that turn has come."""
        yield from self._hand_over()
        if self.now.lingers:
            self.now.lingers = False
            yield Drop(f"{self.component.name}/left", copied=False)

    def board(self) -> Iterator[Event]:
        """As a call begins: what the one before left is there until its module ends or it is fetched anew."""
        self.now.aboard = {group.first: group for group in self.now.left}
        yield from self._take_over()
        yield from (Stay(group.key, group.sizes, group.stream) for group in self.now.left)

    def _tables_of(self, group: _Group) -> str:
        return f"{self.component.name}/{group.key}/{TABLES}"

    def _hand_over(self) -> Iterator[Event]:
        """Lasting tables leave a body and stay where they are."""
        yield from (Drop(self._tables_of(g), copied=False, handed=True) for g in self.now.lasting.values())

    def _take_over(self) -> Iterator[Event]:
        yield from (Stay(self._tables_of(g), g.lasting, g.stream) for g in self.now.lasting.values())

    def _load(self, group: _Group, *, ahead: bool) -> Iterator[Event]:
        stale = group.first in self.now.aboard
        self.now.aboard[group.first] = group
        if not group.stream:
            yield Load(group.key, group.sizes, source=self.unstreamed)
        else:
            yield Fetch(group.key, group.sizes, group.stream, self._grouping.source)
            if group.lasting:
                yield Fetch(self._tables_of(group), group.lasting, group.stream, self._grouping.source)
                if group.key in self.now.lasting:
                    yield Drop(self._tables_of(group), copied=False, older=True)
                self.now.lasting[group.key] = group
            if ahead:
                self.now.due.add(group.key)
            else:
                yield Await(group.key)
        if stale:  # the tensors point to the new bytes now
            yield Drop(group.key, copied=False)

    def _dropped(self, group: _Group) -> Iterator[Event]:
        recorded = bool(group.stream) and self._grouping.record
        if group.stream and not recorded:
            yield Join()
        if group.tables and not self._grouping.disk:
            self.now.turned.add(group.key)
        if self.now.aboard.pop(group.first, None):
            yield Drop(group.key, copied=not group.stream and not self._grouping.disk, late=recorded)

    def _is_borne(self, event: Event) -> bool:
        if isinstance(event, Enter):
            return bool(event.own)
        if not isinstance(event, Call) or event.recording >= STREAMED:
            return False
        return bool(self._program.recordings[event.recording].own) or self.within("", event.recording)


def _by_blocks(
    component: Component, sizes: Sequence[int], grouping: Grouping, stream: int
) -> Iterator[tuple[str, _Group]]:
    """The group of each module that bears hooks.  With a stream blocks travel singly, whatever is asked."""

    def of(places: Iterable[int]) -> tuple[int, ...]:
        return tuple(sizes[place] for place in places)

    together = 1 if stream else grouping.blocks
    for stack in component.stacks:
        lasting = stack.lasting if stream and not grouping.disk else ()
        for blocks in stack.lists:
            for start in range(0, len(blocks), together):
                some = blocks[start : start + together]
                places = [place for block in some for place in block.places]
                group = _Group(
                    some[0].path, of(place for place in places if place not in lasting), some[0].path, some[-1].path,
                    stream, lasting=of(place for place in places if place in lasting),
                )  # fmt: skip
                yield from ((block.path, group) for block in some)
        if stack.rest:
            yield stack.path, _Group(f"{stack.path}/rest", of(stack.rest), stack.path, stack.path, 0, of(stack.tables))


def _doubled(group: _Group) -> _Group:
    return replace(group, sizes=(*group.sizes, *group.tables))


class _Anew(NamedTuple):
    """A body in which weights travel, how its buffers are numbered, and what the hooks know after it."""

    recording: Recording
    names: dict[int, int]
    learnt: _Learnt


class _Writer:
    """Writes the course anew, and the bodies in which weights travel."""

    def __init__(self, program: Program, hooks: Mapping[str, _Hooks]) -> None:
        self._program, self._hooks = program, hooks
        self._known: dict[tuple[object, ...], tuple[int, dict[int, int], tuple[_Group, ...]]] = {}
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

    def _body(self, events: Iterable[Event], hooks: _Hooks | None, path: str, names: Names) -> list[Event]:
        """Events of one body of a component, or of the course where `hooks` is None."""
        inside: list[tuple[_Hooks | None, str, _Group | None]] = [(hooks, path, None)]
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
        self, hooks: _Hooks | None, here: str, module: str, own: tuple[int, ...]
    ) -> tuple[_Hooks | None, str, _Group | None]:
        """The hooks, path and group of a module that is written into its caller."""
        if hooks is not None:
            path = _joined(here, module)
            return hooks, path, hooks.group(path, own) if module else None
        component, _, method = module.partition(".")
        hooks = self._hooks.get(component)
        return hooks, "", hooks.group("", own) if hooks and not method else None

    def _call(self, call: Call, hooks: _Hooks | None, here: str, names: Names) -> list[Event]:
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

    def _placed(self, call: Call, hooks: _Hooks, names: Names) -> Call:
        """The call of a component's body in which its weights travel."""
        key = call.recording, hooks.component.name, hooks.state
        if key not in self._known:
            recording, names_inside = self._anew(call, hooks)
            self._known[key] = PLACED + len(self._program.placed) + len(self.written), names_inside, hooks.now.left
            self.written.append(recording)
        index, numbers, hooks.now.left = self._known[key]
        kept = tuple((numbers[survivor], outer) for survivor, outer in call.kept)
        return Call(index, call.module, names.kept(kept))

    def _anew(self, call: Call, hooks: _Hooks) -> tuple[Recording, dict[int, int]]:
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

    def _whole(self, call: Call, recording: Recording, hooks: _Hooks, names: Names) -> Iterator[Event]:
        group = hooks.group("", recording.own) if "." not in call.module else None
        yield from hooks.board()
        yield from hooks.begin(group, "") if group else ()
        yield from self._body(recording.events, hooks, "", names)
        yield from hooks.end(group, "") if group else ()
        yield from hooks.leave()


def _joined(here: str, module: str) -> str:
    return f"{here}.{module}" if here and module else here or module
