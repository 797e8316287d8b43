"""Cost: bytes and seconds of a program on a device, phase by phase.

Memory is added up body by body: a body's peak above what its caller holds does not depend on the caller, so each is
computed once however often it is called.  `planner.rehearsal` replays the same events in the allocator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_not
from typing import NamedTuple

from planner import attention, clock, reduction, workspace
from planner.clock import Clock, Row, Span
from planner.device import Device
from planner.efficiency import FITTED, Efficiency
from planner.events import (  # fmt: skip
    Alloc,
    Aside,
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
    Run,
    Stay,
)
from planner.kernels import Attention, Conv, Kernel, Plain, Reduction  # fmt: skip
from planner.pace import GRAPH_SECONDS, Pace
from planner.program import PLACED, Program, Recording, calls  # fmt: skip

GRAIN = 512
"""The allocator rounds every request up to this (kMinBlockSize)."""

MOVES = (Load, Drop, Cast, Fetch, Stay, Await)
"""Events after which a state is more than bytes in use."""
BYTES = (Alloc, Free)
"""Events that take no time."""

BEFORE = "start"
"""The phase before the first component is called: weights on the card, inputs made."""


def rounded(size: int) -> int:
    """What a request of `size` bytes takes."""
    return -(-size // GRAIN) * GRAIN


class Peak(NamedTuple):
    """The moment at which a stretch of the program holds most, by kind; bytes."""

    weights: int = 0
    activations: int = 0
    scratch: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.scratch

    def above(self, weights: int, activations: int) -> Peak:
        """The same moment on top of what the caller holds."""
        return Peak(self.weights + weights, self.activations + activations, self.scratch)


class Body(NamedTuple):
    """A recording's effect: its peak, what it leaves, which of its buffers survive, and its time."""

    peak: Peak
    most: int
    """Total of `peak`."""
    span: Span
    sizes: dict[int, int]
    events: int
    """Those of the bodies it calls included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the program in which one component works."""

    name: str
    peak: Peak
    seconds: float
    grown: float = 1.0
    """What lessons multiplied the bytes by."""
    slower: float = 1.0
    """What they multiplied the seconds by."""


