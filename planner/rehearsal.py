"""Rehearsal: a program replayed in PyTorch's allocator, event by event, under a cap."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice, pairwise, permutations
from math import ceil
from typing import NamedTuple

from planner import workspace
from planner.allocator import SMALL_REQUEST, Allocator, Layout, OutOfMemory, segment_size
from planner.blocks import Block, Seat
from planner.clock import AHEAD
from planner.cost import Cost, rounded, temporaries
from planner.device import Device
from planner.events import Again, Alloc, Aside, Call, Cast, Drop, Empty, Event, Fetch, Free, Gone, Join, Load, Run, Stay
from planner.kernels import Conv
from planner.program import Program, calls
from planner.score import FEW, LAUNCH, Begin, Score, Scores

LATER = 7
"""Further requests that a pipeline has to meet near its cap, unless what they meet repeats before."""
NEAR = 0.01
"""Share of the cap below which a run is near it, by what would be left with the cache emptied.  Of 117 combinations at
their least cap four ran out of memory in the second half of a second request to the seventh, as they do on the virtual
GPU; one of them with 1 % more.
"""
CALLS = 8
"""Calls of a component after which another, with no more held than before, leaves what it leaves and no more is known:
the idle blocks of some wander for a hundred steps without coming back to where they lay."""
ORDERS = 24
"""Orders of loading that are tried: all of four components."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What the allocator saw; bytes."""

    allocated: int
    reserved: int
    retries: int
    phases: tuple[tuple[str, int, int], ...]
    """Name, allocated and reserved peak of each phase."""
    failed: str = ""
    """Phase in which memory ran out; empty when the program runs through."""
    calls: int = 0
    """Calls of the pipeline that had returned when memory ran out."""
    missing: int = 0
    """Bytes of the request that could not be met."""
    reached: int = 0
    """Events of the course, from the first on, that settled where it ran out."""
    leaner: int = 0
    """Times that a convolution took a leaner engine for want of memory."""
    enough: int = 0
    """Bytes of capacity under which a run that ran through does the very same: what it never had, it cannot miss."""

    def scaled(self, by: float) -> Rehearsal:
        """The same with all bytes multiplied."""
        phases = tuple((name, int(allocated * by), int(reserved * by)) for name, allocated, reserved in self.phases)
        return replace(
            self, allocated=int(self.allocated * by), reserved=int(self.reserved * by), phases=phases,
            enough=ceil(self.enough * by),
        )  # fmt: skip


def rehearse(
    program: Program,
    device: Device,
    *,
    capacity: int | None = None,
    cost: Cost | None = None,
    scores: Scores | None = None,
    expandable: bool = False,
    brim: bool = True,
) -> Rehearsal:
    """Replay a program; `capacity` is what torch may reserve in all, None for as much as it likes.

    Under a cap the pipeline has to meet the same request again, where the course has its next call as well: once, and
    near the cap until a request begins as an earlier one did, or `LATER` times.  Peaks are those of the first.
    `expandable` is PYTORCH_ALLOC_CONF's expandable_segments: one growing segment a pool, and next to no fragmentation.
    Where `brim` is not, two requests do: whoever asks leaves `NEAR` of what they took beside it.
    """
    prices = cost or Cost(device)
    loads = tuple(_loads(program.events))
    aside = 0 if expandable else _unlucky(loads)
    room = None if capacity is None else capacity - aside

    stage = _Stage(program, device, Allocator(capacity=room, expandable=expandable), prices, scores or Scores(device))
    peaks: dict[str, tuple[int, int]] = {}
    now, failed, returned, missing, most, taken = "start", "", 0, 0, 0, 0
    try:
        for request, turn in stage.turns(later=0 if capacity is None else LATER):
            if request > 1 and not brim:
                break
            for event, called in calls(turn):
                if called:
                    now = called
                    stage.turn(called.partition(".")[0])
                taken += 1
                stage.take(event, stage.course)
                most = max(most, stage.allocator.peak_reserved)
                if not request:
                    seen = peaks.get(now, (0, 0))
                    here = stage.allocator.peak_allocated, stage.allocator.peak_reserved
                    peaks[now] = max(seen[0], here[0]), max(seen[1], here[1])
            returned += 1
    except OutOfMemory as error:
        failed, missing = now, error.size
    if room is not None and stage.at_ease:
        most = max(most, ceil((room - stage.allocator.spare) / (1 - NEAR)))
    return Rehearsal(
        allocated=max((a for a, _ in peaks.values()), default=0),
        reserved=max((r for _, r in peaks.values()), default=0), enough=most + aside,
        retries=stage.allocator.retries, leaner=stage.leaner,
        failed=failed, calls=returned if failed else 0, missing=missing,
        phases=tuple((name, a, r) for name, (a, r) in peaks.items()),
        reached=max(taken, len(loads) + 1) if failed else 0,
    )  # fmt: skip


