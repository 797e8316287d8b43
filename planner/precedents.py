"""Precedents: rehearsals that decide others.

What never had to do without runs alike wherever it has as much, and programs that do the same until one runs out of
memory run out alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import is_
from typing import NamedTuple

from planner.events import Call, Event, Gone
from planner.program import PLACED, Program, Recording
from planner.rehearsal import Rehearsal


class Terms(NamedTuple):
    """Under which a program is rehearsed."""

    capacity: int | None
    """Bytes torch may reserve, None for as many as it likes."""
    expandable: bool
    brim: bool = True
    """Whether a run near the capacity is looked into further."""


@dataclass(slots=True)
class Precedents:
    """Rehearsals of programs of one model on one card."""

    _ran: dict[tuple[int, Terms], tuple[Program, Rehearsal]] = field(default_factory=dict)
    """By the identity of the program, and terms without the capacity."""
    _alone: dict[tuple[int, Terms], tuple[Program, Rehearsal]] = field(default_factory=dict)
    """Those that decide nothing but themselves, by all of that."""
    _failed: dict[Terms, list[tuple[Program, Rehearsal]]] = field(default_factory=dict)

    def find(self, program: Program, terms: Terms) -> Rehearsal | None:
        """What a rehearsal would show, where another shows it."""
        if ran := self._ran.get((id(program), terms._replace(capacity=None))):
            _, seen = ran
            if terms.capacity is None or terms.capacity >= seen.enough:
                return seen
        if alone := self._alone.get((id(program), terms)):
            return alone[1]
        failed = self._failed.get(terms, ())
        return next((seen for other, seen in failed if alike(program, other, seen.reached)), None)

    def keep(self, program: Program, terms: Terms, seen: Rehearsal) -> None:
        """Remember a rehearsal, for itself and for what it decides.

        Without a cap the next call is not rehearsed; where it failed in one that is not written, nobody knows where;
        what was short of memory may do otherwise with more.
        """
        if seen.failed and seen.reached <= len(program.events):
            self._failed.setdefault(terms, []).append((program, seen))
        elif seen.failed or seen.retries or terms.capacity is None:
            self._alone[id(program), terms] = program, seen
        else:
            self._ran[id(program), terms._replace(capacity=None)] = program, seen


def alike(one: Program, other: Program, reached: int) -> bool:
    """Whether the first events of two courses, so many of them, do the same."""
    if (one.family, one.variant.splits) != (other.family, other.variant.splits):
        return False
    mine, theirs = one.events[:reached], other.events[:reached]
    return (
        _same(mine, theirs)
        and _ends(one) == _ends(other)
        and all(_same(a.events, b.events) for a, b in zip(_placed(one, mine), _placed(other, theirs), strict=True))
    )


def _same(some: tuple[Event, ...], others: tuple[Event, ...]) -> bool:
    """As plain tuples, Free(0) and Run(0) are equal."""
    return some == others and all(map(is_, map(type, some), map(type, others)))


def _ends(program: Program) -> set[int]:
    """Which ends of what a call leaves are known: the others go with the denoiser's next call."""
    return {event.place for event in program.events if type(event) is Gone}


def _placed(program: Program, events: tuple[Event, ...]) -> list[Recording]:
    """The bodies that a program has for itself and that these events call, directly or not, in order of calling."""
    found: dict[int, Recording] = {}
    waiting = list(reversed(events))
    while waiting:
        event = waiting.pop()
        if isinstance(event, Call) and event.recording >= PLACED and event.recording not in found:
            found[event.recording] = program.placed[event.recording - PLACED]
            waiting += reversed(found[event.recording].events)
    return list(found.values())
