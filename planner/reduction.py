"""Sums, means and norms: which of them torch spreads over several blocks, and what those leave for one another.

Source: aten/src/ATen/native/cuda/Reduce.cuh of torch 2.14.1 (setReduceConfig, global_memory_size), and TensorIterator
for the order in which it takes dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import gcd
from typing import NamedTuple

from planner.device import Device
from planner.kernels import Reduction

THREADS = 512
"""Most threads of a block (mnt_wrapper)."""
WARP = 32
ENOUGH, MANY = 16, 256
"""Values that a thread should take at least and at most."""
VECTOR = 4
"""Values that a thread loads at once where they lie side by side."""
LONG = 128
"""Values side by side from which it does so along them."""
SEMAPHORE = 4
"""Bytes by which the blocks of one result wait for one another."""
RESIDENT = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
"""Threads that a multiprocessor keeps at once; 2048 where not given (CUDA programming guide, compute capabilities)."""


class Extent(NamedTuple):
    """A dimension, or several that lie as one."""

    size: int
    stride: int
    """In elements."""


def layout(shape: Sequence[int], strides: Sequence[int], over: Collection[int], offset: int = 0) -> tuple[bool, int]:
    """Whether the values of one result lie closer than results do, and how many values a thread loads at once.

    `over`: dimensions that are summed over.
    """
    extents = [Extent(size, stride) for size, stride in zip(shape, strides, strict=True)]
    summed = _joined(sorted((extents[d] for d in over if shape[d] > 1), key=lambda extent: extent.stride))
    kept = _joined(extent for d, extent in reversed([*enumerate(extents)]) if d not in over and extent.size > 1)
    along = not kept or (bool(summed) and summed[0].stride < kept[0].stride)
    first = (summed if along else kept)[:1]
    if not first or first[0].stride != 1:
        return along, 1
    if along:
        return along, VECTOR if len(summed) == 1 and first[0].size >= LONG else 1
    return along, gcd(VECTOR, offset, first[0].size, *(extent.stride for extent in (*summed, *kept[1:])))


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    """Fastest first; what continues the one before is one with it."""
    found: list[Extent] = []
    for extent in extents:
        if found and extent.stride == found[-1].size * found[-1].stride:
            found[-1] = Extent(found[-1].size * extent.size, found[-1].stride)
        else:
            found.append(extent)
    return found


def requests(kernel: Reduction, device: Device) -> tuple[int, ...]:
    """Bytes asked for while a reduction runs: what each block found, and semaphores; none where one block does it all.

    Where results lie side by side each thread has its own, so that a block leaves as many times more.
    """
    results, values, each = kernel.results, kernel.values, 1 if kernel.along else kernel.vector
    wide, high = _block(*((values // kernel.vector, results) if kernel.along else (results // each, values)), each)
    own, apart = (-(-values // wide), 1) if kernel.along else (values, wide)
    if own < min(high * ENOUGH, MANY):
        return ()  # the rows of a block have results of their own
    own = -(-values // (high * (wide if kernel.along else 1)))
    grid = -(-(results // each) // apart)
    most = device.multiprocessors * (RESIDENT.get(device.compute_capability, 2048) // (wide * high))
    if own < MANY or grid > most:
        return ()
    blocks = min(max(-(-most // grid), -(-own // MANY)), -(-own // ENOUGH))
    if blocks == 1:
        return ()
    return kernel.item * results * blocks * (1 if kernel.along else wide * each), SEMAPHORE * grid


def _block(across: int, down: int, each: int) -> tuple[int, int]:
    """Threads of a block, along rows and in rows (set_block_dimension)."""
    most = THREADS // each
    widest, highest = (min(1 << max(size, 1).bit_length() - 1, most) for size in (across, down))
    high = min(highest, most // min(widest, WARP))
    return min(widest, most // high), high
