"""PyTorch's CUDA caching allocator, replayed in numbers: will these requests run under a cap of so many bytes?

Rules and constants: PyTorch's c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h, default settings.
Streams never share free blocks, so each has two pools of its own; a block knows its pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from math import inf

from planner.blocks import Block, Pool, Seat, arranged
from planner.errors import PlannerError

# In the source: kMinBlockSize, kSmallSize, kSmallBuffer, kMinLargeAlloc, kLargeBuffer, kRoundLarge.
MINIMUM = 512
SMALL_REQUEST = 2**20
SMALL_SEGMENT = 2 * 2**20
HUGE_REQUEST = 10 * 2**20
LARGE_SEGMENT = 20 * 2**20
HUGE_ROUNDING = 2 * 2**20

UNBOUNDED = 2**48
"""More bytes than any card has."""


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `size`."""
    return -(-size // multiple) * multiple


def segment_size(rounded: int) -> int:
    """Bytes asked of the driver for a request of `rounded` bytes that no cached block can serve."""
    if rounded <= SMALL_REQUEST:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if rounded < HUGE_REQUEST else round_up(rounded, HUGE_ROUNDING)


class OutOfMemory(PlannerError):
    """A request that could not be had, not even after the cache was emptied; all figures in bytes."""

    def __init__(self, *, size: int, allocated: int, reserved: int, capacity: int) -> None:
        self.size, self.allocated, self.reserved, self.capacity = size, allocated, reserved, capacity
        super().__init__(
            f"{size:,} bytes were asked for while {allocated:,} were in use and {reserved:,} reserved of {capacity:,}; "
            "choose a leaner plan or a larger budget."
        )


Layout = tuple[tuple[int, ...], ...]
"""Idle blocks, pool by pool."""
Arrangement = tuple[object, ...]
"""Segments as rows of blocks, and who is where in them."""


class Allocator:
    """The allocator after the requests so far; all figures in bytes.

    `capacity` is what the driver can give, by default all of the card; `limit` is what
    `torch.cuda.set_per_process_memory_fraction` allows.  They differ for expandable segments only, which may map beyond
    the limit by part of a page.  `total` is the size of the card, and sets the address range of expandable segments.
    """

    allocated: int
    """Bytes in blocks in use, as `torch.cuda.memory_allocated`."""
    reserved: int
    """Bytes held from the driver, as `torch.cuda.memory_reserved`."""
    retries: int
    """Requests that first had to empty the cache (`num_alloc_retries`)."""
    exchanges: int
    """Times that memory was had from the driver or given back."""
    spare: int
    """The least that was left to reserve when memory was had from the driver, with all that is cached given back."""

    def __init__(
        self,
        *,
        capacity: int | None = None,
        limit: int | None = None,
        total: int | None = None,
        expandable: bool = False,
    ) -> None:
        card = UNBOUNDED if total is None else total
        self._capacity = card if capacity is None else capacity
        self._limit = UNBOUNDED if limit is None else limit
        self._span = max(1, (self._capacity if total is None else total) * 9 // 8)
        self._expandable = expandable
        self._small = Pool(page=SMALL_SEGMENT, least_rest=MINIMUM)
        self._large = Pool(page=LARGE_SEGMENT, least_rest=MINIMUM if expandable else SMALL_REQUEST + MINIMUM)
        self._others: dict[int, tuple[Pool, Pool]] = {}
        self.late: deque[tuple[int, Block]] = deque()
        self._next_address = 0
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.retries = self.exchanges = 0
        self.spare = UNBOUNDED

    def malloc(self, size: int, stream: int = 0) -> Block | None:
        """A block for `size` bytes, None for zero; OutOfMemory when not even an empty cache makes room.

        `stream` 0 is that of the kernels; blocks of one stream are of no use to another.
        """
        if size == 0:
            return None
        rounded = (size + MINIMUM - 1) & -MINIMUM
        if stream:
            pool = self._pools(stream)[rounded > SMALL_REQUEST]
        else:
            pool = self._small if rounded <= SMALL_REQUEST else self._large
        block = None if self._expandable else pool.free.serve(rounded, pool.least_rest)
        if block is None:
            block = self._cut_to(rounded, pool.free.best_fit(rounded) or self._grow(pool, rounded))
        self.allocated += block.size
        if self.allocated > self.peak_allocated:  # noqa: PLR1730 (max is slower, and this line runs for every tensor)
            self.peak_allocated = self.allocated
        return block

    def free(self, block: Block | None) -> None:
        """Return a block to the cache; ValueError when it is there already."""
        if block is None:
            return
        if block.state != "used":
            raise ValueError(f"the block at {block.address:#x} was freed before; free each block once.")
        self.allocated -= block.size
        block.pool.put(block, "free")

    @staticmethod
    def _cut_to(size: int, block: Block) -> Block:
        """The block, used, without what is to be had of it again."""
        block.state = "used"
        if block.size - size >= block.pool.least_rest:
            block.pool.put(block.cut(size), "free")
        return block

    @property
    def bound(self) -> int:
        """Bytes it may reserve."""
        return min(self._capacity, self._limit)

    @property
    def settled(self) -> bool:
        """Whether no block is on its way back."""
        return not self.late

    def layout(self) -> tuple[Layout, Layout]:
        """Where the idle blocks of the large and of the small pools lie.

        From the same layout the same requests are given the same blocks, and neither kind of pool minds the other.
        """
        small, large = zip((self._small, self._large), *self._others.values(), strict=True)
        return _layout(large), _layout(small)

    def arrangement(self, held: Iterable[Block | None]) -> Arrangement:
        """How idle blocks and those held lie to one another, whatever their addresses.

        From the same arrangement the same requests meet the same fate.
        """
        pools = (self._small, self._large, *chain(*self._others.values()))
        idle = (block for pool in pools for shelf in (pool.free, pool.unmapped) for block in shelf.blocks())
        return self.reserved, *arranged((*held, *idle), pools)

    def retake(self, seat: Seat) -> Block:
        """The block that was given there from the same layout."""
        self.allocated += seat.size
        return seat.pool.seize(seat.address, seat.size)

    def free_late(self, block: Block | None, now: int) -> None:
        """Give up a block that kernels launched until `now` still use on another stream (`record_stream`).

        It counts as free; its room is of use once `settle` is told so, or where memory runs out.
        """
        if block is None:
            return
        self.allocated -= block.size
        self.late.append((now, block))

    def settle(self, until: float = inf) -> None:
        """The kernels launched until then have run (process_events)."""
        while self.late and self.late[0][0] <= until:
            block = self.late.popleft()[1]
            block.pool.put(block, "free")

    def can_malloc(self, size: int) -> bool:
        """Try a request and give it back, as cuDNN does for an engine's workspace.

        The attempt leaves its traces: a larger cache when it succeeds, an emptied one and a retry when it does not.
        """
        try:
            self.free(self.malloc(size))
        except OutOfMemory:
            return False
        return True

    def empty_cache(self) -> None:
        """Return to the driver every segment, or page of an expandable segment, of which no byte is in use."""
        for pool in (self._large, self._small, *chain(*self._others.values())):
            for block in pool.free.blocks():
                if self._expandable:
                    self._unmap(block)
                elif block.left is None and block.right is None:
                    pool.take(block)
                    self.reserved -= block.size
                    self.exchanges += 1

    def reset_peaks(self) -> None:
        """Let the peaks start again from what is held now."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _pools(self, stream: int) -> tuple[Pool, Pool]:
        """Small and large pool of another stream."""
        if stream not in self._others:
            small, large = (Pool(page=pool.page, least_rest=pool.least_rest) for pool in (self._small, self._large))
            self._others[stream] = small, large
        return self._others[stream]

    def _grow(self, pool: Pool, rounded: int) -> Block:
        block = self._obtain(pool, rounded)
        if block is None:
            self.retries += 1
            self.settle()  # the host waits for what is still in use (synchronize_and_free_events)
            self.empty_cache()
            block = self._obtain(pool, rounded)
            if block is None:
                raise OutOfMemory(size=rounded, allocated=self.allocated, reserved=self.reserved, capacity=self.bound)
        if (left := self.bound - self.reserved) < self.spare:
            self.spare = min(self.spare, left + self._cached())
        return block

    def _cached(self) -> int:
        """Bytes that an emptied cache would give back; of pages of expandable segments those in whole segments."""
        pools = (self._large, self._small, *chain(*self._others.values()))
        return sum(pool.free.whole() for pool in pools)

    def _obtain(self, pool: Pool, rounded: int) -> Block | None:
        segment = segment_size(rounded)
        if self.reserved + segment > self._limit:
            return None
        if self._expandable:
            return self._expand(pool, rounded)
        return Block(self._addresses(segment, HUGE_ROUNDING), segment, pool) if self._charge(segment) else None

    def _charge(self, size: int) -> bool:
        if self.reserved + size > self._capacity:
            return False
        self.reserved += size
        self.exchanges += 1
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _addresses(self, size: int, alignment: int) -> int:
        """A fresh range.  Addresses only rise, which settles the choice between free blocks of one size."""
        start = round_up(self._next_address, alignment)
        self._next_address = start + size
        return start

    def _expand(self, pool: Pool, rounded: int) -> Block | None:
        """Map pages until a free block has `rounded` bytes, and take it; None, with some mapped, when they run out."""
        block: Block | None = self._room(pool, rounded)
        if block is not None and block.state == "unmapped":
            block = self._map(block, rounded)
        while block is not None and block.size < rounded:
            assert block.right is not None
            block = self._map(block.right, rounded - block.size)
        if block is not None:
            pool.take(block)
        return block

    def _room(self, pool: Pool, rounded: int) -> Block:
        """The first of a row of idle blocks that together have room, in a new segment if need be."""
        for block in pool.unmapped.blocks():
            first = block.left if block.left is not None and block.left.state == "free" else block
            room, end = first.size, first.right
            while end is not None and end.state != "used":
                room, end = room + end.size, end.right
            if room >= rounded:
                return first
        span = round_up(self._span, pool.page)
        segment = Block(self._addresses(span, pool.page), span, pool)
        pool.put(segment, "unmapped")
        return segment

    def _map(self, block: Block, wanted: int) -> Block | None:
        """Put memory behind as much of an unmapped block as is wanted and there."""
        pool = block.pool
        mapped = round_up(min(block.size, wanted), pool.page)
        if not self._charge(mapped):
            return None
        pool.take(block)
        if mapped < block.size:
            pool.put(block.cut(mapped), "unmapped")
        pool.put(block, "free")
        return block

    def _unmap(self, block: Block) -> None:
        """Return the whole pages inside a free block; a segment left without pages is given up."""
        pool = block.pool
        start = round_up(block.address, pool.page)
        end = (block.address + block.size) // pool.page * pool.page
        if start >= end:
            return
        pool.take(block)
        self.reserved -= end - start
        self.exchanges += 1
        if end < block.address + block.size:
            pool.put(block.cut(end - block.address), "free")
        if start > block.address:
            head, block = block, block.cut(start - block.address)
            pool.put(head, "free")
        pool.put(block, "unmapped")
        if block.left is None and block.right is None:
            pool.take(block)


def _layout(pools: Iterable[Pool]) -> Layout:
    return tuple(shelf.layout() for pool in pools for shelf in (pool.free, pool.unmapped))
