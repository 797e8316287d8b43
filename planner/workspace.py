"""Scratch memory of convolutions and matrix products: what cuDNN, cuBLAS and torch take beside inputs and outputs.

cuDNN is asked itself where it is at hand (`cudnn`).  Else rules are taken that were read off cuDNN 9.24's heuristics,
convolution by convolution (torch 2.14.1, benchmark off, enough free memory).  x, w and y are bytes of input, weight and
output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from math import ceil, prod
from typing import Any

from planner import cudnn
from planner.device import Device
from planner.kernels import ITEM_SIZE, Conv

CUBLAS = 8_519_680
"""Bytes of the cuBLAS workspace torch keeps from the first product on (CublasHandlePool.cpp: 4096·2 + 16·8 KiB)."""
CUBLAS_LARGE = 32 * 2**20
"""The same on compute capability 9 to 12 (torch 2.14: parseChosenWorkspaceSize)."""
DIRECT_CHANNELS = 4
"""Input channels up to which the first convolution runs without conversion."""
NARROW_CHANNELS = 16
"""Input channels up to which a pointwise convolution runs without conversion."""

INDEXED = 2**31
"""Numbers in one image from which 32 bits do not index it.  From 8.0 on torch's first choice is then an engine that
converts to channels-last and back, which cuDNN offers only where it finds a driver, and behind it those it offers
without: with channels last, or up to four channels in half precision, they come first.  Read off cuDNN 9.24's lists on
the virtual GPU, 14 convolutions in six layouts and dtypes on seven cards."""


def cublas(compute_capability: tuple[int, int]) -> int:
    """Bytes of the persistent cuBLAS workspace of one stream."""
    return CUBLAS_LARGE if compute_capability[0] >= 9 else CUBLAS


def copied(conv: Conv, device: Device) -> tuple[int, int]:
    """Bytes of input and weight that torch copies into the layout the convolution runs in, held while it runs.

    The input's copy is made before there is room for the result (_convolution in Convolution.cpp).
    """
    last = conv.input_last or conv.weight_last
    x, w, _ = _sizes(conv)
    if prod(conv.weight[2:]) == 1:  # such a weight lies in both layouts
        w = 0
    if _unfolds(conv, device):  # which torch does with contiguous tensors only, and leaves contiguous ones
        apart = (conv.input_last and not conv.handed_on) or conv.scattered
        return x if apart else 0, w if conv.weight_last else 0
    return x if conv.copied else 0, w if last and not conv.weight_last else 0


def early(conv: Conv, device: Device) -> int:
    """How many of the two copies are made before there is room for the result.

    cuDNN's convolutions copy the weight after it (cudnn_convolution_forward_out in ConvShared.cpp), those that unfold
    before (slow_conv2d_forward_out_cuda in ConvolutionMM2d.cu).
    """
    return 2 if _unfolds(conv, device) else 1


def engines(conv: Conv, device: Device, *, every: bool = False) -> tuple[int, ...]:
    """Bytes of workspace in the order torch tries engines: the first alone, or every one down to the leanest.

    Where a calibration saw convolutions of this kind take more than is foreseen, each takes that much more.
    """
    found = foreseen(conv, device, every=every)
    beyond = next((each for each in device.excess if each.kind == kind(conv)), None) if device.excess else None
    if beyond is None or _native(conv):
        return found
    x, w, y = _sizes(conv)
    more = ceil(beyond.maps * (x + y) + beyond.weight * w)
    return tuple(size + more for size in found)


def kind(conv: Conv) -> str:
    """What decides, card and cuDNN given, which engines there are: dtype, dimensions of space, layout, kernel."""
    last, pointwise = conv.input_last or conv.weight_last, prod(conv.weight[2:]) == 1
    return f"{conv.dtype} {len(conv.weight) - 2}d" + " pointwise" * pointwise + " channels-last" * last


def foreseen(conv: Conv, device: Device, *, every: bool = False) -> tuple[int, ...]:
    """The same, whatever was measured."""
    if _native(conv):
        return (0,)
    if _unfolds(conv, device):
        return (_unfolded(conv),)
    first = _converted(conv) if _large(conv) and device.compute_capability >= (8, 0) else ()
    if first and not every:
        return first
    if asked := cudnn.workspaces(_question(conv), _card(device), every=every):
        return first + asked
    first = first or (_rule(conv, device.compute_capability),)
    return (*first, 0) if every else first


def asked(device: Device) -> int:
    """How many questions cuDNN has answered for a card so far."""
    return len(cudnn.book(_card(device)))


def known(device: Device) -> list[list[Any]]:
    """What cuDNN has answered for a card so far, as values for JSON."""
    return [[*astuple(question), every, sizes] for (question, every), sizes in cudnn.book(_card(device)).items()]


def recall(device: Device, rows: Iterable[list[Any]]) -> None:
    """Spare cuDNN the questions that were `known` in another process, where the same cuDNN answered."""
    book = cudnn.book(_card(device))
    for *question, every, sizes in rows:
        values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in question]
        book[cudnn.Question(*values), every] = tuple(sizes)


def _large(conv: Conv) -> bool:
    return any(prod(shape[1:]) >= INDEXED for shape in (conv.input, conv.output))


def _converted(conv: Conv) -> tuple[int, ...]:
    """What the engine wants that takes large images to channels-last and back; nothing where others come before it."""
    direct = conv.dtype != "float32" and conv.input[1] // conv.groups <= DIRECT_CHANNELS
    if conv.input_last or conv.weight_last or direct:
        return ()
    x, w, y = _sizes(conv)
    return (x + y + (w if prod(conv.weight[2:]) > 1 else 0),)


def _sizes(conv: Conv) -> tuple[int, int, int]:
    item = ITEM_SIZE[conv.dtype]
    return prod(conv.input) * item, prod(conv.weight) * item, prod(conv.output) * item


def _unfolds(conv: Conv, device: Device) -> bool:
    """Whether cuDNN has no kernels, and torch multiplies matrices instead (im2col)."""
    return conv.dtype == "bfloat16" and not serves_all(device)


def serves_all(device: Device) -> bool:
    """Whether cuDNN has kernels for every dtype."""
    return device.compute_capability >= (8, 0)


def _unfolded(conv: Conv) -> int:
    """Bytes beyond a result: columns of one image, and of groups, one by one, their input; then these are joined."""
    columns = _columns(conv) * ITEM_SIZE[conv.dtype]
    if conv.groups == 1:
        return columns
    x, _, y = _sizes(conv)
    return max(columns + (x // conv.groups if conv.input[0] > 1 else 0), y)


def _columns(conv: Conv) -> int:
    """Torch's im2col, one image and group at a time; a pointwise convolution of a map is a product as it stands."""
    if conv.transposed:
        return prod(conv.weight[1:]) * prod(conv.input[2:])
    if len(conv.weight) == 4 and prod(conv.weight[2:]) == 1 and set(conv.stride) <= {1} and not any(conv.padding):
        return 0
    return prod(conv.weight[1:]) * prod(conv.output[2:])


