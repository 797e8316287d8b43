"""Keep the values of small device tensors true under the virtual GPU.

Kernels do nothing there, so a number that Python reads back from the device (a timestep, a sigma, a mask test) would be
whatever the memory held before.  Device memory is readable by the host, so this mode repeats every operation whose
tensors are all small on host views of that memory.  It allocates nothing on the device.  Large host-to-host copies
(casts, pinning) are not carried out: weights have no values here, and their pages stay untouched.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

Op = Callable[..., Any]
aten = torch.ops.aten

SMALL = 4096
"""Elements up to which a tensor's values are kept."""
INDICES = frozenset({torch.int32, torch.int64, torch.bool})
POSITIONS = 1 << 18
"""Elements up to which those of indices and masks are: pipelines read sizes from the positions of latents (Flux 2)."""
SCRATCH = 65536
"""Bytes of storage up to which an unknown small result is set to zero, so that what is read back is finite; unknown
indices are whatever their storage is, so that a router sends all to one expert (HiDream)."""
LARGE = 1 << 20
"""Elements from which a copy on the host is not carried out."""

SHAPED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
VALUELESS = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.record_stream.default,
    aten.is_pinned.default,
}
PUTS = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
PINS = {aten._pin_memory.default, aten.pin_memory.default}


def install() -> SmallValues:
    """Switch the mode on for the rest of the process; keep the answer, it lives as long as that."""
    torch.nn.Linear.forward = _linear  # type: ignore[method-assign]
    mode = SmallValues()
    mode.__enter__()
    return mode


def unwatched(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same without the mode, under which torch's graphs do not run; what is computed there has no values."""

    @functools.wraps(call)
    def plainly(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return call(*args, **kwargs)

    return plainly


def _linear(layer: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (the name is torch's)
    """As without a mode, under which torch adds biases out of place (Linear.cpp, isTensorSubclassLike)."""
    plain = type(layer.weight) is torch.nn.Parameter and input.is_cuda
    if layer.bias is None or input.dim() == 2 or input.is_contiguous() or not plain:
        return torch.nn.functional.linear(input, layer.weight, layer.bias)
    return torch.nn.functional.linear(input, layer.weight).add_(layer.bias)


class SmallValues(TorchDispatchMode):
    """Runs each operation as asked, and once more on the host where all its tensors are small."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func in VALUELESS or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if (copy := _uncopied(func, args, kwargs)) is not None:
            return copy
        exact = all(_small(tensor) for tensor in tensors)
        on_device = any(tensor.is_cuda for tensor in tensors)
        if on_device and exact and (func in SHAPED_BY_VALUES or (func is aten.index.Tensor and _masks(args[1]))):
            answer = _on_host(func, args, kwargs)
            return tree_map(lambda leaf: _on_device(leaf) if isinstance(leaf, torch.Tensor) else leaf, answer)
        if on_device and func is aten.index.Tensor and _masks(args[1]) and all(i is None or _small(i) for i in args[1]):
            return func(args[0], _positions(args[1]))
        if func in PUTS and any(mask.is_cuda and _small(mask) for mask in _masks(args[1])):
            return func(args[0], _positions(args[1]), *args[2:], **kwargs)
        out = func(*args, **kwargs)
        _keep_values(func, args, kwargs, out, exact, on_device)
        return out


def _keep_values(func: Any, args: Any, kwargs: Any, out: Any, exact: bool, on_device: bool) -> None:
    outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.is_cuda]
    mutates = func._schema.is_mutable
    if func.is_view or not (outs or (on_device and mutates)):
        return
    if not exact:
        if not mutates:
            _zero(leaf for leaf in outs if _small(leaf) and _zeroed(leaf))
        return
    if not all(_small(leaf) for leaf in outs):
        return
    try:
        repeated = _on_host(func, args, kwargs)
    except RuntimeError:  # no kernel on the host for these dtypes
        if not mutates:
            _zero(outs)
        return
    if not mutates:
        values = [leaf for leaf in tree_leaves(repeated) if isinstance(leaf, torch.Tensor)]
        for leaf, value in zip(outs, values, strict=False):
            if leaf.shape == value.shape:
                host_view(leaf).copy_(value)


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the host over the same (pretend) device memory."""
    if tensor.untyped_storage().nbytes() == 0 or tensor.numel() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    buffer = (ctypes.c_char * (span * tensor.element_size())).from_address(tensor.data_ptr())
    return torch.frombuffer(buffer, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride(), 0)


def _zero(tensors: Any) -> None:
    for tensor in tensors:
        host_view(tensor).zero_()


def _small(tensor: torch.Tensor) -> bool:
    most = POSITIONS if tensor.dtype in INDICES else SMALL
    return tensor.numel() <= most and tensor.layout is torch.strided and not tensor.is_quantized


def _zeroed(tensor: torch.Tensor) -> bool:
    return tensor.dtype in INDICES or tensor.untyped_storage().nbytes() <= SCRATCH


def _masks(indices: Sequence[Any]) -> list[torch.Tensor]:
    return [i for i in indices if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)]


def _on_host(func: Op, args: Any, kwargs: Any) -> Any:
    return func(*tree_map(_host, args), **tree_map(_host, kwargs))


def _host(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return host_view(leaf) if leaf.is_cuda else leaf
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return None if isinstance(leaf, torch.Generator) else leaf


def _on_device(value: torch.Tensor) -> torch.Tensor:
    placed = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    if value.numel():
        host_view(placed).copy_(value)
    return placed


def _positions(indices: Sequence[Any]) -> list[Any]:
    """The same indices with small masks counted on the host."""
    found: list[Any] = []
    for index in indices:
        if not (_masks([index]) and _small(index)):
            found.append(index)
            continue
        where = _host(index).nonzero(as_tuple=True)
        found += map(_on_device, where) if index.is_cuda else where
    return found


def _uncopied(func: Op, args: Any, kwargs: Any) -> torch.Tensor | None:
    """What a large copy from host to host answers, its pages untouched; None for any other operation."""
    into = func is aten.copy_.default
    if not (into or func in PINS or func in (aten._to_copy.default, aten.clone.default)):
        return None
    source = args[1] if into else args[0]
    target = args[0].device if into else torch.device(kwargs.get("device") or "cpu")
    if source.device.type != "cpu" or target.type != "cpu" or source.numel() <= LARGE or source.layout != torch.strided:
        return None
    if into:
        return args[0]
    if func is aten._to_copy.default:
        layout = kwargs.get("memory_format") or torch.preserve_format
        pinned = bool(kwargs.get("pin_memory"))
        return torch.empty_like(source, dtype=kwargs.get("dtype"), pin_memory=pinned, memory_format=layout)
    return torch.empty_like(source, pin_memory=func in PINS)
