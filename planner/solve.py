"""The search: one offer per group, everything within memory in every phase, fastest first.  Pure and exact.

A multiple-choice knapsack with a row per phase.  Dominated offers go, offers that cannot fit go, and the rest is
searched depth first under two bounds: each group at its own best, and the Lagrangian bound that prices memory
(Fisher 1981, doi:10.1287/mnsc.27.1.1).  Times are counted in whole nanoseconds and priced in integers, so sums and
bounds are exact and the answer does not depend on the order of offers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import mul
from typing import Literal, NamedTuple

UNLIMITED = 2**62
"""Stands for host RAM nobody limits; sums of bytes must stay below it."""
FIELD = 64
"""Bits of one row in a packed number: a sign and every sum of bytes up to `UNLIMITED`."""
SCALE = 64
"""Prices are fixed-point numbers with this many fractional bits."""
ROUNDS = 60
"""Steps of the price search; in practice the bound moves little after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One option of one group, priced.  `memory` has a row per phase: what it adds there, in bytes."""

    name: str
    """Identity inside its group."""
    seconds: float
    memory: tuple[int, ...]
    host: int = 0
    fidelity: int = 0
    """0 exact, 1 faithful, 2 lossy."""
    changes: int = 0
    """How many techniques it switches on."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Everything that has a limit."""
        return (*self.memory, self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One scene: groups to choose from, bytes each phase may hold, and what is there before any offer."""

    label: str
    groups: tuple[tuple[Offer, ...], ...]
    capacity: int
    base: tuple[int, ...]
    host: int | None = None
    seconds: float = 0.0

    @property
    def limits(self) -> tuple[int, ...]:
        """Bytes left for the offers in each phase, then on the host."""
        return (*(self.capacity - row for row in self.base), UNLIMITED if self.host is None else self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A choice, one offer per group.  No choice that is feasible and accepted takes less than `bound` seconds."""

    label: str
    choice: tuple[Offer, ...]
    seconds: float
    memory: tuple[int, ...]
    host: int
    bound: float
    explored: int = field(compare=False)


class NoSolution(Exception):
    """No choice is feasible and accepted; carries the one that needs least memory, and what would do.

    `capacity` and `host` are the smallest that would do together with the other limit as it is, or, where no choice
    keeps that one, together with each other.  `phase` is where `choice` is highest and `over` its excess there in
    bytes, at most zero when memory is not what is missing; `refused` counts the feasible choices not accepted.
    """

    def __init__(self, choice: Solution, *, over: int, host: int, refused: int) -> None:
        self.choice, self.over, self.host, self.refused = choice, over, host, refused
        self.capacity = max(choice.memory)
        self.phase = choice.memory.index(self.capacity)
        super().__init__(f"{over} bytes over in phase {self.phase}: needs {self.capacity}, and {host} of host RAM")


class Item(NamedTuple):
    """An offer inside the search, measured from its group's least: whatever is left at zero is already paid for."""

    price: int
    time: int
    changes: int
    name: str
    load: int
    offer: Offer


class Scene(NamedTuple):
    """A problem made ready: groups in order of price, the room left above every group's least, and that least."""

    groups: list[list[Item]]
    room: int
    guard: int
    price: int
    time: int
    changes: int


class Aim(NamedTuple):
    """What a search is after: fewest changes if `frugal`, then least time, within `fidelity` and `limit` (ns)."""

    fidelity: int
    limit: float = math.inf
    frugal: bool = False
    enough: int = -1
    """A time with which the search is content."""


Key = tuple[int, int, int, tuple[str, ...]]
"""Changes, nanoseconds, scene, names: the order in which choices are preferred."""


def nanoseconds(seconds: float) -> int:
    """Time as it is summed here."""
    return round(seconds * 1e9)


def pack(rows: Iterable[int]) -> int:
    """All rows in one number, so that adding and comparing them takes one operation; negative rows borrow."""
    packed = 0
    for row in rows:
        packed = (packed << FIELD) + row
    return packed


def undominated(offers: Iterable[Offer], *, frugal: bool) -> list[Offer]:
    """Without those to which another is preferable in any company: nowhere worse, and first in order."""
    kept: list[tuple[Offer, int]] = []
    weight = (lambda offer: offer.changes) if frugal else (lambda _: 0)
    for offer in sorted(offers, key=lambda o: (nanoseconds(o.seconds), weight(o), o.name)):
        guard = pack([1 << FIELD - 1] * len(offer.rows))
        load = pack((offer.rows)) + guard
        if not any(weight(k) <= weight(offer) and (load - less) & guard == guard for k, less in kept):
            kept.append((offer, load - guard))
    return [offer for offer, _ in kept]
