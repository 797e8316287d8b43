"""Fourbit: bitsandbytes' 4-bit weights on a ghost, sized as the library packs them and run as its card kernels do.

Each block of numbers shares a scale; with double quantization the scales are 8-bit numbers in blocks of 256 themselves
(bitsandbytes 0.50, functional.py).  A few rows are multiplied by the packed weight; for many, the whole weight is
unpacked first.  In between the choice is the card's (backends/cuda/ops.py, `gemm_4bit`), and unpacking is the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

TABLE, NESTED_TABLE = 16, 256
"""Entries of the tables of 4-bit and 8-bit numbers."""
BLOCK, NESTED_BLOCK = 64, 256
"""Numbers that share a scale, which neither diffusers nor transformers changes; scales that do."""
FEW = 4
"""Rows up to which no card unpacks the weight, where its rows are whole blocks (`_GEMM_4BIT_CUSTOM_FLOOR_M`)."""


@dataclass(slots=True)
class Scales:
    """Scales that are quantized themselves."""

    absmax: torch.Tensor
    code: torch.Tensor


@dataclass(slots=True)
class State:
    """What the library keeps beside a weight, by its names."""

    code: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor | None
    state2: Scales | None
    shape: torch.Size
    dtype: torch.dtype
    compute: torch.dtype
    """What its layer keeps, there: the dtype of the product."""


def pack(layer: Any, *, nested: bool, compute: torch.dtype) -> None:
    """Give a linear layer without bytes, on the meta device or of a ghost, the weight that loading would."""
    old: torch.Tensor = layer.weight
    blocks = -(-old.numel() // BLOCK)

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return old.new_empty(size, dtype=dtype)

    state = State(
        code=empty(TABLE), absmax=empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        offset=empty() if nested else None,
        state2=Scales(empty(-(-blocks // NESTED_BLOCK)), empty(NESTED_TABLE)) if nested else None,
        shape=old.shape, dtype=old.dtype, compute=compute,
    )  # fmt: skip
    weight = empty((old.numel() + 1) // 2, 1, dtype=torch.uint8)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.weight.quant_state = state


def run_unpacked(layer: Any) -> None:
    """Have a ghost's layer of the library run as the card would."""
    layer.forward = partial(_forward, layer)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return linear(x, layer.weight, layer.bias, getattr(layer, "compute_dtype", None))


def linear(x: torch.Tensor, weight: Any, bias: torch.Tensor | None, compute: torch.dtype | None = None) -> torch.Tensor:
    """The function of torch of that name, for a packed weight."""
    inner = x.to(compute or getattr(weight.quant_state, "compute", None) or x.dtype)
    return _product(inner, weight, None if bias is None else bias.to(inner.dtype)).to(x.dtype)


def _product(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    rows, columns = tuple(weight.quant_state.shape)
    if x.numel() <= FEW * columns and not columns % BLOCK:
        out: torch.Tensor = weight.new_zeros((*x.shape[:-1], rows), dtype=x.dtype)  # reads the packed weight
        return out
    held = _scales(weight.quant_state)
    unpacked = weight.new_zeros((rows, columns), dtype=x.dtype)
    out = torch.nn.functional.linear(x, unpacked, bias)
    del held  # until here
    return out


def _scales(state: Any) -> tuple[torch.Tensor, ...]:
    """The scales as numbers, where they are quantized: first without their mean, then with it."""
    if state.state2 is None:
        return ()
    plain = state.absmax.to(torch.float32)
    return plain, plain + state.offset
