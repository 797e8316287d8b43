"""Filed: a component whose weights are in a GGUF file, made on the meta device as diffusers loads such files."""

from __future__ import annotations

import importlib.util
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import torch

from planner.errors import BadRequest
from planner.ggml import Stored
from planner.hub import write_json
from planner.profiles import ComponentProfile

REFUSALS = (AttributeError, KeyError, ValueError, RuntimeError, OSError)
"""What diffusers raises for foreign weights, beside an error of its own."""
PLAIN = {0: torch.float32, 1: torch.float16}
"""ggml's numbers for what diffusers takes as it is."""


def module_of(kind: Any, part: ComponentProfile, dtype: torch.dtype) -> torch.nn.Module:
    """The component as loading would make it.  Raises BadRequest for a file that is not its own, or without gguf."""
    if importlib.util.find_spec("gguf") is None:
        raise BadRequest(f"{part.file} holds {len(part.tensors)} tensors in GGUF, which needs gguf: pip install gguf.")
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    checkpoint = {stored.name: _empty(stored) for stored in part.tensors}
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder) / "config.json", {"_class_name": part.kind, **part.config})
            module: torch.nn.Module = kind.from_single_file(
                checkpoint, config=folder, torch_dtype=dtype, device="meta", **quantized(dtype)
            )
    except (SingleFileComponentError, *REFUSALS) as error:
        raise _foreign(part, " ".join(str(error).split())[:120]) from error
    wanted = sum(prod(getattr(weight, "quant_shape", weight.shape)) for weight in module.parameters())
    if (there := sum(prod(stored.shape) for stored in part.tensors)) < wanted:
        raise _foreign(part, f"{there:,} of {wanted:,} numbers")
    return module


def _foreign(part: ComponentProfile, why: str) -> BadRequest:
    return BadRequest(
        f"{part.file} does not hold the weights of this {part.kind} ({why}): give that of the same model."
    )


def quantized(dtype: torch.dtype) -> dict[str, Any]:
    """The argument by which diffusers keeps weights packed."""
    from diffusers import GGUFQuantizationConfig

    return {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)}


def _empty(stored: Stored) -> torch.Tensor:
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter
    from gguf import GGMLQuantizationType

    if stored.kind in PLAIN:
        return torch.empty(stored.shape, dtype=PLAIN[stored.kind], device="meta")
    kind = GGMLQuantizationType(stored.kind)
    if kind not in SUPPORTED_GGUF_QUANT_TYPES:
        raise BadRequest(
            f"{stored.name} is packed as {kind.name}, which diffusers cannot unpack; give a Q8_0 or K file."
        )
    numbers, nbytes = GGML_QUANT_SIZES[kind]
    shape = (*stored.shape[:-1], stored.shape[-1] // numbers * nbytes)
    packed: torch.Tensor = GGUFParameter(torch.empty(shape, dtype=torch.uint8, device="meta"), quant_type=kind)
    return packed
