"""A slow, plain reading of programs to hold the cost model against, and random programs to read."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from planner.cost import scratch
from planner.device import Device
from planner.events import Alloc, Call, Cast, Drop, Enter, Event, Exit, Free, Load, Run  # fmt: skip
from planner.kernels import Attention, Conv, Kernel, Matmul, Plain  # fmt: skip
from planner.pace import Pace
from planner.program import Component, Program, Recording, Variant, calls  # fmt: skip

GRAIN = 512
MiB = 2**20
CUBLAS = 4096 * 2 * 1024 + 16 * 8 * 1024
"""Bytes of `:4096:2:16:8`, the workspace of torch's first cuBLAS handle below compute capability 9."""


def grains(size: int) -> int:
    """Bytes the allocator hands out for a request."""
    return (size + GRAIN - 1) // GRAIN * GRAIN


def course(*events: Event, bodies: tuple[Recording, ...] = (), **changes: object) -> Program:
    """A program of one outermost body."""
    facts: dict[str, object] = {
        "pipeline": "Pipeline", "variant": Variant(), "components": (), "chain": (), "excluded": frozenset(),
        "kernels": (), "recordings": (*bodies, Recording(name="Pipeline", own=(), events=events)),
        "course": len(bodies),
    }  # fmt: skip
    return Program(**(facts | changes))  # type: ignore[arg-type]


def body(*events: Event, own: tuple[int, ...] = ()) -> Recording:
    """One body that a course can call."""
    return Recording(name="Body", own=own, events=events)


@dataclass
class Reading:
    """Everything held at one time, every tensor under a name of its own."""

    device: Device
    program: Program
    held: dict[object, int] = field(default_factory=dict)
    weights: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    moments: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    host: float = 0.0
    card: float = 0.0
    """Both clocks, which are even again after each event of the course."""
    fresh: int = 0
    most: int = 0
    """Tensors held at the same time, at most."""

    def note(self, phase: str, scratch: int = 0) -> None:
        weights = sum(grains(size) for loads in self.weights.values() for load in loads for size in load)
        loaded = sum(len(load) for loads in self.weights.values() for load in loads)
        self.most = max(self.most, len(self.held) + loaded)
        self.moments.setdefault(phase, []).append((weights, sum(self.held.values()), scratch))

    def read(self, event: Event, names: dict[int, int], phase: str, tracing: str) -> None:
        pace = Pace(self.device, tracing)
        match event:
            case Alloc(buffer, size):
                self.fresh += 1
                names[buffer] = self.fresh
                self.held[self.fresh] = grains(size)
            case Free(buffer):
                del self.held[names.pop(buffer)]
            case Run(kernel):
                self.note(phase, scratch(self.program.kernels[kernel], self.device))
                this = self.program.kernels[kernel]
                self.host += pace.issue(this)
                self.card = max(self.card, self.host) + pace.kernel(this)
            case Call(recording, _, kept):
                inside: dict[int, int] = {}
                for inner in self.program.body(recording):
                    self.read(inner, inside, phase, tracing)
                assert {local for local, _ in kept} == set(inside), "what survives a body is what its caller keeps"
                names.update({outer: inside[local] for local, outer in kept})
            case Load(key, sizes):
                self.weights.setdefault(key, []).append(sizes)
                self.host = self.card = self.now + pace.load(sum(sizes), len(sizes), whole=bool(key))
            case Drop(key, copied):
                size = sum(map(grains, self.weights[key].pop()))
                if copied:
                    self.host = self.card = self.now + pace.unload(size)
            case Cast(component, sizes):
                self.weights[component].pop()
                self.weights[component].append(sizes)
        self.note(phase)

    @property
    def now(self) -> float:
        return max(self.host, self.card)


def read(program: Program, device: Device, held: int = 0) -> Reading:
    """Read a program from start to end, every call written out; `held` bytes are there from the start."""
    reading = Reading(device=device, program=program)
    if held:
        reading.held["before"] = held
    denoisers = {c.name for c in program.components if "denoiser" in c.traits}
    phase, tracing, names = "start", "none", dict[int, int]()
    inside = 0
    for event, called in calls(program.recordings[program.course].events):
        before = reading.now
        if called:
            phase = called
            tracing = program.tracing if phase in denoisers else "none"
            reading.host += Pace(device, tracing).entry()
        reading.read(event, names, phase, tracing if called or inside else "none")
        inside += isinstance(event, Enter) - isinstance(event, Exit)
        reading.host = reading.card = reading.now
        reading.seconds[phase] = reading.seconds.get(phase, 0.0) + reading.now - before
    return reading