def _parts(events: tuple[Event, ...]) -> list[tuple[Event, ...]]:
    """The calls of the pipeline in a course; each after the first begins with `Again`."""
    starts = [place for place, event in enumerate(events) if type(event) is Again]
    return [events[a:b] for a, b in pairwise((0, *starts, len(events)))]


def _loads(events: Iterable[Event]) -> Iterator[Load]:
    """Components that are on the card from the start."""
    for event in events:
        if not isinstance(event, Load):
            return
        yield event


@lru_cache(maxsize=64)
def _unlucky(loads: tuple[Load, ...]) -> int:
    """Bytes that loading in the worst order leaves reserved beyond the order given.

    `pipe.to` moves components in the order of a set of their names, which differs from process to process: 63 MB of
    half-used segments for SD 1.5 in single precision.  What is said to run under a cap has to run in any order.
    """
    large = [[size for size in map(rounded, load.weights) if size > SMALL_REQUEST] for load in loads]
    reserved = [_reserved(chain(*order)) for order in islice(permutations(large), ORDERS)]
    return max(reserved) - reserved[0]


def _reserved(sizes: Iterable[int]) -> int:
    """Of the large pool, where nothing is freed; in the small one order changes next to nothing."""
    rests: list[int] = []
    reserved = 0
    for size in sizes:
        place = bisect_left(rests, size)
        if place == len(rests):
            reserved += segment_size(size)
        rest = (rests.pop(place) if place < len(rests) else segment_size(size)) - size
        if rest > SMALL_REQUEST:
            insort(rests, rest)
    return reserved


_State = tuple[object, ...]
"""All that decides what the next call meets."""


class _Scene:
    """The buffers and weights of one body while it is replayed."""

    def __init__(self) -> None:
        self.buffers: dict[int, Block | None] = {}
        self.weights: dict[str, list[list[Block | None]]] = {}


class _Effect(NamedTuple):
    """What a body does from one layout of the idle blocks."""

    seats: Mapping[int, Seat | None]
    """Where the buffers that survive it lay, large ones at least."""
    peak: int
    """Bytes held at its peak beyond those held before."""
    launched: int


