"""Results of operations on ghosts by torch's own meta kernels.

Fake tensors work out every result in Python, a tenth of a millisecond or more each, and differ from the card in the
strides of dimensions of size one.  For the operations that make up nearly all of a program the C++ meta kernels, which
the card's kernels share, are asked directly; whatever is not known here goes through the fake tensors as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from planner.strides import channels_last, view_stride

aten = torch.ops.aten
CPU = torch.device("cpu")
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

DIRECT = frozenset({
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.cat.default,
    aten._softmax.default, aten.clone.default, aten._to_copy.default, aten.copy_.default, aten.mean.dim,
    aten.sum.dim_IntList, aten.upsample_nearest2d.default,
    aten.transpose.int, aten.t.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.expand.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default,
    aten.unbind.int, aten.alias.default, aten.as_strided.default,
})  # fmt: skip
"""Operations whose C++ meta kernels need nothing but the tensors."""


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(tuple(tree.values()))


def result(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: FakeTensorMode) -> Any:
    """What `func` returns for ghosts; NotImplemented where the fake tensors must be asked."""
    if (special := SPECIAL.get(func)) is not None and isinstance(args[0], FakeTensor):
        return special(args, mode)
    pointwise = torch.Tag.pointwise in func.tags and not func._schema.is_mutable and "dtype" not in kwargs
    if not (pointwise or func in DIRECT) or not _ghosts_only(args, kwargs):
        return NotImplemented
    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": torch.device("meta")}
    if pointwise and func._overloadname == "Tensor" and len(args) > 1 and _is_number(args[1]):
        # A number is an operand of another shape, which decides how dimensions of size one are laid out.
        if not args[0].is_floating_point():
            return NotImplemented
        args = (args[0], aten.empty.memory_format([], dtype=args[0].dtype, device="meta"), *args[2:])
    if pointwise and not kwargs and (known := _pointwise(func, tuple(map(_spec, args)))) is not None:
        size, stride, dtype = known
        return ghost(aten.empty_strided.default(size, stride, dtype=dtype, device="meta"), mode)
    with in_kernel_invocation_manager(mode):
        out = func(*args, **kwargs)
    if out is args[0]:
        return out
    return type(out)(ghost(o, mode) for o in out) if isinstance(out, (tuple, list)) else ghost(out, mode)


def _spec(value: Any) -> Any:
    """What of an operand decides the shape, layout and dtype of a result; a number's value does not."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    return type(value) if isinstance(value, (bool, int, float)) else value


@lru_cache(maxsize=4096)
def _pointwise(func: Any, specs: tuple[Hashable, ...]) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype] | None:
    """Shape, strides and dtype of a pointwise result; None where it is not one tensor.  torch asks Python for them."""
    args = [_meta(spec) for spec in specs]
    out = func(*args)
    return (tuple(out.shape), out.stride(), out.dtype) if isinstance(out, torch.Tensor) else None


def _meta(spec: Any) -> Any:
    if isinstance(spec, tuple) and len(spec) == 3 and isinstance(spec[2], torch.dtype):
        return aten.empty_strided.default(spec[0], spec[1], dtype=spec[2], device="meta")
    return spec(1) if spec in (bool, int, float) else spec


def ghost(tensor: torch.Tensor, mode: FakeTensorMode) -> FakeTensor:
    """A meta tensor as a ghost on the CPU."""
    return FakeTensor(mode, tensor, CPU)


