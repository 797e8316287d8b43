"""What is asked of the search and what it answers, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One option of one group, priced.  `memory` has a row per phase: the bytes it adds there."""

    name: str
    """Identity inside its group."""
    seconds: float
    memory: tuple[int, ...]
    host: int = 0
    fidelity: int = 0
    """0 exact, 1 faithful, 2 lossy."""
    changes: int = 0
    """How many techniques it switches on."""
    sketch: bool = False
    """Seconds and memory are only known to be no less; whoever made the offer can say more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One scene: the groups, the bytes every phase and the host may hold, and what is there before any offer.

    What the scene itself costs in fidelity or changes is said by a group with a single offer.
    """

    label: str
    groups: tuple[tuple[Offer, ...], ...]
    capacity: int
    base: tuple[int, ...]
    host: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A choice, one offer per group, and its totals.  `bound` seconds: nothing feasible and accepted is faster."""

    label: str
    choice: tuple[Offer, ...]
    seconds: float
    memory: tuple[int, ...]
    host: int
    bound: float
    explored: int = field(compare=False)


class NoSolution(Exception):
    """Nothing is feasible and accepted; carries the choice that needs least memory, and what would do.

    `capacity` is the least that would do, host RAM as it is, or freely where no choice keeps to that; `host` the least
    with the capacity as it is, or with `capacity` where that is more.  `over` is the excess of `choice` in `phase`, in
    bytes, not positive when memory is not what is short.  `refused` counts feasible choices that were not accepted.
    """

    def __init__(self, choice: Solution, *, over: int, host: int, refused: int) -> None:
        self.choice, self.over, self.host, self.refused = choice, over, host, refused
        self.capacity = max(choice.memory)
        self.phase = choice.memory.index(self.capacity)
        super().__init__(f"Least memory: {self.capacity} bytes in phase {self.phase}, {over} over; host RAM: {host}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Why an offer was not chosen, had the others stayed as they are.

    `amount` is bytes over (`over`, in `phase`, and `host`) or seconds more, negative where it is faster: then it
    intervenes more (`within slack`), or it would be preferred but was not accepted (`refused`).
    """

    group: int
    offer: Offer
    reason: Literal["over", "host", "slower", "within slack", "refused"]
    amount: float
    phase: int | None = None


def filled(problem: Problem, offers: Sequence[Offer]) -> Problem:
    """The problem with one offer of each group known in full."""
    pairs = zip(offers, problem.groups, strict=True)
    groups = (tuple(offer if each.name == offer.name else each for each in group) for offer, group in pairs)
    return replace(problem, groups=tuple(groups))


def nanoseconds(seconds: float) -> int:
    """Time as it is summed here."""
    return round(seconds * 1e9)
