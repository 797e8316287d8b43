"""Scores: a body as a flat list of what it asks of the allocator, the requests of its kernels included.

Written once for all rehearsals on a card, since a kernel's requests never change; those of a convolution do where
memory is short, so they are left to whoever plays the score.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, zip_longest
from typing import NamedTuple

from planner.attention import is_copied
from planner.cost import late, temporaries
from planner.device import Device
from planner.events import Alloc, Await, Call, Enter, Event, Exit, Free, Run
from planner.kernels import Attention, Conv, Kernel, Matmul, Plain
from planner.pace import VIEWS
from planner.program import PLACED, Program, Recording

LAUNCH = -1
OTHER = -2
FEW = 48
"""Events of a body, those of its calls included, that are replayed sooner than looked up: of 12 to 64, rehearsals of
SDXL, FLUX.1 and Stable Diffusion 1.5 were quickest with 32 to 48."""


class Begin(NamedTuple):
    """A convolution is about to run: it copies its input before it asks for the room of its result."""

    kernel: int


class Score(NamedTuple):
    """Steps in order: the number of a buffer, and the bytes it takes or 0 where it is given back.

    At `LAUNCH` a kernel starts, a matrix product where the number is 1; at `OTHER` it is a place in `others`.
    """

    steps: tuple[tuple[int, int], ...]
    others: tuple[Event | Begin, ...]


class Scores:
    """Scores for one card, by body.  Bodies that a program has for itself are known by identity."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._known: dict[tuple[str, int], tuple[Recording | None, Score]] = {}

    def of(self, program: Program, recording: int) -> Score:
        """The score of a body."""
        own = program.placed[recording - PLACED] if recording >= PLACED else None
        key = program.family, recording if own is None else id(own)
        if key not in self._known:
            self._known[key] = own, self._written(program, program.body(recording))
        return self._known[key][1]

    def kernel(self, program: Program, index: int) -> Score:
        """The score of a kernel that runs by itself."""
        key = program.family, ~index
        if key not in self._known:
            self._known[key] = None, self._written(program, (Run(index),))
        return self._known[key][1]

    def _written(self, program: Program, events: tuple[Event, ...]) -> Score:
        writer = _Writer(program, self._device)
        writer.write(events, lambda buffer: buffer)
        return Score(tuple(writer.steps), tuple(writer.others))


class _Writer:
    def __init__(self, program: Program, device: Device) -> None:
        self._program, self._device = program, device
        self.steps: list[tuple[int, int]] = []
        self.others: list[Event | Begin] = []
        self._spare = 0
        """The number given last to a buffer that no event names."""

    def write(self, events: tuple[Event, ...], name: Callable[[int], int]) -> None:
        """Append events; `name` says how the buffers of these are numbered here."""
        early: list[int | None] | None = None
        done = 0
        for place, (event, following) in enumerate(zip_longest(events, islice(events, 1, None))):
            if isinstance(event, Alloc):
                if isinstance(following, Run):
                    early = self._early(following.kernel)
                    done = self._replaced(event, following, events, place + 2, name)
                if event.size:
                    self.steps.append((name(event.buffer), event.size))
                else:
                    self._other(Alloc(name(event.buffer), 0))
            elif isinstance(event, Free):
                if place >= done:
                    self.steps.append((name(event.buffer), 0))
            elif isinstance(event, Run):
                self._run(event, early)
                early = None
            elif isinstance(event, Call):
                self._call(event, name)
            elif not isinstance(event, (Await, Enter, Exit)):  # which ask for nothing
                self._other(event)

    def _early(self, index: int) -> list[int | None] | None:
        """What a kernel asks for before the room of its result, as convolutions and some attentions do."""
        kernel = self._program.kernels[index]
        if isinstance(kernel, Conv):
            self._other(Begin(index))
            return []
        before, _ = late(kernel, self._device)
        return self._work([], temporaries(kernel, self._device)[:before]) if before else None

    def _replaced(
        self, output: Alloc, run: Run, events: tuple[Event, ...], start: int, name: Callable[[int], int]
    ) -> int:
        """Give back what goes between an attention and the caller's copy of its output; the place behind that."""
        kernel = self._program.kernels[run.kernel]
        if isinstance(kernel, Attention) and is_copied(kernel, self._device):
            for event in islice(events, start, None):
                if not isinstance(event, Free) or event.buffer == output.buffer:
                    break
                self.steps.append((name(event.buffer), 0))
                start += 1
        return start

    def _run(self, run: Run, early: list[int | None] | None) -> None:
        kernel = self._program.kernels[run.kernel]
        self._launch(kernel)
        if isinstance(kernel, Conv):
            if early is None:  # its result is not new, or not the body's own
                self._other(Begin(run.kernel))
            self._other(run)
            return
        before = 0 if early is None else late(kernel, self._device)[0]
        for number in self._work(early or [], temporaries(kernel, self._device)[before:]):
            if number is not None:
                self.steps.append((number, 0))

    def _launch(self, kernel: Kernel) -> None:
        if not (isinstance(kernel, Plain) and kernel.name in VIEWS):
            self.steps.append((int(isinstance(kernel, Matmul)), LAUNCH))

    def _work(self, held: list[int | None], sizes: tuple[int, ...]) -> list[int | None]:
        """Requests of a kernel, made and given back beside those it holds; all that its end gives back."""
        for size in sizes:
            if size > 0:
                self._spare -= 1
                self.steps.append((self._spare, size))
                held.append(self._spare)
            elif size == 0:
                held.append(None)
            elif (number := held[~size]) is not None:
                self.steps.append((number, 0))
                held[~size] = None
        return held

    def _call(self, call: Call, name: Callable[[int], int]) -> None:
        """A call; short bodies that move no weights are written out."""
        body = self._program.body(call.recording)
        if len(body) > FEW or not all(isinstance(event, (Alloc, Free, Run)) for event in body):
            kept = tuple((inner, name(buffer)) for inner, buffer in call.kept)
            self._other(call._replace(kept=kept))
            return
        names = {inner: name(buffer) for inner, buffer in call.kept}

        def inside(number: int) -> int:
            if number not in names:
                self._spare -= 1
                names[number] = self._spare
            return names[number]

        self.write(body, inside)

    def _other(self, event: Event | Begin) -> None:
        self.steps.append((len(self.others), OTHER))
        self.others.append(event)
