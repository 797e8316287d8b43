"""Fourbit: bitsandbytes' 4-bit weights on a ghost, sized as the library packs them and run as its card kernels do.

Each block of numbers shares a scale; with double quantization the scales are 8-bit numbers in blocks of 256 themselves
(bitsandbytes 0.50, functional.py).  Products of more than a few rows unpack the whole weight first; those that do not
take less, so that unpacking is the bound.
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


def pack(layer: Any, *, nested: bool, compute: torch.dtype) -> None:
    """Give a linear layer on the meta device the weight that loading would."""
    numbers, dtype = layer.weight.numel(), layer.weight.dtype
    blocks = -(-numbers // BLOCK)
    state = State(
        code=_empty(TABLE), absmax=_empty(blocks, torch.uint8 if nested else torch.float32),
        offset=_empty() if nested else None,
        state2=Scales(_empty(-(-blocks // NESTED_BLOCK)), _empty(NESTED_TABLE)) if nested else None,
        shape=layer.weight.shape, dtype=dtype,
    )  # fmt: skip
    weight = torch.empty(((numbers + 1) // 2, 1), dtype=torch.uint8, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.weight.quant_state, layer.compute_dtype = state, compute


def run_unpacked(layer: Any) -> None:
    """Have a ghost's layer run as the card would: unpack, multiply."""
    layer.forward = partial(_forward, layer)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    state, inner = layer.weight.quant_state, x.to(getattr(layer, "compute_dtype", None) or x.dtype)
    absmax = state.absmax
    if state.state2 is not None:
        absmax = absmax.to(torch.float32)
        absmax += state.offset
    weight = layer.weight.new_zeros(tuple(state.shape), dtype=state.dtype).to(inner.dtype)
    del absmax  # it was there while the weight was unpacked
    bias = None if layer.bias is None else layer.bias.to(inner.dtype)
    return torch.nn.functional.linear(inner, weight, bias).to(x.dtype)


def _empty(*size: Any) -> torch.Tensor:
    sizes = [n for n in size if isinstance(n, int)]
    dtype = next((n for n in size if isinstance(n, torch.dtype)), torch.float32)
    return torch.empty(sizes, dtype=dtype, device="meta")