def served(conv: Conv, device: Device) -> bool:
    """Whether there is a kernel: channels last and by channel torch asks cuDNN, which has none in bfloat16 before 8.0.

    torch looks at the layout before it looks at the card (ConvParams::use_cudnn_depthwise, use_cudnn).
    """
    return not (_unfolds(conv, device) and _by_channel(conv) and (conv.input_last or conv.weight_last))


def _by_channel(conv: Conv) -> bool:
    return not conv.transposed and 1 < conv.groups == conv.input[1]


def _native(conv: Conv) -> bool:
    """Depthwise convolutions run in torch's own kernels, which need nothing (ConvParams::use_cudnn_depthwise)."""
    return _by_channel(conv) and not (conv.input_last or conv.weight_last)


def _card(device: Device) -> cudnn.Card:
    return cudnn.Card(device.name, device.compute_capability, device.multiprocessors, device.l2, device.total)


def _question(conv: Conv) -> cudnn.Question:
    """As torch puts it: one dimension of space becomes two, the first of them of size one."""
    dims = len(conv.weight) - 2
    stride = conv.stride or (1,) * dims
    dilation = conv.dilation or (1,) * dims
    padding = conv.padding or _padding(conv, stride, dilation)
    x, w, y = conv.input, conv.weight, conv.output
    if dims == 1:
        x, w, y = ((*shape[:2], 1, *shape[2:]) for shape in (x, w, y))
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    last = conv.input_last or conv.weight_last
    return cudnn.Question(conv.dtype, x, w, y, stride, padding, dilation, conv.transposed, last)


def _padding(conv: Conv, stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """The least that gives the output its size."""
    spaces = zip(conv.input[2:], conv.weight[2:], conv.output[2:], stride, dilation, strict=True)
    return tuple(max(0, -(-((y - 1) * s + d * (k - 1) + 1 - x) // 2)) for x, k, y, s, d in spaces)


def _rule(conv: Conv, compute_capability: tuple[int, int]) -> int:
    x, w, y = _sizes(conv)
    if conv.input_last or conv.weight_last:
        return x + w if conv.dtype == "float32" and compute_capability[0] != 9 else 0
    pointwise = prod(conv.weight[2:]) == 1
    channels = conv.input[1] // conv.groups
    if channels <= DIRECT_CHANNELS or (pointwise and channels <= NARROW_CHANNELS):
        return 0
    if conv.dtype == "float32":
        if compute_capability < (8, 0):
            return w * 3 if not pointwise else 0  # Winograd-transformed weights
        if compute_capability[0] == 9:
            return x + y + (0 if pointwise else w)
        return 0 if pointwise else x + w
    return x + y + (0 if pointwise else w)  # to channels-last and back