class _Stage:
    def __init__(self, program: Program, device: Device, allocator: Allocator, cost: Cost, scores: Scores) -> None:
        self.allocator, self.events = allocator, program.events
        self.course = _Scene()
        self._program, self._device, self._cost, self._scores = program, device, cost, scores
        self._calls: dict[int, tuple[int, int, int]] = {}
        """Recording to calls since a request was last tried again, the most that was held before one, and retries."""
        self._effects: dict[tuple[int, int, Layout], _Effect] = {}
        self._trifles: dict[tuple[int, int, Layout], Mapping[int, Seat]] = {}
        """Where the small buffers lay."""
        self._warm = False
        self._launched = 0
        self._begun: set[_State] = set()
        """States in which requests began."""
        self._cleared = False
        """Whether the last one began with an emptied cache."""
        self._retries = 0
        """Those before it."""
        self.at_ease = False
        """Whether no more requests were looked at because none was near the cap."""
        self._temporaries: dict[int, tuple[int, ...]] = {}
        self.leaner = 0
        """Times that a convolution took to a leaner engine."""
        self._denoisers = {component.name for component in program.components if "denoiser" in component.traits}
        self._outlived: list[Block | None] = []
        """What the call before left: tables and latents that the pipeline's scheduler holds."""
        self._stayed: list[Block | None] = []
        """What calls before that one left."""
        self._going = {event.place for event in self.events if type(event) is Gone}
        """Those whose ends the course has, by their place among what a call leaves."""
        self._handed: dict[str, list[Block | None]] = {}
        """Room of weights that goes from one body to another."""
        self._copies: list[Block | None] = []
        """What the convolution that is about to run asked for before the room of its result."""

    def turns(self, *, later: int) -> Iterator[tuple[int, tuple[Event, ...]]]:
        """The calls made of the pipeline for a request and for `later` ones like it, with the number of the request.

        Those that are not written are as the last.
        """
        *written, last = _parts(self.events)
        splits = self._program.variant.splits if written else 1
        for request in range(1 + later if written else 1):
            if request and self._has_shown_all():
                return
            own = written[request * splits : (request + 1) * splits]
            yield from ((request, turn) for turn in chain(own, self._rest(last, splits - len(own))))

    def _has_shown_all(self) -> bool:
        """Whether the next request shows nothing new: it begins as an earlier one did, or two had room to spare.

        After one that was short of memory it begins with an emptied cache (`refresh`).  One that was not short, but
        began so, leaves what none has met.
        """
        allocator, cleared = self.allocator, self._cleared
        allocator.settle()
        self._cleared, self._retries = allocator.retries > self._retries, allocator.retries
        if self._cleared:
            allocator.empty_cache()
        if (state := self._state()) in self._begun:
            return True
        again, met = self._cleared or not cleared, bool(self._begun)
        self._begun.add(state)
        self.at_ease = again and met and allocator.spare >= NEAR * allocator.bound
        return self.at_ease

    def _rest(self, turn: tuple[Event, ...], times: int) -> Iterator[tuple[Event, ...]]:
        """A call again and again, until one begins as the one before did: all others do the same."""
        before: _State = ()
        for _ in range(times):
            state = self._state() if times > 1 else ()
            if state and state == before:
                return
            before = state
            yield turn

    def _state(self) -> _State:
        """All that decides what the next call meets."""
        weights = {key: blocks for key, blocks in self.course.weights.items() if blocks}
        stayed: list[Block | None] = [block for block in self._stayed if block is not None]
        rooms = (*chain.from_iterable(weights.values()), *self._handed.values(), self._outlived, stayed)
        held = (*self.course.buffers.values(), *chain.from_iterable(rooms))
        names = (*self.course.buffers, *weights, *self._handed, *map(len, weights.values()), *map(len, rooms))
        return names, self.allocator.arrangement(held), tuple(sorted(self._temporaries.items()))

    def turn(self, component: str) -> None:
        """Another component is called.  The denoiser no longer meets what earlier calls left, where no end is known."""
        if component in self._denoisers:
            for place in {*range(len(self._outlived))} - self._going:
                self._gone(place)
            self._release(self._stayed)
            self._stayed = []
        self.allocator.reset_peaks()

    def take(self, event: Event, scene: _Scene) -> None:
        """Replay one event of the course."""
        if isinstance(event, Alloc):
            scene.buffers[event.buffer] = self.allocator.malloc(event.size)
        elif isinstance(event, Free):
            self.allocator.free(scene.buffers.pop(event.buffer))
        elif isinstance(event, Run):
            self._play(self._scores.kernel(self._program, event.kernel), scene)
        else:
            self._other(event, scene)

    def _play(self, score: Score, scene: _Scene) -> None:
        """Replay a score.  The first three branches are nearly all there is, and run for every tensor."""
        malloc, free, buffers, late = self.allocator.malloc, self.allocator.free, scene.buffers, self.allocator.late
        for number, size in score.steps:
            if size > 0:
                buffers[number] = malloc(size)
            elif size == 0:
                free(buffers.pop(number))
            elif size == LAUNCH:
                self._launched += 1
                if late:
                    self.allocator.settle(self._launched - AHEAD)  # the host gets no further ahead of the card
                if number and not self._warm:
                    self._warm = True
                    malloc(workspace.cublas(self._device.compute_capability))
            else:
                self._other(score.others[number], scene)

    def _other(self, event: Event | Begin, scene: _Scene) -> None:
        """Replay what is no plain request.  The first five are nearly all there is; a `match` takes far longer."""
        if isinstance(event, Call):
            self._call(event.recording, event.kept, scene)
        elif isinstance(event, Begin):
            copies = self._asked(event.kernel)[: workspace.early(self._conv(event.kernel), self._device)]
            self._copies = list(map(self.allocator.malloc, copies))
        elif isinstance(event, Run):
            self._convolve(event.kernel)
        elif isinstance(event, Fetch):
            self._brought(event.key, event.weights, event.stream, scene)
        elif isinstance(event, Drop):
            self._dropped(event, scene)
        elif isinstance(event, Alloc):
            scene.buffers[event.buffer] = None
        else:
            self._move(event, scene)

    def _move(self, event: Event, scene: _Scene) -> None:
        """Replay one event that concerns weights or the whole call; others ask nothing of the allocator."""
        match event:
            case Stay(key) if key in self._handed:
                scene.weights.setdefault(key, []).append(self._handed.pop(key))
            case Load(key, sizes, stream) | Stay(key, sizes, stream):
                self._brought(key, sizes, stream, scene)
                if isinstance(event, Load):  # a copy for which the host waits, behind the kernels
                    self.allocator.settle()
            case Cast(component, sizes) if scene.weights.get(component):  # else it is cast on the host
                self._cast(scene.weights[component], sizes)
            case Empty():
                self.allocator.empty_cache()
            case Join() | Aside():
                self.allocator.settle()
            case Gone(place) if place < len(self._outlived):
                self._gone(place)
            case Again():
                self._stayed += self._outlived
                self._outlived = list(scene.buffers.values())
                scene.buffers = {}
                self._calls.clear()
                self.allocator.settle()

    def _brought(self, key: str, sizes: tuple[int, ...], stream: int, scene: _Scene) -> None:
        malloc = self.allocator.malloc
        scene.weights.setdefault(key, []).append([malloc(size, stream) for size in sizes])

    def _dropped(self, drop: Drop, scene: _Scene) -> None:
        if drop.handed:
            self._handed[drop.key] = scene.weights[drop.key].pop()
        else:
            self._release(scene.weights[drop.key].pop(0 if drop.older else -1), late=drop.late)

    def _gone(self, place: int) -> None:
        """Of what an earlier call left."""
        self.allocator.free(self._outlived[place])
        self._outlived[place] = None

    def _call(self, recording: int, kept: tuple[tuple[int, int], ...], scene: _Scene) -> None:
        if scene is self.course and self._usual(recording):
            sizes = self._cost.body(self._program, recording, "none").sizes
            for inner, buffer in kept:
                scene.buffers[buffer] = self.allocator.malloc(sizes[inner])
            return
        blocks = self._blocks(recording)
        for inner, buffer in kept:
            scene.buffers[buffer] = blocks[inner]

    def _usual(self, recording: int) -> bool:
        """Whether a component was called often enough with as much held, since memory was last short."""
        calls, most, retries = self._calls.get(recording, (0, 0, 0))
        if retries != self.allocator.retries:
            calls = 0
        held = self.allocator.allocated
        self._calls[recording] = calls + 1, max(most, held), self.allocator.retries
        return calls >= CALLS and held <= most

    def _blocks(self, recording: int) -> Mapping[int, Block | None]:
        """What survives a body.  From a layout it was replayed from before it does the same again.

        Large pools and small ones are answered apart: the few numbers a step leaves change places with every step.
        """
        allocator = self.allocator
        events = self._cost.body(self._program, recording, "none").events
        if events <= FEW or not allocator.settled:
            return self._replay(recording).buffers
        large, small = ((recording, self.leaner, layout) for layout in allocator.layout())
        if large in self._effects and small in self._trifles:
            return self._again(self._effects[large], self._trifles[small])
        before, top, launched = allocator.allocated, allocator.peak_allocated, self._launched
        changes = allocator.exchanges, self._warm, dict(self._handed)
        allocator.peak_allocated = before
        inside = self._replay(recording)
        peak = allocator.peak_allocated - before
        allocator.peak_allocated = max(top, allocator.peak_allocated)
        same = changes == (allocator.exchanges, self._warm, self._handed)
        if same and allocator.settled and not any(inside.weights.values()):
            seats = {inner: None if block is None else block.seat for inner, block in inside.buffers.items()}
            trifles = {inner: seat for inner, seat in seats.items() if seat and seat.size <= SMALL_REQUEST}
            self._effects[large] = _Effect(seats, peak, self._launched - launched)
            self._trifles[small] = trifles
        return inside.buffers

    def _again(self, effect: _Effect, trifles: Mapping[int, Seat]) -> Mapping[int, Block | None]:
        """The same as before."""
        allocator = self.allocator
        allocator.peak_allocated = max(allocator.peak_allocated, allocator.allocated + effect.peak)
        self._launched += effect.launched
        seats = {**effect.seats, **trifles}
        return {inner: None if seat is None else allocator.retake(seat) for inner, seat in seats.items()}

    def _replay(self, recording: int) -> _Scene:
        """A body, step by step, with what survives it."""
        inside = _Scene()
        self._play(self._scores.of(self._program, recording), inside)
        return inside

    def _conv(self, index: int) -> Conv:
        conv = self._program.kernels[index]
        assert isinstance(conv, Conv)
        return conv

    def _asked(self, index: int) -> tuple[int, ...]:
        """Temporaries of a convolution, as they were last asked for."""
        if index not in self._temporaries:
            self._temporaries[index] = temporaries(self._program.kernels[index], self._device)
        return self._temporaries[index]

    def _convolve(self, index: int) -> None:
        sizes, held = self._asked(index), self._copies
        held += map(self.allocator.malloc, sizes[len(held) : 2])
        if not self.allocator.can_malloc(sizes[-1]):
            self._lean(index, self._conv(index))
        self._release(held)

    def _lean(self, index: int, conv: Conv) -> None:
        """Short of memory, torch takes the next engine that finds room, and keeps to it (Conv_v8.cpp, try_configs)."""
        *copies, refused = self._temporaries[index]
        for size in workspace.engines(conv, self._device, every=True):
            if size < refused and self.allocator.can_malloc(size):
                self._temporaries[index] = (*copies, size)
                self.leaner += 1
                return
        self.allocator.malloc(refused)

    def _cast(self, held: list[list[Block | None]], sizes: tuple[int, ...]) -> None:
        """Tensor by tensor: the new one is there before the old one goes."""
        old, new = held.pop(), []
        for block, size in zip(old, sizes, strict=True):
            new.append(self.allocator.malloc(size))
            self.allocator.free(block)
        held.append(new)

    def _release(self, blocks: list[Block | None], *, late: bool = False) -> None:
        free = partial(self.allocator.free_late, now=self._launched) if late else self.allocator.free
        for block in blocks:
            free(block)
