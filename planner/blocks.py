"""Blocks of device memory and the pools that keep the idle ones: what the allocator's rules work on.

A segment is a row of blocks linked left and right.  An idle block is `free` (memory is behind it) or `unmapped`
(addresses only, in an expandable segment); two neighbours in the same idle state are always one block.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal

ADDRESS_BITS = 64
State = Literal["used", "free", "unmapped"]


@dataclass(slots=True, eq=False)
class Block:
    """A stretch of device memory, in bytes; to its user a handle, nothing to touch."""

    address: int
    size: int
    pool: Pool = field(repr=False)
    left: Block | None = field(default=None, repr=False)
    right: Block | None = field(default=None, repr=False)
    state: State = "used"

    def cut(self, size: int) -> Block:
        """Shorten the block to `size` bytes and return the rest, used."""
        rest = Block(self.address + size, self.size - size, self.pool, self, self.right)
        if self.right is not None:
            self.right.left = rest
        self.right = rest
        self.size = size
        return rest

    def reach(self) -> int:
        """Bytes the block could grow to by mapping what follows it."""
        right = self.right
        return self.size + (right.size if right is not None and right.state == "unmapped" else 0)


class Shelf:
    """Blocks in the order of (size, address), neither of which may change while they lie here."""

    __slots__ = ("_blocks", "_keys")

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._blocks: list[Block] = []

    def put(self, block: Block) -> None:
        """Add a block."""
        key = block.size << ADDRESS_BITS | block.address
        index = bisect_left(self._keys, key)
        self._keys.insert(index, key)
        self._blocks.insert(index, block)

    def remove(self, block: Block) -> None:
        """Take one particular block out."""
        index = bisect_left(self._keys, block.size << ADDRESS_BITS | block.address)
        del self._keys[index]
        del self._blocks[index]

    def best_fit(self, size: int, *, expandable: bool) -> Block | None:
        """Take out the smallest block of at least `size` bytes, the lowest among equals.

        Expandable ones count with the bytes they could map: step on while the next larger block could grow to less.
        """
        blocks = self._blocks
        index = bisect_left(self._keys, size << ADDRESS_BITS)
        if index == len(blocks):
            return None
        while expandable and index + 1 < len(blocks) and blocks[index + 1].reach() < blocks[index].reach():
            index += 1
        del self._keys[index]
        return blocks.pop(index)

    def around(self, address: int) -> Block | None:
        """The block in which an address lies."""
        return next((b for b in self._blocks if b.address <= address < b.address + b.size), None)

    def keys(self) -> tuple[int, ...]:
        """Size and address of each block."""
        return tuple(self._keys)

    def blocks(self) -> list[Block]:
        """All blocks, the lowest address first."""
        return sorted(self._blocks, key=lambda block: block.address)


@dataclass(slots=True, eq=False)
class Pool:
    """The idle blocks for small or for large requests; a block never changes pools."""

    page: int
    """Bytes that expandable segments map at a time."""
    least_rest: int
    """Bytes that must be left over for a block to be split."""
    free: Shelf = field(default_factory=Shelf)
    unmapped: Shelf = field(default_factory=Shelf)

    def put(self, block: Block, state: State) -> None:
        """Make a used block idle, joined with its neighbours in the same state."""
        shelf = self.free if state == "free" else self.unmapped
        left, right = block.left, block.right
        if left is not None and left.state == state:
            shelf.remove(left)
            block.address = left.address
            block.size += left.size
            block.left = left.left
            if block.left is not None:
                block.left.right = block
        if right is not None and right.state == state:
            shelf.remove(right)
            block.size += right.size
            block.right = right.right
            if block.right is not None:
                block.right.left = block
        block.state = state
        shelf.put(block)

    def take(self, block: Block) -> None:
        """Make an idle block used."""
        (self.free if block.state == "free" else self.unmapped).remove(block)
        block.state = "used"