SIZES = st.sampled_from([1, 100, 512, 513, 5_000, 2**20, 3 * 2**20 + 1, 12 * 2**20])
MODULES = ("text_encoder", "unet", "vae.decode", "controlnet")


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    edge = draw(st.sampled_from([8, 33, 128]))
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    match draw(st.sampled_from(["plain", "matmul", "conv", "attention"])):
        case "plain":
            return Plain("add", 10, draw(SIZES), scratch=draw(st.just(0) | SIZES))
        case "matmul":
            return Matmul(dtype, 10**6, draw(SIZES))
        case "conv":
            shape = (1, 32, edge, edge)
            return Conv(dtype, shape, (32, 32, 3, 3), shape, (1, 1), input_last=draw(st.booleans()))
    return Attention(dtype, 2, 4, edge, edge, 40, 40, backend=draw(st.sampled_from(["auto", "math", "sliced"])))


@st.composite
def bodies(draw: st.DrawFn, survivors: list[int], kinds: int, modules: tuple[str, ...]) -> tuple[list[Event], int]:
    """Events of one body and how many of its buffers survive; `survivors` says it of the bodies it may call."""
    events: list[Event] = []
    live: list[int] = []
    born = 0
    for step in draw(st.lists(st.sampled_from(["alloc", "alloc", "free", "run", "call", "enter"]), max_size=9)):
        if step == "alloc":
            events.append(Alloc(born, draw(SIZES)))
            live.append(born)
            born += 1
        elif step == "free" and live:
            events.append(Free(live.pop(draw(st.integers(0, len(live) - 1)))))
        elif step == "run" and kinds:
            events.append(Run(draw(st.integers(0, kinds - 1))))
        elif step == "enter":
            events += [Enter(draw(st.sampled_from(modules)), draw(st.sampled_from([(), (700,)]))), Exit()]
        elif step == "call" and survivors:
            callee = draw(st.integers(0, len(survivors) - 1))
            kept = tuple(enumerate(range(born, born + survivors[callee])))
            events.append(Call(callee, draw(st.sampled_from(modules)), kept))
            live += [outer for _, outer in kept]
            born += len(kept)
    return _survivors_first(events, live)


def _survivors_first(events: list[Event], live: list[int]) -> tuple[list[Event], int]:
    """Number the buffers that survive from zero, so that a caller knows them by their count."""
    order = {old: new for new, old in enumerate(live)}

    def name(buffer: int) -> int:
        return order.setdefault(buffer, len(order))

    named: list[Event] = []
    for event in events:
        match event:
            case Alloc(buffer, size):
                named.append(Alloc(name(buffer), size))
            case Free(buffer):
                named.append(Free(name(buffer)))
            case Call(recording, module, kept):
                named.append(Call(recording, module, tuple((inner, name(outer)) for inner, outer in kept)))
            case _:
                named.append(event)
    return named, len(live)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Small valid programs whose weights are nowhere yet."""
    table = tuple(draw(st.lists(kernels(), min_size=1, max_size=4)))
    recordings: list[Recording] = []
    survivors: list[int] = []
    for index in range(draw(st.integers(0, 4))):
        events, kept = draw(bodies(survivors, len(table), ("", "block", "to_q")))
        own = tuple(draw(st.lists(SIZES, max_size=2)))
        recordings.append(Recording(name=f"Body{index}", own=own, events=tuple(events)))
        survivors.append(kept)
    events, _ = draw(bodies(survivors, len(table), ("", *MODULES)))
    names = ("text_encoder", "unet", "vae", "controlnet")
    components = tuple(
        Component(
            name=name, kind=name.title(), dtype="float16", weights=tuple(draw(st.lists(SIZES, min_size=1, max_size=3))),
            anchored=tuple(draw(st.lists(SIZES, max_size=1))), traits=frozenset({"denoiser"} if name == "unet" else ()),
        )
        for name in names
    )  # fmt: skip
    if draw(st.booleans()):
        place = draw(st.integers(0, len(events)))
        events.insert(place, Cast("vae", tuple(size * 2 for size in components[2].weights)))
    return Program(
        pipeline="Pipeline", variant=Variant(), components=components, chain=("text_encoder", "unet", "vae"),
        excluded=frozenset(draw(st.sampled_from([(), ("controlnet",), ("text_encoder",)]))),
        tracing=draw(st.sampled_from(["none", "jit", "compile"])), kernels=table,
        recordings=(*recordings, Recording(name="Pipeline", own=(), events=tuple(events))), course=len(recordings),
    )  # fmt: skip
