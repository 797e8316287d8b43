"""Rehearsal: a program replayed in PyTorch's allocator, event by event, under a cap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, permutations, zip_longest
from math import ceil

from planner import workspace
from planner.allocator import Allocator, OutOfMemory
from planner.blocks import Block
from planner.clock import AHEAD
from planner.cost import Cost, late, temporaries
from planner.device import Device
from planner.pace import VIEWS
from planner.program import (
    PLACED,
    Alloc,
    Aside,
    Call,
    Cast,
    Conv,
    Drop,
    Empty,
    Event,
    Fetch,
    Free,
    Join,
    Load,
    Matmul,
    Plain,
    Program,
    Run,
    Stay,
    calls,
)

ROUNDS, PATIENT = 2, 8
"""Replays after which another call of the same body, with no more held than before, is answered from the cache; the
second where memory was short, since then the gaps that each call leaves decide whether a later one finds room."""
ORDERS = 24
"""Orders of loading that are tried: all of four components."""
TRIFLE = 2**20
"""A body that never holds more than this (kSmallSize: the small pool) is replayed as one block."""


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
    missing: int = 0
    """Bytes of the request that could not be met."""
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
    program: Program, device: Device, *, capacity: int | None = None, cost: Cost | None = None, expandable: bool = False
) -> Rehearsal:
    """Replay a program; `capacity` is what torch may reserve in all, None for as much as it likes.

    `expandable` is PYTORCH_ALLOC_CONF's expandable_segments: one growing segment a pool, and next to no fragmentation.
    """
    prices = cost or Cost(device)
    aside = 0 if expandable else _unlucky(tuple(_loads(program.events)))
    room = None if capacity is None else capacity - aside

    def replayed(rounds: int) -> Rehearsal:
        allocator = Allocator(capacity=room, expandable=expandable)
        return _replayed(_Stage(program, device, allocator, prices, rounds), aside)

    seen = replayed(ROUNDS)
    if not seen.retries or seen.failed:
        return seen
    patient = replayed(PATIENT)
    return replace(patient, enough=max(seen.enough, patient.enough))


def _replayed(stage: _Stage, aside: int) -> Rehearsal:
    """The course, event by event, until its end or until memory runs out.  `aside`: bytes of capacity left alone."""
    peaks: dict[str, tuple[int, int]] = {}
    now, failed, missing = "start", "", 0
    try:
        for event, called in calls(stage.events):
            if called:
                now = called
                stage.allocator.reset_peaks()
            stage.take(event, stage.course)
            seen = peaks.get(now, (0, 0))
            here = stage.allocator.peak_allocated, stage.allocator.peak_reserved
            peaks[now] = max(seen[0], here[0]), max(seen[1], here[1])
    except OutOfMemory as error:
        failed, missing = now, error.size
    reserved = max((r for _, r in peaks.values()), default=0)
    return Rehearsal(
        allocated=max((a for a, _ in peaks.values()), default=0), reserved=reserved, enough=reserved + aside,
        retries=stage.allocator.retries, failed=failed, missing=missing,
        phases=tuple((name, a, r) for name, (a, r) in peaks.items()),
    )  # fmt: skip


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
    orders = islice(permutations(loads), ORDERS)
    reserved = [_reserved(size for load in order for size in load.weights) for order in orders]
    return max(reserved) - reserved[0]


def _reserved(sizes: Iterable[int]) -> int:
    """Of the large pool; in the small one order changes next to nothing."""
    allocator = Allocator()
    for size in sizes:
        if size > TRIFLE:
            allocator.malloc(size)
    return allocator.reserved


class _Scene:
    """The buffers and weights of one body while it is replayed."""

    def __init__(self, *, crowded: bool = False) -> None:
        self.crowded = crowded
        """Weights come and go in it and take the gaps that other bodies leave, so each is replayed in full."""
        self.buffers: dict[int, Block | None] = {}
        self.weights: dict[str, list[list[Block | None]]] = {}
        self.seen: dict[int, tuple[int, int, int]] = {}
        """Recording to replays since a request was last tried again, the most that was held before one, and retries."""


class _Stage:
    def __init__(self, program: Program, device: Device, allocator: Allocator, cost: Cost, rounds: int) -> None:
        self.allocator, self.events = allocator, program.events
        self.course = _Scene()
        self._program, self._device, self._cost, self.rounds = program, device, cost, rounds
        self._warm = False
        self._launched = 0
        self._temporaries: dict[int, tuple[int, ...]] = {}
        self._handed: dict[str, list[Block | None]] = {}
        """Room of weights that goes from one body to another."""
        self._early: list[Block | None] | None = None
        """What the kernel that is about to run asked for before the room of its result, and still holds."""

    def take(self, event: Event, scene: _Scene) -> None:
        """Replay one event.  The first four are nearly all there are; a `match` takes five times as long over them."""
        if isinstance(event, Alloc):
            scene.buffers[event.buffer] = self.allocator.malloc(event.size)
        elif isinstance(event, Free):
            self.allocator.free(scene.buffers.pop(event.buffer))
        elif isinstance(event, Run):
            self._run(event.kernel)
        elif isinstance(event, Call):
            self._call(event.recording, event.kept, scene)
        else:
            self._move(event, scene)

    def _move(self, event: Event, scene: _Scene) -> None:
        """Replay one event that concerns weights; others ask nothing of the allocator."""
        match event:
            case Stay(key) if key in self._handed:
                scene.weights.setdefault(key, []).append(self._handed.pop(key))
            case Drop(key, handed=True):
                self._handed[key] = scene.weights[key].pop()
            case Load(key, sizes, stream) | Fetch(key, sizes, stream) | Stay(key, sizes, stream):
                blocks = [self.allocator.malloc(size, stream) for size in sizes]
                scene.weights.setdefault(key, []).append(blocks)
                if isinstance(event, Load):  # a copy for which the host waits, behind the kernels
                    self.allocator.settle()
            case Drop(key, _, late, _, older):
                self._release(scene.weights[key].pop(0 if older else -1), late=late)
            case Cast(component, sizes) if scene.weights.get(component):  # else it is cast on the host
                self._cast(scene.weights[component], sizes)
            case Empty():
                self.allocator.empty_cache()
            case Join() | Aside():
                self.allocator.settle()

    def _call(self, recording: int, kept: tuple[tuple[int, int], ...], scene: _Scene) -> None:
        body = self._cost.body(self._program, recording, "none")
        rounds, most, retries = scene.seen.get(recording, (0, 0, 0))
        held = self.allocator.allocated
        if retries != self.allocator.retries:
            rounds = 0
        known = rounds >= self.rounds and held <= most and not scene.crowded
        scene.seen[recording] = rounds + 1, max(most, held), self.allocator.retries
        if known or (self._warm and body.most <= TRIFLE and not scene.crowded):
            if not known:
                self.allocator.free(self.allocator.malloc(body.most))
            for inner, buffer in kept:
                scene.buffers[buffer] = self.allocator.malloc(body.sizes[inner])
            return
        inside = _Scene(crowded=scene.crowded or recording >= PLACED)
        events = self._program.body(recording)
        for event, following in zip_longest(events, islice(events, 1, None)):
            if isinstance(event, Alloc) and isinstance(following, Run):
                self._begin(following.kernel)
            self.take(event, inside)
        for inner, buffer in kept:
            scene.buffers[buffer] = inside.buffers[inner]

    def _begin(self, index: int) -> None:
        """A convolution copies its input before it asks for the room of its result, and some do all their work."""
        kernel = self._program.kernels[index]
        if isinstance(kernel, Conv):
            self._early = [self.allocator.malloc(self._asked(index)[0])]
        elif late(kernel, self._device):
            self._early = self._worked(index)

    def _asked(self, index: int) -> tuple[int, ...]:
        """Temporaries of a kernel, as they were last asked for."""
        if index not in self._temporaries:
            self._temporaries[index] = temporaries(self._program.kernels[index], self._device)
        return self._temporaries[index]

    def _run(self, index: int) -> None:
        kernel = self._program.kernels[index]
        if not (isinstance(kernel, Plain) and kernel.name in VIEWS):
            self._launched += 1
            self.allocator.settle(self._launched - AHEAD)  # the host gets no further ahead of the card
        if not self._warm and isinstance(kernel, Matmul):
            self._warm = True
            self.allocator.malloc(workspace.cublas(self._device.compute_capability))
        if isinstance(kernel, Conv):
            if self._early is None:  # its result is not new, or not the body's own
                self._begin(index)
            sizes = self._asked(index)
            held = [*(self._early or ()), self.allocator.malloc(sizes[1])]
            if not self.allocator.can_malloc(sizes[-1]):
                self._lean(index, kernel)
        else:
            held = self._worked(index) if self._early is None else self._early
        self._early = None
        self._release(held)

    def _worked(self, index: int) -> list[Block | None]:
        """A kernel's requests are made and given back; those that its end gives back."""
        held: list[Block | None] = []
        for size in self._asked(index):
            if size < 0:
                self.allocator.free(held[~size])
                held[~size] = None
            else:
                held.append(self.allocator.malloc(size))
        return held

    def _lean(self, index: int, conv: Conv) -> None:
        """Short of memory, torch takes the next engine that finds room, and keeps to it (Conv_v8.cpp, try_configs)."""
        *copies, refused = self._temporaries[index]
        for size in workspace.engines(conv, self._device, every=True):
            if size < refused and self.allocator.can_malloc(size):
                self._temporaries[index] = (*copies, size)
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
        for block in blocks:
            if late:
                self.allocator.free_late(block, self._launched)
            else:
                self.allocator.free(block)
