"""Census: who holds the memory – at the peak of each phase, and over time.  Pure; the sums are those of `cost`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from planner import workspace
from planner.cost import BEFORE, Cost, Meter, Walk, rounded
from planner.events import Alloc, Call, Cast, Drop, Enter, Event, Exit, Fetch, Free, Load, Run, Stay
from planner.kernels import Kernel, Plain
from planner.program import Program, calls

Kind = Literal["weights", "activations", "workspace"]
LIBRARY = "cuBLAS"
"""The holder of the workspace that matrix products share; it is there from the start."""


class Holding(NamedTuple):
    """What one place in the pipeline holds at a peak."""

    kind: Kind
    """What is held."""
    component: str
    """`unet`, `vae`; `pipeline` for what lies between the components."""
    block: str
    """Path inside the component, such as `up_blocks.2.resnets.0`; empty for the component itself."""
    op: str
    """What made it: an operation's name, `matmul`, `conv`, `attention`; empty for weights."""
    bytes: int
    """Held at that moment."""
    tensors: int
    """How many tensors they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """All holdings at the peak of one phase, the largest first; they add up to the peak."""

    phase: str
    """Its name."""
    peak: int
    """Bytes allocated at the moment at which the phase holds most."""
    at: str
    """Path of what runs at that moment."""
    holdings: tuple[Holding, ...]
    """The largest first."""

    def share(self, size: int) -> str:
        """What part of the peak so many bytes are, for people."""
        part = size / self.peak
        return f"{part:.0%}" if part >= 0.005 else "<1%"


class Origin(NamedTuple):
    """Where a buffer was made."""

    path: tuple[str, ...]
    op: str
    size: int


def census(program: Program, cost: Cost) -> tuple[Count, ...]:
    """The holdings at the peak of each phase, in the order of the phases."""
    counts = []
    for phase, place in _peaks(program, cost).items():
        crowd = _Crowd(program, cost)
        crowd.walk(program.recordings[program.course].events, place, ())
        counts.append(crowd.counted(phase))
    return tuple(counts)


def _peaks(program: Program, cost: Cost) -> dict[str, int]:
    """Place in the course of each phase's peak, as `Cost.phases` finds it."""
    walk = Walk.begin(cost, program)
    most: dict[str, int] = {}
    places: dict[str, int] = {}
    for place, (event, called) in enumerate(calls(program.recordings[program.course].events)):
        if called and called != walk.now:
            walk.turn(called, "none", 1)
        walk.take((event,), {})
        if walk.now not in most or walk.meter.most > most[walk.now]:
            most[walk.now], places[walk.now] = walk.meter.most, place
    return places


@dataclass(slots=True)
class _Crowd:
    """Everything alive while a body is walked up to its peak, bodies around it included."""

    program: Program
    cost: Cost
    buffers: list[Origin] = field(default_factory=list)
    weights: Counter[tuple[str, str]] = field(default_factory=Counter)
    scratch: Origin | None = None
    at: tuple[str, ...] = ()

    def walk(self, events: Sequence[Event], last: int, path: tuple[str, ...]) -> None:
        """Take what is alive after the event at `last`, and go into that event where it is a call."""
        alive: dict[int, Origin] = {}
        loaded: dict[str, list[int]] = {}
        inner = path
        for place, event in enumerate(events[: last + 1]):
            match event:
                case Enter(module):
                    inner = (*inner, module)
                case Exit():
                    inner = inner[:-1]
                case Alloc(buffer, size):
                    alive[buffer] = Origin(inner, self._maker(events, place), rounded(size))
                case Free(buffer):
                    del alive[buffer]
                case Load(key, sizes) | Fetch(key, sizes) | Stay(key, sizes):
                    loaded.setdefault(key, []).append(sum(map(rounded, sizes)))
                case Drop(key):
                    loaded[key].pop()
                case Cast(component, sizes) if loaded.get(component):
                    loaded[component][-1] = sum(map(rounded, sizes))
                case Call(recording, module, kept) if place < last:
                    made = dict(kept)
                    origins = self._origins(recording, (*inner, module), frozenset(made))
                    alive |= {made[buffer]: origin for buffer, origin in origins.items()}
        self.buffers += alive.values()
        for key, held in loaded.items():
            holder = (*path[:1], key) if key else inner  # inside a component keys are paths below it
            component, block = _split(holder)
            self.weights[component, block] += sum(held)
        self._into(events[last], inner)

    def counted(self, phase: str) -> Count:
        """What was gathered, equal places together."""
        sums: Counter[tuple[Kind, str, str, str]] = Counter()
        numbers: Counter[tuple[Kind, str, str, str]] = Counter()
        for origin in self.buffers:
            place: tuple[Kind, str, str, str] = ("activations", *_split(origin.path), origin.op)
            sums[place] += origin.size
            numbers[place] += 1
        for (component, block), size in self.weights.items():
            sums["weights", component, block, ""] += size
        sums["workspace", LIBRARY, "", "matmul"] += workspace.cublas(self.cost.device.compute_capability)
        if self.scratch and self.scratch.size:
            sums[("workspace", *_split(self.scratch.path), self.scratch.op)] += self.scratch.size
        found = (Holding(*place, size, numbers[place] or 1) for place, size in sums.items() if size)
        return Count(
            phase=phase, peak=sum(sums.values()), at=".".join(filter(None, self.at)),
            holdings=tuple(sorted(found, key=lambda holding: (-holding.bytes, holding))),
        )  # fmt: skip

    def _into(self, event: Event, path: tuple[str, ...]) -> None:
        """The event of the peak: a call is walked up to its own, a kernel brings its scratch."""
        self.at = path
        if isinstance(event, Run):
            size, _ = self.cost.kernel(self.program, event.kernel, "none")
            self.scratch = Origin(path, op_of(self.program.kernels[event.kernel]), size)
        elif isinstance(event, Call):
            body = self.program.body(event.recording)
            place = _place_of_peak(self.program, self.cost, body)
            if place is None:
                self.at = (*path, event.module)
            else:
                self.walk(body, place, (*path, event.module))

    def _origins(self, recording: int, path: tuple[str, ...], wanted: frozenset[int]) -> dict[int, Origin]:
        """Where those buffers of a body that outlive it were made, in the bodies it calls too."""
        if not wanted:
            return {}
        found: dict[int, Origin] = {}
        inner = path
        events = self.program.body(recording)
        for place, event in enumerate(events):
            match event:
                case Enter(module):
                    inner = (*inner, module)
                case Exit():
                    inner = inner[:-1]
                case Alloc(buffer, size) if buffer in wanted:
                    found[buffer] = Origin(inner, self._maker(events, place), rounded(size))
                case Call(called, module, kept):
                    made = {mine: outer for mine, outer in kept if outer in wanted}
                    below = self._origins(called, (*inner, module), frozenset(made))
                    found |= {made[buffer]: origin for buffer, origin in below.items()}
        return found

    def _maker(self, events: Sequence[Event], place: int) -> str:
        """The operation whose output is allocated there: outputs come right before their kernel."""
        for event in events[place + 1 : place + 9]:
            if isinstance(event, Run):
                return op_of(self.program.kernels[event.kernel])
            if not isinstance(event, Alloc):
                break
        return "empty"


