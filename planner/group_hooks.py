"""Group hooks: which weights diffusers' group offload moves as modules begin and end (diffusers 0.42.1).

By blocks, the blocks of a module's lists travel in groups, and all else it has travels when its `forward` is called.
By leaves, each module's own weights travel when it is called.  With a stream, copies come from pinned memory, nothing
travels back, and from a module's second call on each group sets out when the one before it begins: the order is learnt
in the first call.  A component that is used past its `forward`, as autoencoders are, learns none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from planner.events import Await, Call, Drop, Enter, Event, Fetch, Join, Load, Source, Stay
from planner.program import STREAMED, Component, Program

TABLES = "tables"
"""Key of buffers that stay when their group has gone."""


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


@dataclass(frozen=True, slots=True)
class Group:
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
class Order:
    """In which order a module calls its groups; learnt when its first call ends."""

    root: str
    seen: list[Group] = field(default_factory=list)
    learnt: bool = False

    def within(self, path: str) -> bool:
        """Whether a module lies in it."""
        return path.startswith(f"{self.root}.") if self.root else path != ""


@dataclass(slots=True)
class Learnt:
    """What hooks know by now."""

    groups: dict[str, Group]
    """By the module that bears the hook, where these are of blocks."""
    orders: list[Order]
    follows: dict[str, Group] = field(default_factory=dict)
    led: set[str] = field(default_factory=set)
    """Groups that set out when the one before them begins."""
    aboard: dict[str, Group] = field(default_factory=dict)
    """By the module whose beginning loads it."""
    due: set[str] = field(default_factory=set)
    casts: int = 0
    turned: set[str] = field(default_factory=set)
    """Groups with tables that have had a turn."""
    lasting: dict[str, Group] = field(default_factory=dict)
    """Groups whose lasting tables are on the card."""
    left: tuple[Group, ...] = ()
    """What the last call left on the card."""
    lingers: bool = False
    past: tuple[object, ...] = ()
    """All that they have met: from the same past they do the same."""

    def copy(self) -> Learnt:
        """The same, to be learnt from apart."""
        return replace(
            self, orders=[replace(order, seen=[*order.seen]) for order in self.orders],
            groups={**self.groups}, follows={**self.follows}, led={*self.led}, aboard={**self.aboard}, due={*self.due},
            turned={*self.turned}, lasting={**self.lasting},
        )  # fmt: skip


class Hooks:
    """The hooks on one component, from call to call."""

    def __init__(self, program: Program, component: Component, grouping: Grouping, stream: int) -> None:
        self.component, self._grouping, self._program = component, grouping, program
        self._stream = stream if grouping.stream else 0
        blocks = dict(_by_blocks(component, component.weights, grouping, self._stream)) if grouping.blocks else {}
        roots = [stack.path for stack in component.stacks if stack.rest] if grouping.blocks else [""]
        self.now = Learnt(blocks, [Order(root) for root in roots] if grouping.stream else [])
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
    def state(self) -> tuple[int, int, int, int, tuple[Group, ...]]:
        """Casts, orders learnt, tables doubled and lasting, weights left: while these are so, hooks do the same."""
        learnt = sum(order.learnt for order in self.now.orders)
        return self.now.casts, learnt, len(self.now.turned), len(self.now.lasting), self.now.left

    @property
    def origin(self) -> tuple[object, ...]:
        """What they do hangs on, apart from the body they are in."""
        return self._program.family, self.component, self._grouping, self._stream, self.now.past

    def group(self, path: str, own: tuple[int, ...]) -> Group | None:
        """What a module moves; by leaves that is its own, and the component's hook may move nothing but lead."""
        if self._grouping.blocks:
            group = self.now.groups.get(path)
            return group if group is None or group.key not in self.now.turned else _doubled(group)
        tables = self._tables.get(path, ())
        lasts = bool(self._stream) and not self._grouping.disk and path in self.component.lasting
        own, lasting = (own, tables) if lasts else ((*own, *tables), ())
        if not own and not lasting and (path or not self._grouping.stream):
            return None
        return Group(path if self._stream else "", own, path, path, self._stream, lasting=lasting)

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

    def begin(self, group: Group, path: str) -> Iterator[Event]:
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

    def end(self, group: Group, path: str) -> Iterator[Event]:
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

    def _tables_of(self, group: Group) -> str:
        return f"{self.component.name}/{group.key}/{TABLES}"

    def _hand_over(self) -> Iterator[Event]:
        """Lasting tables leave a body and stay where they are."""
        yield from (Drop(self._tables_of(g), copied=False, handed=True) for g in self.now.lasting.values())

    def _take_over(self) -> Iterator[Event]:
        yield from (Stay(self._tables_of(g), g.lasting, g.stream) for g in self.now.lasting.values())

    def _load(self, group: Group, *, ahead: bool) -> Iterator[Event]:
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

    def _dropped(self, group: Group) -> Iterator[Event]:
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
) -> Iterator[tuple[str, Group]]:
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
                group = Group(
                    some[0].path, of(place for place in places if place not in lasting), some[0].path, some[-1].path,
                    stream, lasting=of(place for place in places if place in lasting),
                )  # fmt: skip
                yield from ((block.path, group) for block in some)
        if stack.rest:
            yield stack.path, Group(f"{stack.path}/rest", of(stack.rest), stack.path, stack.path, 0, of(stack.tables))


def _doubled(group: Group) -> Group:
    return replace(group, sizes=(*group.sizes, *group.tables))
