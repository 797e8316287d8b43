"""Clock: the host launches, the card follows as soon as it can, and now and then one waits for the other.

How a stretch of the program moves both clocks is a small matrix over (max, +): each clock at its end is the latest of
what began with the host and what began with the card.  Such matrices multiply, so a body's is worked out once.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple, TypeAlias

Row: TypeAlias = tuple[float, float]
"""Seconds after the host, and after the card, was free at the start; -inf where it does not matter."""

AHEAD = 1024
"""Launches that may wait for the card before the host has to: the depth of CUDA's queue of a stream."""


class Span(NamedTuple):
    """A stretch of the program: when host and card are through with it, and how many kernels it launches."""

    launches: int
    host: Row
    card: Row

    @property
    def seconds(self) -> float:
        """From both idle until both are through."""
        return max(*self.host, *self.card)


def kernel(host: float, card: float) -> Span:
    """One kernel: seconds of the host to launch it, and of the card to run it."""
    return Span(1, (host, -inf), (host + card, card))


class Clock:
    """Both clocks while spans pass, from idle."""

    def __init__(self) -> None:
        self._launches = 0
        self._host: Row = (0.0, -inf)
        self._card: Row = (-inf, 0.0)
        self._copies: Row = (-inf, -inf)
        self._ends: deque[tuple[int, Row]] = deque()

    @property
    def span(self) -> Span:
        """All that passed, as one."""
        return Span(self._launches, self._host, self._card)

    def pass_(self, span: Span) -> None:
        """Let a kernel or a body pass.  The host stops where the card has too many launches waiting."""
        host, card = self._host, self._card
        self._host, self._card = _after(span.host, host, card), _after(span.card, host, card)
        launches = self._launches = self._launches + span.launches
        ends = self._ends
        ends.append((launches, self._card))
        while ends[0][0] <= launches - AHEAD:
            self._host = _later(self._host, ends.popleft()[1])

    def wait(self, seconds: float) -> None:
        """Let a copy pass for which the host waits, and which waits for the card."""
        late = _later(self._host, self._card)
        self._host = self._card = (late[0] + seconds, late[1] + seconds)

    def work(self, seconds: float) -> None:
        """Let the host be busy with something else than launching."""
        self._host = (self._host[0] + seconds, self._host[1] + seconds)

    def fetch(self, seconds: float) -> Row:
        """Let a copy set out beside the kernels, behind the copies before it; returns when it will have arrived."""
        start = _later(self._copies, _later(self._host, self._card))
        self._copies = (start[0] + seconds, start[1] + seconds)
        return self._copies

    def await_(self, due: Row) -> None:
        """Host and card wait for what was fetched (diffusers synchronises the copying stream)."""
        self._host, self._card = _later(self._host, due), _later(self._card, due)


def _after(row: Row, host: Row, card: Row) -> Row:
    after_host, after_card = row
    a, b = after_host + host[0], after_card + card[0]
    c, d = after_host + host[1], after_card + card[1]
    return a if a > b else b, c if c > d else d


def _later(one: Row, other: Row) -> Row:
    a, b = one
    c, d = other
    return a if a > c else c, b if b > d else d
