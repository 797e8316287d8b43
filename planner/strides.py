"""Strides as torch's C++ computes them.

Fake tensors differ for dimensions of size one, and the layout cuDNN chooses hangs on it.
"""

from __future__ import annotations

from collections.abc import Sequence

HANDED_ON = "_planner_handed_on"
CHANNELS_LAST_ORDER = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}


def view_stride(size: Sequence[int], stride: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of `tensor.view(shape)`, None where only a copy has that shape (ATen/TensorUtils.cpp, computeStride)."""
    if not size or 0 in size:
        return None
    strides = [0] * len(shape)
    left, base, held, seen = len(shape) - 1, stride[-1], 1, 1
    for d in reversed(range(len(size))):
        held *= size[d]
        if d and (size[d - 1] == 1 or stride[d - 1] == held * base):
            continue
        while left >= 0 and (seen < held or shape[left] == 1):
            strides[left] = seen * base
            seen *= shape[left]
            left -= 1
        if seen != held:
            return None
        if d:
            base, held, seen = stride[d - 1], 1, 1
    return tuple(strides) if left == -1 else None


def channels_last(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether `suggest_memory_format` says channels-last (c10/core/MemoryFormat.h, is_channels_last_strides)."""
    order = CHANNELS_LAST_ORDER.get(len(size))
    if order is None or stride[1] == 0:
        return False
    least = 0
    for d in order:
        if size[d] == 0 or stride[d] < least or (d == 0 and least == stride[1]):
            return False
        least = stride[d] * max(size[d], 1)
    return True


def is_handed_on(tensor: object) -> bool:
    """Whether a ghost is channels-last only because a convolution left it so: without cuDNN it would be contiguous."""
    return getattr(tensor, HANDED_ON, False)


def hand_on(tensor: object, handed_on: bool = True) -> None:
    """Say so of a ghost."""
    if handed_on:
        setattr(tensor, HANDED_ON, True)
