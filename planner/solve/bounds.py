"""What can be known of a problem before searching it: offers that cannot matter, and what memory is worth.

Rows of bytes are packed into one integer, so that a step of the search adds and compares all phases at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import mul
from typing import NamedTuple

from planner.solve.problem import Problem, nanoseconds

UNLIMITED = 2**62
"""Stands for a limit nobody set; sums of bytes stay below it."""
FIELD = 64
"""Bits of one row in a packed number, the uppermost for the sign."""
SCALE = 64
"""Fractional bits of a price."""
ROUNDS = 30
"""Steps of the search for prices at most; on 8 groups of 40 offers and 12 phases, more cost more than they saved."""

Rows = tuple[int, ...]


class Bare(NamedTuple):
    """An offer as far as the search looks at it; `rows` are the bytes in each phase, then on the host."""

    time: int
    changes: int
    name: str
    rows: Rows
    load: int
    """The rows, packed."""


class Item(NamedTuple):
    """An offer in the search.  All but the name counts from the least of its group, which is paid beforehand."""

    price: int
    time: int
    changes: int
    name: str
    load: int


class Scene(NamedTuple):
    """A problem made ready: the groups by price, the room above the least, and what the least costs."""

    groups: list[list[Item]]
    room: int
    guard: int
    price: int
    time: int
    changes: int


def pack(rows: Iterable[int]) -> int:
    """All rows in one number, so that one operation adds or compares them; negative rows borrow from the next."""
    packed = 0
    for row in rows:
        packed = (packed << FIELD) + row
    return packed


def guards(rows: Rows) -> int:
    """The sign bits: after adding them to a packed difference, those still set tell the rows that are not negative."""
    return pack([1 << FIELD - 1] * len(rows))


def least(group: list[Bare]) -> Bare:
    """The least of everything, each from whichever offer has it."""
    rows = tuple(map(min, *(bare.rows for bare in group))) if len(group) > 1 else group[0].rows
    return Bare(min(bare.time for bare in group), min(bare.changes for bare in group), "", rows, pack(rows))


def undominated(group: list[Bare]) -> list[Bare]:
    """Without offers to which another is preferred in any company: before them in order, and in no row more."""
    kept: list[Bare] = []
    guard = guards(group[0].rows) if group else 0
    for bare in sorted(group):
        room, changes = bare.load + guard, bare.changes
        for other in kept:
            if (room - other.load) & guard == guard and other.changes <= changes:
                break
        else:
            kept.append(bare)
    return kept


def possible(groups: list[list[Bare]], limits: Rows, time: float) -> tuple[list[list[Bare]], list[Bare]] | None:
    """The groups without offers that break a limit or exceed the time even when every other group is at its least.

    With what is least in each; None where one has no offer left.
    """
    guard, packed = guards(limits), pack(limits)
    while all(groups):
        lows = [least(group) for group in groups]
        spare = time - sum(low.time for low in lows)
        room = packed - sum(low.load for low in lows) + guard
        kept = [
            [b for b in group if b.time - low.time <= spare and (room - b.load + low.load) & guard == guard]
            for group, low in zip(groups, lows, strict=True)
        ]
        if kept == groups:
            return groups, lows
        groups = kept
    return None


def multipliers(groups: list[list[tuple[int, tuple[float, ...]]]]) -> list[float]:
    """Nanoseconds for the whole of each row, given offers as their time and their share of each row.

    Subgradient ascent with Polyak's step towards the best time known.  Any prices give a true bound, these a high one.
    """
    price = found = [0.0] * len(groups[0][0][1])
    best, pace, goal = -math.inf, 1.0, 1.0 + sum(max(time for time, _ in group) for group in groups)
    for _ in range(ROUNDS):
        totals = [[time + sum(map(mul, price, share)) for time, share in group] for group in groups]
        picks = [group[total.index(min(total))] for group, total in zip(groups, totals, strict=True)]
        excess = [sum(row) - 1 for row in zip(*(share for _, share in picks), strict=True)]
        value = sum(map(min, totals)) - sum(price)
        if max(excess) <= 0:
            goal = min(goal, sum(time for time, _ in picks))
        if value > best:
            best, found = value, price
        else:
            pace *= 0.85
        norm = sum(e * e for e, p in zip(excess, price, strict=True) if e > 0 or p > 0)
        if norm == 0 or goal - best < 1:
            break
        price = [max(0.0, p + pace * (goal - value) / norm * e) for p, e in zip(price, excess, strict=True)]
    return found


def prices(groups: list[list[Bare]], lows: list[Bare], room: Rows) -> dict[int, int]:
    """Fixed-point nanoseconds per byte of each row that can overflow the room above the least."""
    most = [tuple(map(max, zip(*(bare.rows for bare in group), strict=True))) for group in groups]
    above = (sum(high[row] - low.rows[row] for high, low in zip(most, lows, strict=True)) for row in range(len(room)))
    tight = [row for row, peak in enumerate(above) if peak > room[row]]
    if not tight:
        return {}
    shares = [
        [(b.time - low.time, tuple((b.rows[row] - low.rows[row]) / room[row] for row in tight)) for b in group]
        for group, low in zip(groups, lows, strict=True)
    ]
    found = zip(tight, multipliers(shares), strict=True)
    return {row: int(price * 2**SCALE / room[row]) for row, price in found}


def prepare(problem: Problem, groups: list[list[Bare]], limit: float) -> Scene | None:
    """The scene to search for less than `limit` ns; None when plainly nothing in it will do."""
    start = nanoseconds(problem.seconds)
    limits = (*(problem.capacity - row for row in problem.base), UNLIMITED if problem.host is None else problem.host)
    if (left := possible(groups, limits, limit - start)) is None:
        return None
    groups, lows = left
    room = tuple(limit - sum(low.rows[row] for low in lows) for row, limit in enumerate(limits))
    time = start + sum(low.time for low in lows)
    if min(room) < 0 or time > limit:
        return None
    price = prices(groups, lows, room)
    items = [_items(group, low, price) for group, low in zip(groups, lows, strict=True)]
    return Scene(
        groups=[[item._replace(price=item.price - line[0].price) for item in line] for line in items],
        room=pack(room) + guards(room),
        guard=guards(room),
        price=(time << SCALE)
        + sum(line[0].price for line in items)
        - sum(each * room[row] for row, each in price.items()),
        time=time,
        changes=sum(low.changes for low in lows),
    )


def _items(group: list[Bare], low: Bare, price: dict[int, int]) -> list[Item]:
    """The offers of a group by price, counted from the least."""
    rows = [(row, each, low.rows[row]) for row, each in price.items()]
    return sorted(
        Item(
            (bare.time - low.time << SCALE) + sum(each * (bare.rows[row] - less) for row, each, less in rows),
            bare.time - low.time, bare.changes - low.changes, bare.name, bare.load - low.load,
        )
        for bare in group
    )  # fmt: skip