class Cost:
    """Prices programs on one device; what one body of a family costs is worked out once.

    What is done once, such as compiling, is spread over `calls`.
    """

    def __init__(self, device: Device, calls: int = 1, reached: Efficiency = FITTED) -> None:
        self.device, self._calls, self._reached = device, calls, reached
        self._bodies: dict[tuple[str, int, str], Body] = {}
        self._placed: dict[tuple[str, int, str], tuple[Recording, Body]] = {}
        self._kernels: dict[tuple[str, int, str], tuple[int, Span]] = {}
        self._paces: dict[str, Pace] = {}
        self._sums: dict[tuple[int, ...], tuple[int, int]] = {}
        self._walks: dict[tuple[str, str, int], tuple[Program, list[Walk]]] = {}

    def phases(self, program: Program) -> tuple[Phase, ...]:
        """Peak and seconds of each phase; what the pipeline does between calls belongs to the phase before it."""
        course = program.recordings[program.course]
        key = (program.family, program.tracing, program.variant.splits)
        known, walked = self._walks.get(key, (program, []))
        walk = next((w for w in reversed(walked) if shared(known, program, w.place)), None)
        walk = walk.copy(program) if walk else Walk.begin(self, program)
        kept = [w for w in walked if w.place <= walk.place]
        denoisers = {c.name for c in program.components if "denoiser" in c.traits}
        again: dict[tuple[object, ...], Stretch] = {}
        for place, called, stretch in stretches(course, walk.place):
            if called and called != walk.now:
                walk.place = place
                kept.append(walk.copy(program))
                tracing = program.tracing if called in denoisers else "none"
                walk.turn(called, tracing, self._calls * program.variant.splits)
            walk.take(stretch, again)
        self._walks[key] = program, kept
        return walk.phases(program.variant.splits)

    def pace(self, tracing: str) -> Pace:
        """The card's seconds for one way of running."""
        if tracing not in self._paces:
            self._paces[tracing] = Pace(self.device, tracing, self._reached)
        return self._paces[tracing]

    def sums(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of weights, and what they take; the same travel again and again."""
        if sizes not in self._sums:
            self._sums[sizes] = sum(sizes), sum(map(rounded, sizes))
        return self._sums[sizes]

    def kernel(self, program: Program, index: int, tracing: str) -> tuple[int, Span]:
        """Scratch bytes and time of one kernel."""
        key = (program.family, index, tracing)
        if key not in self._kernels:
            kernel, pace = program.kernels[index], self.pace(tracing)
            span = clock.kernel(pace.issue(kernel), pace.kernel(kernel))
            self._kernels[key] = scratch(kernel, self.device), span
        return self._kernels[key]

    def body(self, program: Program, recording: int, tracing: str) -> Body:
        """The effect of one recording.  Placed ones are known by identity: each program numbers its own."""
        if recording >= PLACED:
            own = program.placed[recording - PLACED]
            place = (program.family, id(own), tracing)
            if place not in self._placed:
                self._placed[place] = own, self._metered(program, recording, tracing)
            return self._placed[place][1]
        key = (program.family, recording, tracing)
        if key not in self._bodies:
            self._bodies[key] = self._metered(program, recording, tracing)
        return self._bodies[key]

    def _metered(self, program: Program, recording: int, tracing: str) -> Body:
        meter = Meter(self, program, tracing)
        events = program.body(recording)
        for event in events:
            meter.take(event)
        return Body(meter.peak, meter.most, meter.clock.span, meter.sizes, len(events) + meter.inner)


def shared(one: Program, other: Program, place: int) -> bool:
    """Whether two courses of a family do the same up to `place`: each program numbers bodies of its own by itself."""
    waiting = [(one.events[:place], other.events[:place])]
    seen = set[int]()
    while waiting:
        mine, theirs = waiting.pop()
        if mine != theirs or any(map(is_not, map(type, mine), map(type, theirs))):  # as tuples two types may be equal
            return False
        own = {event.recording for event in mine if isinstance(event, Call) and event.recording >= PLACED} - seen
        seen |= own
        bodies = ((one.placed[n - PLACED], other.placed[n - PLACED]) for n in own)
        waiting += ((a.events, b.events) for a, b in bodies if a is not b)
    return True


def stretches(course: Recording, start: int) -> Iterator[tuple[int, str, tuple[Event, ...]]]:
    """A course from `start` on in parts that begin with a component call: place, module called, events."""
    began, module, events = start, "", course.events
    places = course.landmarks[bisect_left(course.landmarks, start) :]
    for place, (_, called) in zip(places, calls(events[place] for place in places), strict=True):
        if called and place > start:
            yield began, module, events[began:place]
            began = place
        module = called or module if place == began else module
    if began < len(events):
        yield began, module, events[began:]


class Stretch(NamedTuple):
    """What part of a course does from one state: its peak, its seconds, and the state after it."""

    peak: Peak
    seconds: float
    after: tuple[int, int, frozenset[tuple[int, int]]]


class Walk:
    """A course walked up to `place`: variants that differ later only go on from here."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.place, self.now = meter, 0, BEFORE
        self._peaks: dict[str, Peak] = {}
        self._seconds: dict[str, float] = {}

    @classmethod
    def begin(cls, cost: Cost, program: Program) -> Walk:
        """Before the first event; the workspace of matrix products is counted from the start."""
        meter = Meter(cost, program)
        meter.activations = workspace.cublas(cost.device.compute_capability)
        return cls(meter)

    def copy(self, program: Program) -> Walk:
        """The same state, to go on with the events of `program`."""
        other = Walk(self.meter.copy(program))
        other.place, other.now = self.place, self.now
        other._peaks, other._seconds = dict(self._peaks), dict(self._seconds)
        return other

    def turn(self, phase: str, tracing: str, calls: int) -> None:
        """Another component begins to work."""
        self.now, self.meter.tracing = phase, tracing
        self._seconds.setdefault(phase, GRAPH_SECONDS[tracing] / calls)

    def take(self, events: tuple[Event, ...], again: dict[tuple[object, ...], Stretch]) -> None:
        """Count events of the phase under way; what was done from the same state before is not counted anew."""
        key = (events, tuple(map(type, events)), *self.meter.state)  # as plain tuples, Free(0) and Run(0) are equal
        stretch = again.get(key)
        if stretch:
            self.meter.resume(stretch.after)
        else:
            stretch = self._stretch(events)
            if not any(isinstance(event, MOVES) for event in events):
                again[key] = stretch
        if self.now not in self._peaks or stretch.peak.total > self._peaks[self.now].total:
            self._peaks[self.now] = stretch.peak
        if self.now != BEFORE:
            self._seconds[self.now] += stretch.seconds

    def _stretch(self, events: tuple[Event, ...]) -> Stretch:
        """Weights there before the call take none of its time; what the pipeline does itself is not compiled."""
        meter, seconds = self.meter, 0.0
        meter.start()
        running, inside = meter.tracing, 0
        for event, called in calls(events):
            if isinstance(event, BYTES):
                meter.take(event)
                continue
            meter.tracing = running if called or inside else "none"
            inside += isinstance(event, Enter) - isinstance(event, Exit)
            meter.clock = Clock()
            if called:
                meter.clock.work(meter.entry)
            meter.take(event)
            seconds += meter.clock.span.seconds
        meter.tracing = running
        return Stretch(meter.peak, seconds, meter.state[1:])

    def phases(self, splits: int) -> tuple[Phase, ...]:
        """What was counted, for as many calls as the request is split into."""
        seconds = self._seconds
        return tuple(Phase(name=n, peak=p, seconds=seconds.get(n, 0.0) * splits) for n, p in self._peaks.items())


class Meter:
    """Running totals while events pass."""

    def __init__(self, cost: Cost, program: Program, tracing: str = "none") -> None:
        self._cost, self._program, self.tracing = cost, program, tracing
        self.weights = self.activations = 0
        self.clock = Clock()
        self.peak, self.most = Peak(), 0
        self.inner = 0
        """Events of the bodies called so far."""
        self.sizes: dict[int, int] = {}
        self._loaded: dict[str, list[int]] = {}
        self._due: dict[str, Row] = {}

    def copy(self, program: Program) -> Meter:
        """The same totals, to go on with the events of `program`."""
        other = Meter(self._cost, program, self.tracing)
        other.weights, other.activations, other.sizes = self.weights, self.activations, dict(self.sizes)
        other._loaded = {key: list(sizes) for key, sizes in self._loaded.items()}
        return other

    @property
    def state(self) -> tuple[str, int, int, frozenset[tuple[int, int]]]:
        """What the effect of further events depends on, apart from weights that leave."""
        return self.tracing, self.weights, self.activations, frozenset(self.sizes.items())

    def resume(self, state: tuple[int, int, frozenset[tuple[int, int]]]) -> None:
        """Go on from a state."""
        self.weights, self.activations, sizes = state
        self.sizes = dict(sizes)

    def start(self) -> None:
        """Measure peak and time from here."""
        self.peak, self.clock = Peak(self.weights, self.activations), Clock()
        self.most = self.peak.total

    def take(self, event: Event) -> None:
        """Count one event.  The first four are nearly all there are; a `match` takes five times as long over them."""
        if isinstance(event, Alloc):
            size = self.sizes[event.buffer] = -(-event.size // GRAIN) * GRAIN
            self.activations += size
            if (total := self.weights + self.activations) > self.most:
                self.peak, self.most = Peak(self.weights, self.activations), total
        elif isinstance(event, Free):
            self.activations -= self.sizes.pop(event.buffer)
        elif isinstance(event, Run):
            extra, span = self._cost.kernel(self._program, event.kernel, self.tracing)
            if extra:
                self._top(extra)
            self.clock.pass_(span)
        elif isinstance(event, Call):
            self._call(event.recording, event.kept)
        elif not isinstance(event, (Enter, Exit)):
            self._move(event)

    def _move(self, event: Event) -> None:
        """Count one event that concerns weights, or for which one side waits."""
        match event:
            case Load(key, sizes, _, source):
                nbytes = self._load(key, sizes)
                self.clock.wait(self._pace.load(nbytes, len(sizes), whole=bool(key), source=source))
            case Drop(key, copied):
                size = self._loaded[key].pop()
                self.weights -= size
                if copied:
                    self.clock.wait(self._pace.unload(size))
            case Fetch(key, sizes, _, source):
                nbytes = self._load(key, sizes)
                self.clock.work(self._pace.set_out(len(sizes), nbytes, source))
                self._due[key] = self.clock.fetch(self._pace.fetch(nbytes))
            case Stay(key, sizes):
                self._load(key, sizes)
            case Join() | Aside():
                self.clock.wait(self._aside(event) if isinstance(event, Aside) else 0.0)
            case Await(key):
                self.clock.await_(self._due.pop(key))
            case Cast(component, sizes) if self._loaded.get(component):  # else it is cast on the host
                self.weights -= self._loaded[component].pop()
                self._load(component, sizes)

    @property
    def entry(self) -> float:
        """Seconds of the host before a component begins."""
        return self._pace.entry()

    @property
    def _pace(self) -> Pace:
        return self._cost.pace(self.tracing)

    def _aside(self, event: Aside) -> float:
        """Seconds until the host has done its work and sent what came of it."""
        return self._pace.host(event.flops) + self._pace.load(event.sent, 1, whole=True)

    def _call(self, recording: int, kept: tuple[tuple[int, int], ...]) -> None:
        body = self._cost.body(self._program, recording, self.tracing)
        if (total := self.weights + self.activations + body.most) > self.most:
            self.peak, self.most = body.peak.above(self.weights, self.activations), total
        self.inner += body.events
        self.clock.pass_(body.span)
        for inner, buffer in kept:
            self.sizes[buffer] = body.sizes[inner]
            self.activations += body.sizes[inner]

    def _load(self, key: str, sizes: tuple[int, ...]) -> int:
        """Take weights in; their bytes."""
        nbytes, taken = self._cost.sums(sizes)
        self._loaded.setdefault(key, []).append(taken)
        self.weights += taken
        self._top(0)
        return nbytes

    def _top(self, extra: int) -> None:
        if (total := self.weights + self.activations + extra) > self.most:
            self.peak, self.most = Peak(self.weights, self.activations, extra), total


def scratch(kernel: Kernel, device: Device) -> int:
    """Most bytes a kernel holds beyond inputs and outputs while it runs, as the allocator rounds them.

    Outputs are counted from the beginning, those that come late as well.
    """
    asked: list[int] = []
    most = 0
    before, result = late(kernel, device)
    held = -(awaited := rounded(result))
    for place, size in enumerate((*temporaries(kernel, device), 0)):
        if place == before:
            held += awaited
        if size < 0:
            held -= asked[~size]
        else:
            asked.append(rounded(size))
            held += asked[-1]
            most = max(most, held)
    return most


def late(kernel: Kernel, device: Device) -> tuple[int, int]:
    """How many of its temporaries a kernel asks for before its result, and bytes of that; zeros where it is first."""
    return attention.late(kernel, device) if isinstance(kernel, Attention) else (0, 0)


def temporaries(kernel: Kernel, device: Device) -> tuple[int, ...]:
    """Bytes that a kernel asks the allocator for, in order; ~n gives the n-th request back.

    The end gives back the rest.  A convolution copies its input, then its weight, and its workspace comes last.
    """
    match kernel:
        case Conv():
            return *workspace.copied(kernel, device), *workspace.engines(kernel, device)
        case Attention():
            return attention.in_order(kernel, device)
        case Reduction():
            return reduction.requests(kernel, device)
        case Plain(scratch=size):
            return (size,)
    return ()
