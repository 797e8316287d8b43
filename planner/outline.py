"""Outline: what moving weights takes at least, worked out without writing the program anew.

Where a component is streamed a pass is cut where its units begin and end.  What travels beside it is then a matter of a
few hundred pieces, however many kernels these have.  Pieces are never slower than their kernels: a host too far ahead
is stopped less often.  Where every module is brought when it is called, a body's share in that is worked out once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from planner.clock import Clock, Row, Span
from planner.cost import Cost, Meter
from planner.events import Await, Call, Drop, Enter, Fetch, Run
from planner.pace import Pace
from planner.program import Component, Program
from planner.streaming import Begin, End, ahead, flat, passes, serial


class Piece(NamedTuple):
    """Part of a pass: a visit to a unit, or what lies between two."""

    span: Span
    most: int
    """Bytes of activations and scratch at its peak."""


class Burden(NamedTuple):
    """What fetching adds to the seconds of a phase, and the bytes that one of its passes then holds."""

    seconds: float
    most: int


class Passes:
    """The passes of one component in a program with its weights on the card."""

    def __init__(self, program: Program, component: Component, cost: Cost) -> None:
        tracing = program.tracing if "denoiser" in component.traits else "none"
        self._pace = cost.pace(tracing)
        calls = [(call.module, call.recording) for call in passes(program, component.name)]
        self._first, self._counts = calls[0], Counter(calls)
        self._pieces = {
            recording: tuple(_pieces(program, component, recording, cost, tracing)) for _, recording in self._counts
        }
        self._plain = {recording: _passed(cut, self._pace)[0] for recording, cut in self._pieces.items()}
        self.burdens = cache(self._burdens)

    def _burdens(self, away: tuple[tuple[str, int], ...]) -> dict[str, Burden]:
        """By phase, when these units, each with its bytes, are fetched at every pass."""
        found: dict[str, Burden] = {}
        for (phase, recording), count in self._counts.items() if away else ():
            first = (phase, recording) == self._first
            passed = [(1, serial), (count - 1, ahead)] if first else [(count, ahead)]
            for times, written in passed:
                if times:
                    seconds, most = _passed(written(self._pieces[recording], dict(away)), self._pace)
                    known = found.get(phase, Burden(0.0, 0))
                    more = known.seconds + times * (seconds - self._plain[recording])
                    found[phase] = Burden(more, max(known.most, most))
        return found


def _pieces(
    program: Program, component: Component, recording: int, cost: Cost, tracing: str
) -> Iterator[Piece | Begin | End]:
    meter = Meter(cost, program, tracing)
    meter.start()
    for event in flat(program, component, recording):
        if isinstance(event, (Begin, End)):
            yield Piece(meter.clock.span, meter.most)
            yield event
            meter.start()
        else:
            meter.take(event)
    yield Piece(meter.clock.span, meter.most)


def _passed(events: Iterable[Piece | Begin | End | Fetch | Await | Drop], pace: Pace) -> tuple[float, int]:
    """Seconds of a pass from idle, and the most bytes it holds of activations, scratch and travelling weights."""
    clock, aboard, due, most, travelling = Clock(), dict[str, int](), dict[str, Row](), 0, 0
    for event in events:
        if isinstance(event, Piece):  # nearly all there is
            clock.pass_(event.span)
            if (held := event.most + travelling) > most:
                most = held
        elif isinstance(event, Fetch):
            size = aboard[event.key] = sum(event.weights)
            travelling += size
            clock.work(pace.set_out(len(event.weights)))
            due[event.key] = clock.fetch(pace.fetch(size))
        elif isinstance(event, Await):
            clock.await_(due.pop(event.key))
        elif isinstance(event, Drop):
            travelling -= aboard.pop(event.key)
    return clock.span.seconds, most


class Chain(NamedTuple):
    """Modules with weights in the order of their calls: seconds of kernels, each module fetched beside the one before.

    What the first one is fetched beside comes before, and is not known here.
    """

    head: float
    """Seconds before the first one begins, or of all where there is none."""
    first: int | None = None
    """Bytes of the first one."""
    inner: float = 0.0
    """Seconds from there until the last one begins."""
    tail: float = 0.0
    """Seconds since then."""
    size: int = 0
    """Bytes of all."""
    longest: float = 0.0
    """Seconds that the kernels wait for one of them, at most."""

    @property
    def seconds(self) -> float:
        """Of all, where the first one is there already, and another: the pass before may have left it."""
        return self.head + self.inner + self.tail - self.longest


class Leaves:
    """What it takes at least to bring each module of a program when it is called."""

    def __init__(self, program: Program, cost: Cost) -> None:
        self._program, self._cost, self._pace = program, cost, cost.pace("none")
        self._known: dict[int, Chain] = {}

    def passes(self, component: str) -> Iterator[tuple[str, Chain]]:
        """Each call of a component that stands on its own, by its phase."""
        for call in passes(self._program, component):
            yield call.module, self._called(call, whole="." not in call.module)

    def _called(self, call: Call, *, whole: bool) -> Chain:
        recording = self._program.recordings[call.recording]
        size = sum(recording.own) if whole else 0
        chain = self._body(call.recording)
        return self._joined(Chain(0.0, size, size=size), chain) if size else chain

    def _body(self, index: int) -> Chain:
        if index not in self._known:
            chain = Chain(0.0)
            for event in self._program.recordings[index].events:
                if isinstance(event, Run):
                    chain = self._joined(
                        chain, Chain(self._cost.kernel(self._program, event.kernel, "none")[1].card[1])
                    )
                elif isinstance(event, Call):
                    chain = self._joined(chain, self._called(event, whole=bool(event.module)))
                elif isinstance(event, Enter) and event.module and event.own:
                    chain = self._joined(chain, Chain(0.0, sum(event.own), size=sum(event.own)))
            self._known[index] = chain
        return self._known[index]

    def _joined(self, one: Chain, other: Chain) -> Chain:
        if one.first is None:
            return other._replace(head=one.head + other.head)
        if other.first is None:
            return one._replace(tail=one.tail + other.head)
        kernels = one.tail + other.head
        waiting = max(0.0, self._pace.fetch(other.first) - kernels)
        return Chain(
            one.head, one.first, one.inner + kernels + waiting + other.inner, other.tail, one.size + other.size,
            max(one.longest, waiting, other.longest),
        )  # fmt: skip