def op_of(kernel: Kernel) -> str:
    """A kernel in a word."""
    if isinstance(kernel, Plain):
        return kernel.name.removeprefix("aten.").partition(".")[0] or "copy"
    return {"Matmul": "matmul", "Conv": "conv", "Attention": "attention"}[type(kernel).__name__]


def _place_of_peak(program: Program, cost: Cost, body: Sequence[Event]) -> int | None:
    """The event at which a body holds most; None where it holds nothing of its own."""
    meter, best, found = Meter(cost, program), 0, None
    for place, event in enumerate(body):
        meter.take(event)
        if meter.most > best:
            best, found = meter.most, place
    return found


def _split(path: tuple[str, ...]) -> tuple[str, str]:
    """Component and block of a path; `vae.decode` is the component's method."""
    whole = ".".join(filter(None, path))
    component, _, block = whole.partition(".")
    return component or "pipeline", block


class Moment(NamedTuple):
    """A stretch of time and the most that is held in it; bytes."""

    seconds: float
    """How long it lasts."""
    weights: int
    """Bytes of weights on the card."""
    activations: int
    """Bytes of the pipeline's tensors."""
    workspace: int
    """Bytes of scratch of the kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One phase of the timeline."""

    phase: str
    """Its name."""
    moments: tuple[Moment, ...]
    """One after the other."""

    @property
    def seconds(self) -> float:
        """Of all its moments."""
        return sum(moment.seconds for moment in self.moments)


def timeline(program: Program, cost: Cost, moments: int = 120) -> tuple[Stretch, ...]:
    """Memory over the time of one call, at most about `moments` moments a phase; peaks are never averaged away."""
    stretches: dict[str, list[Moment]] = {}
    meter, now = Meter(cost, program), BEFORE
    meter.activations = workspace.cublas(cost.device.compute_capability)
    seconds = {phase.name: phase.seconds / program.variant.splits for phase in cost.phases(program)}
    for event, called in calls(program.recordings[program.course].events):
        now = called or now
        passed = list(_passed(event, meter, program, cost, seconds.get(now, 0.0) / moments))
        if now != BEFORE:
            stretches.setdefault(now, []).extend(passed)
    return tuple(
        Stretch(phase=phase, moments=tuple(_merged(_fitted(found, seconds[phase]), seconds[phase] / moments)))
        for phase, found in stretches.items()
    )


def _fitted(moments: Sequence[Moment], seconds: float) -> list[Moment]:
    """The same moments over `seconds` in all: what overlaps adds up to more when it is timed piece by piece."""
    whole = sum(moment.seconds for moment in moments) or 1.0
    return [moment._replace(seconds=moment.seconds * seconds / whole) for moment in moments]


def _passed(event: Event, meter: Meter, program: Program, cost: Cost, fine: float) -> Iterator[Moment]:
    """The moments of one event on top of what `meter` holds, which takes the event; long calls are gone into."""
    weights, activations = meter.weights, meter.activations
    if isinstance(event, Call) and cost.body(program, event.recording, "none").span.seconds > fine:
        inside = Meter(cost, program)
        for inner in program.body(event.recording):
            for moment in _passed(inner, inside, program, cost, fine):
                yield moment._replace(weights=moment.weights + weights, activations=moment.activations + activations)
        meter.take(event)
        return
    meter.start()
    meter.take(event)
    yield Moment(meter.clock.span.seconds, meter.peak.weights, meter.peak.activations, meter.peak.scratch)


def _merged(moments: Sequence[Moment], fine: float) -> Iterator[Moment]:
    """Neighbours joined to stretches of at least `fine` seconds, each as high as its highest."""
    seconds, top = 0.0, None
    for moment in moments:
        seconds += moment.seconds
        if top is None or sum(moment[1:]) > sum(top[1:]):
            top = moment
        if seconds >= fine:
            yield top._replace(seconds=seconds)
            seconds, top = 0.0, None
    if top is not None:
        yield top._replace(seconds=seconds)
