"""Eightbit: bitsandbytes' LLM.int8 on a ghost, sized and run as its layers do on the card (bitsandbytes 0.50).

What is multiplied comes in rows of 8-bit numbers with a scale each, but for columns in which a number is large: those
are multiplied as they are.  How many there are only values tell.  They are given the room of all, and no time.
"""

from __future__ import annotations

from typing import Any

import torch

THRESHOLD = 6.0
"""From which a number counts as large, where nothing else is said (`BitsAndBytesConfig` of either library)."""


def pack(layer: Any) -> None:
    """Give a linear layer without bytes, on the meta device or of a ghost, the weight that loading would."""
    old: torch.Tensor = layer.weight
    layer.weight = torch.nn.Parameter(old.new_empty(old.shape, dtype=torch.int8), requires_grad=False)
    layer.weight.SCB = old.new_empty(old.shape[0], dtype=torch.float32)


def linear(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """The function of torch of that name, for a packed weight (autograd/_functions.py, `MatMul8bitLt`)."""
    rows = x.reshape(-1, x.shape[-1])
    quantized = _quantized(rows.to(torch.float16))
    large = rows.new_empty(rows.shape), _large(weight, rows)
    out = _product(quantized, weight, bias, rows.dtype)
    whole = out.new_empty(out.shape)  # with what the columns apart add to it
    del large, out  # until here
    return whole.reshape(*x.shape[:-1], weight.shape[0])


def _quantized(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and numbers (backends/cuda/ops.py, `int8_vectorwise_quant`)."""
    scales = rows.new_empty(rows.shape[0], dtype=torch.float32)
    numbers = rows.new_zeros(rows.shape, dtype=torch.int8)
    large = rows.abs() >= THRESHOLD
    del large
    return numbers, scales


def _large(weight: Any, rows: torch.Tensor) -> torch.Tensor:
    """The columns of the weight to be multiplied as they are: gathered, scaled twice in single precision, cast."""
    gathered = weight.new_empty(weight.shape)
    scaled = weight.new_empty(weight.shape, dtype=torch.float32)
    twice = weight.new_empty(weight.shape, dtype=torch.float32)
    del scaled, gathered
    out: torch.Tensor = twice.new_empty(weight.shape, dtype=rows.dtype)
    return out


def _product(
    quantized: tuple[torch.Tensor, torch.Tensor], weight: Any, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Sums of 32 bits, which are scaled in float16 whatever the layer's dtype (`int8_scaled_mm`)."""
    numbers, scales = quantized
    sums = torch._int_mm(numbers, weight.t())
    out = sums.new_zeros(sums.shape, dtype=torch.float16)
    if bias is not None and bias.dtype != torch.float16:
        out.add_(bias)
    cast = out.to(dtype)
    del sums, scales  # until here
    return cast