def _ghosts_only(args: Any, kwargs: Any) -> bool:
    given = list(tensors((args, kwargs)))
    return any(isinstance(t, FakeTensor) for t in given) and all(
        isinstance(t, FakeTensor) or t.dim() == 0 for t in given
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def _view(args: Sequence[Any], mode: FakeTensorMode) -> Any:
    tensor, shape = args
    if not all(isinstance(n, int) for n in shape):
        return NotImplemented
    rest = tensor.numel() // max(prod(n for n in shape if n != -1), 1)
    size = [rest if n == -1 else n for n in shape]
    stride = view_stride(tensor.shape, tensor.stride(), size)
    if stride is None:
        return NotImplemented
    with in_kernel_invocation_manager(mode):
        return ghost(aten.as_strided.default(tensor, size, stride, tensor.storage_offset()), mode)


def _convolution(args: Sequence[Any], mode: FakeTensorMode) -> Any:
    """Shape and layout as ConvUtils.h and Convolution.cpp decide them for cuDNN: channels-last if either operand is."""
    x, weight, _, stride, padding, dilation, transposed, _, _ = args
    if transposed or x.dim() - 2 != len(stride):
        return NotImplemented
    places = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    space = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in places]
    last = x.dim() in LAST and any(channels_last(t.shape, t.stride()) for t in (x, weight))
    layout = LAST[x.dim()] if last else torch.contiguous_format
    shape = [x.shape[0], weight.shape[0], *space]
    return ghost(aten.empty.memory_format(shape, dtype=x.dtype, device="meta", memory_format=layout), mode)


def _group_norm(args: Sequence[Any], mode: FakeTensorMode) -> Any:
    """CUDA's kernel writes contiguously, whatever it reads (group_norm_kernel.cu)."""
    x, n, groups = args[0], args[3], args[6]
    return _norm(x, [n, groups], x.dtype, mode)


def beside_group_norm(args: Sequence[Any], mode: FakeTensorMode) -> list[torch.Tensor]:
    """What CUDA's kernel holds beside its results: the input as it wants it, statistics and factors in float32."""
    x, weight, bias, n, channels, pixels, groups = args[:7]
    tables = [[n, groups]] * 2 if x.dtype.itemsize == 2 else []
    tables += [[n, channels]] * 2 if pixels > 1 and (weight is not None or bias is not None) else []
    copy = [] if x.is_contiguous() else [_contiguous(list(x.shape), x.dtype, mode)]
    return [*copy, *(_contiguous(table, torch.float32, mode) for table in tables)]


def _layer_norm(args: Sequence[Any], mode: FakeTensorMode) -> Any:
    x, shape = args[0], args[1]
    return _norm(x, [*x.shape[: x.dim() - len(shape)], *(1 for _ in shape)], torch.float32, mode)


def _pixel_shuffle(args: Sequence[Any], mode: FakeTensorMode) -> Any:
    """CUDA has no kernel of its own: it permutes and copies, contiguously (PixelShuffle.cpp, math_pixel_shuffle)."""
    x, factor = args
    *lead, channels, height, width = x.shape
    return _contiguous([*lead, channels // factor**2, height * factor, width * factor], x.dtype, mode)


def _pixel_unshuffle(args: Sequence[Any], mode: FakeTensorMode) -> Any:
    x, factor = args
    *lead, channels, height, width = x.shape
    return _contiguous([*lead, channels * factor**2, height // factor, width // factor], x.dtype, mode)


def _contiguous(shape: list[int], dtype: torch.dtype, mode: FakeTensorMode) -> FakeTensor:
    return ghost(aten.empty.memory_format(shape, dtype=dtype, device="meta"), mode)


def _norm(
    x: torch.Tensor, statistics: Sequence[int], dtype: torch.dtype, mode: FakeTensorMode
) -> tuple[FakeTensor, ...]:
    out = aten.empty.memory_format(list(x.shape), dtype=x.dtype, device="meta")
    means = (aten.empty.memory_format(list(statistics), dtype=dtype, device="meta") for _ in range(2))
    return ghost(out, mode), *(ghost(mean, mode) for mean in means)


SPECIAL: dict[Any, Callable[[Sequence[Any], FakeTensorMode], Any]] = {
    aten.view.default: _view,
    aten.convolution.default: _convolution,
    aten.native_group_norm.default: _group_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
}
