"""Numbering: buffers of a body that is written into another get numbers that are new there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Names:
    """The new number of each living buffer of one body; bodies written into the same one share `numbers`."""

    numbers: Iterator[int]
    names: dict[int, int] = field(default_factory=dict)

    def new(self, buffer: int) -> int:
        """The number of a buffer that comes to life."""
        self.names[buffer] = next(self.numbers)
        return self.names[buffer]

    def gone(self, buffer: int) -> int:
        """The number of a buffer that ends."""
        return self.names.pop(buffer)

    def kept(self, kept: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """What survives a call, under the caller's new numbers."""
        return tuple((inner, self.new(outer)) for inner, outer in kept)

    def inherit(self, kept: Iterable[tuple[int, int]], inner: Names) -> None:
        """What survives a body that was written out instead of called."""
        self.names.update((outer, inner.names[survivor]) for survivor, outer in kept)
