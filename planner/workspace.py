"""Scratch memory of convolutions and matrix products: what cuDNN and cuBLAS take beside inputs and outputs.

The rules were read off cuDNN 9.24's own heuristics, convolution by convolution (torch 2.14.1, benchmark off, enough
free memory).  x, w and y are the bytes of input, weight and output.
"""

from __future__ import annotations

from math import prod

from planner.program import ITEM_SIZE, Conv

CUBLAS = 8_519_680
"""Bytes of the cuBLAS workspace torch keeps from the first product on (CublasHandlePool.cpp: 4096·2 + 16·8 KiB)."""
CUBLAS_LARGE = 32 * 2**20
"""The same on compute capability 9 to 12 (torch 2.14: parseChosenWorkspaceSize)."""
DIRECT_CHANNELS = 4
"""Input channels up to which the first convolution runs without conversion."""
NARROW_CHANNELS = 16
"""Input channels up to which a pointwise convolution runs without conversion."""


def cublas(compute_capability: tuple[int, int]) -> int:
    """Bytes of the persistent cuBLAS workspace of one stream."""
    return CUBLAS_LARGE if compute_capability[0] >= 9 else CUBLAS


def convolution(conv: Conv, compute_capability: tuple[int, int]) -> int:
    """Bytes held while a convolution runs, beyond its input, weight and output."""
    size = ITEM_SIZE[conv.dtype]
    x, w, y = (prod(shape) * size for shape in (conv.input, conv.weight, conv.output))
    if conv.dtype == "bfloat16" and compute_capability < (8, 0):
        return _columns(conv) * size
    if conv.input_last or conv.weight_last:
        return _channels_last(conv, x, w, compute_capability)
    return _contiguous(conv, x, w, y, compute_capability)


def _columns(conv: Conv) -> int:
    """Torch's im2col, one image at a time, where cuDNN has no kernels."""
    return prod(conv.weight[2:]) * conv.input[1] * prod(conv.output[2:])


def _contiguous(conv: Conv, x: int, w: int, y: int, compute_capability: tuple[int, int]) -> int:
    pointwise = prod(conv.weight[2:]) == 1
    channels = conv.input[1] // conv.groups
    if conv.groups == conv.input[1] or channels <= DIRECT_CHANNELS or (pointwise and channels <= NARROW_CHANNELS):
        return 0
    if conv.dtype == "float32":
        if compute_capability < (8, 0):
            return w * 3 if not pointwise else 0  # Winograd-transformed weights
        if compute_capability[0] == 9:
            return x + y + (0 if pointwise else w)
        return 0 if pointwise else x + w
    return x + y + (0 if pointwise else w)  # to channels-last and back


def _channels_last(conv: Conv, x: int, w: int, compute_capability: tuple[int, int]) -> int:
    converted = 0 if conv.input_last else x
    if not conv.weight_last:
        converted += w
    if conv.dtype == "float32" and compute_capability[0] != 9:
        return converted + x + w
    return converted
