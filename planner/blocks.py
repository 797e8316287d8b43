"""Blocks of device memory and the pools that keep the idle ones: what the allocator's rules work on.

A segment is a row of blocks linked left and right.  An idle block is `free` (memory is behind it) or `unmapped`
(addresses only, in an expandable segment); two neighbours in the same idle state are always one block.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

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

    @property
    def seat(self) -> Seat:
        """Where it lies now."""
        return Seat(self.pool, self.address, self.size)

    def reach(self) -> int:
        """Bytes the block could grow to by mapping what follows it."""
        right = self.right
        return self.size + (right.size if right is not None and right.state == "unmapped" else 0)


class Seat(NamedTuple):
    """Where a block lay."""

    pool: Pool
    address: int
    size: int


class Shelf:
    """Blocks in the order of (size, address), neither of which may change while they lie here."""

    __slots__ = ("_blocks", "_keys", "inside")

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._blocks: dict[int, Block] = {}
        self.inside = self._keys, self._blocks
        """Their order, and each by it."""

    def remove(self, block: Block) -> None:
        """Take one particular block out."""
        key = block.size << ADDRESS_BITS | block.address
        del self._keys[bisect_left(self._keys, key)]
        del self._blocks[key]

    def best_fit(self, size: int) -> Block | None:
        """Take out the smallest block of at least `size` bytes, the lowest among equals; the way of expandable ones.

        Expandable ones count with the bytes they could map: step on while the next larger block could grow to less.
        """
        keys, blocks = self._keys, self._blocks
        index = bisect_left(keys, size << ADDRESS_BITS)
        if index == len(keys):
            return None
        while index + 1 < len(keys) and blocks[keys[index + 1]].reach() < blocks[keys[index]].reach():
            index += 1
        return blocks.pop(keys.pop(index))

    def serve(self, size: int, least_rest: int) -> Block | None:
        """A block of `size` bytes, used, out of the smallest free one that has them, the lowest among equals.

        What is left over from `least_rest` bytes on lies here in its place.  Written out, as `Pool.put` is: these two
        run for every tensor.
        """
        keys, blocks = self._keys, self._blocks
        index = bisect_left(keys, size << ADDRESS_BITS)
        if index == len(keys):
            return None
        block = blocks.pop(keys.pop(index))
        block.state = "used"
        left_over = block.size - size
        if left_over >= least_rest:  # its right neighbour is in use, else they were one
            right = block.right
            rest = Block(block.address + size, left_over, block.pool, block, right, "free")
            if right is not None:
                right.left = rest
            block.right, block.size = rest, size
            key = left_over << ADDRESS_BITS | rest.address
            insort(keys, key)
            blocks[key] = rest
        return block

    def holding(self, address: int) -> Block:
        """The block in which an address lies; LookupError where none is."""
        for block in self._blocks.values():
            if block.address <= address < block.address + block.size:
                return block
        raise LookupError(f"no idle block holds {address:#x}")

    def layout(self) -> tuple[int, ...]:
        """Sizes and addresses of all blocks."""
        return tuple(self._keys)

    def whole(self) -> int:
        """Bytes of the blocks that are segments of their own."""
        return sum(block.size for block in self._blocks.values() if block.left is None and block.right is None)

    def blocks(self) -> list[Block]:
        """All blocks, the lowest address first."""
        return sorted(self._blocks.values(), key=lambda block: block.address)


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
        keys, blocks = (self.free if state == "free" else self.unmapped).inside
        left, right = block.left, block.right
        if left is not None and left.state == state:
            key = left.size << ADDRESS_BITS | left.address
            del keys[bisect_left(keys, key)], blocks[key]
            block.address = left.address
            block.size += left.size
            block.left = before = left.left
            if before is not None:
                before.right = block
        if right is not None and right.state == state:
            key = right.size << ADDRESS_BITS | right.address
            del keys[bisect_left(keys, key)], blocks[key]
            block.size += right.size
            block.right = after = right.right
            if after is not None:
                after.left = block
        block.state = state
        key = block.size << ADDRESS_BITS | block.address
        insort(keys, key)
        blocks[key] = block

    def take(self, block: Block) -> None:
        """Make an idle block used."""
        (self.free if block.state == "free" else self.unmapped).remove(block)
        block.state = "used"

    def seize(self, address: int, size: int) -> Block:
        """Take these bytes out of the free block that has them; what is left of it on either side stays free."""
        block = self.free.holding(address)
        self.take(block)
        if block.address < address:
            head, block = block, block.cut(address - block.address)
            self.put(head, "free")
        if size < block.size:
            self.put(block.cut(size), "free")
        return block


def arranged(blocks: Sequence[Block | None], pools: Iterable[Pool]) -> tuple[object, object]:
    """The segments of these blocks, each as a row of sizes and states, and the place of each block in them.

    Segments come in order of addresses, which settles between blocks of one size; those of two pools never meet.
    """
    numbers = {id(pool): number for number, pool in enumerate(pools)}
    places: dict[int, tuple[int, int]] = {}
    rows: list[object] = []
    for first in sorted(_firsts(blocks), key=lambda block: block.address):
        row: list[tuple[int, State]] = []
        block: Block | None = first
        while block is not None:
            places[block.address] = len(rows), len(row)
            row.append((block.size, block.state))
            block = block.right
        rows.append((numbers[id(first.pool)], *row))
    return tuple(rows), tuple(None if block is None else places[block.address] for block in blocks)


def _firsts(blocks: Iterable[Block | None]) -> Iterator[Block]:
    """The first block of each segment in which one of these lies."""
    seen = set[int]()
    for each in blocks:
        block = each
        while block is not None and block.address not in seen:
            seen.add(block.address)
            if block.left is None:
                yield block
            block = block.left
