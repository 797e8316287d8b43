"""Outline: what streaming a component takes at least, worked out from its passes without writing the program anew.

A pass is cut where its units begin and end.  What travels beside it is then a matter of a few hundred pieces, however
many kernels these have.  Pieces are never slower than their kernels: a host too far ahead is stopped less often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from planner.clock import Clock, Row, Span
from planner.cost import Cost, Meter
from planner.pace import Pace
from planner.program import Await, Component, Drop, Fetch, Program
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
            most = max(most, event.most + travelling)
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
