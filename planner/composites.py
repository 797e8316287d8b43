"""Composites: functions of torch that the CPU takes apart in another way than CUDA does, for ghosts are on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from planner import eightbit, fourbit
from planner.packed import is_wrapped

aten = torch.ops.aten


def linear(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
    """A bias that no product takes along is added in place, which torch leaves for tensors of Python's (Linear.cpp)."""
    if way := _packed_way(weight):
        return way(input, weight, bias)
    taken_along = input.dim() == 2 or input.is_contiguous() or is_wrapped(weight)
    if bias is None or taken_along or not isinstance(input, FakeTensor):
        return functional.linear(input, weight, bias)
    return functional.linear(input, weight).add_(bias)


def _packed_way(weight: Any) -> Callable[..., torch.Tensor] | None:
    """How bitsandbytes multiplies by a weight; None where it is not its own."""
    if hasattr(weight, "quant_state"):
        return fourbit.linear
    return eightbit.linear if hasattr(weight, "SCB") else None


def _softmax(func: Any, kernel: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """CUDA's kernels take float16 to float32 on the way (SoftMax.cpp)."""
    given, dim = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs.get("dim")
    dtype = next((each for each in (*args[2:], kwargs.get("dtype")) if isinstance(each, torch.dtype)), None)
    cast = (given.dtype, dtype) == (torch.float16, torch.float32)
    out: torch.Tensor = (
        kernel(given, dim, True)
        if cast and dim is not None and isinstance(given, FakeTensor)
        else func(*args, **kwargs)
    )
    return out


def _isinf(func: Any, given: torch.Tensor) -> torch.Tensor:
    """Of a float CUDA compares the magnitude, in a tensor of its own (TensorCompare.cpp)."""
    out: torch.Tensor = (
        given.abs() == float("inf") if isinstance(given, FakeTensor) and given.is_floating_point() else func(given)
    )
    return out


SOFTMAXES = {
    aten._softmax.default: (torch.softmax, torch.Tensor.softmax, functional.softmax),
    aten._log_softmax.default: (torch.log_softmax, torch.Tensor.log_softmax, functional.log_softmax),
}
INSTEAD: dict[Any, Callable[..., torch.Tensor]] = {
    functional.linear: linear,
    **{func: partial(_isinf, func) for func in (torch.isinf, torch.Tensor.isinf)},
    **{func: partial(_softmax, func, kernel) for kernel, funcs in SOFTMAXES.items() for func in funcs},
}
"""What is called in place of a function of torch."""
