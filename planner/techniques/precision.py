"""Half precision: weights kept as float32 are cast to float16 or bfloat16, as loading with that dtype would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.device import Device
from planner.packed import packs
from planner.program import Program, Variant
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import modules, undone_on_error

TRAINED_IN_BFLOAT16 = ("T5", "UMT5", "MT5", "Gemma", "Qwen", "Llama", "Mistral", "Glm", "ChatGLM", "Smol")
"""Classes of text encoders whose activations leave the range of float16 (65504): diffusers documents black or noisy
images with T5 in float16, and the others' checkpoints are published in bfloat16 only."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Cast float32 weights to a half precision.  Faithful.

    The float32 tensors stay in host RAM and the undo puts them back, so it is exact; it costs their bytes of RAM.
    """

    name: str = "precision"
    scope: Scope = "call"
    needs: str = "weights in float32 and fidelity faithful"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:
        plain = [part for part in program.components if "quantized" not in part.traits]
        single = any("denoiser" in part.traits and part.dtype == "float32" for part in plain)
        if not single or program.variant.dtype or request.fidelity < Fidelity.FAITHFUL:
            return ()
        wide = any(part.kind.startswith(TRAINED_IN_BFLOAT16) for part in program.components)
        native = device.native_bf16 and device.compute_capability >= (8, 0)
        able = (("float16", not wide), ("bfloat16", native))
        wanted = [dtype for dtype, possible in able if possible and request.dtype in (None, dtype)]
        return tuple(self._option(program, dtype) for dtype in wanted)

    def variant(self, variant: Variant, option: Option) -> Variant:
        return replace(variant, dtype=str(option.value))

    def apply(self, pipe: Any, option: Option) -> Undo:
        import torch

        dtype: torch.dtype = getattr(torch, str(option.value))
        before: dict[int, tuple[Any, Any, Any]] = {}

        def undo() -> None:
            for tensor, original, device in before.values():
                tensor.data = original.to(device)

        with undone_on_error(undo):
            for module in modules(pipe).values():
                for tensor in cast_by_loading(module, dtype):
                    if id(tensor) not in before and tensor.dtype != dtype:
                        before[id(tensor)] = (tensor, tensor.data.cpu(), tensor.device)
                        tensor.data = tensor.data.to(dtype)
        return undo

    def _option(self, program: Program, dtype: str) -> Option:
        call = f"pipe = {program.pipeline}.from_pretrained(MODEL, torch_dtype=torch.{dtype})"
        return Option(technique=self.name, value=dtype, fidelity=Fidelity.FAITHFUL, calls=(call,))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program


def cast_by_loading(module: Any, dtype: Any) -> Iterator[Any]:
    """The parameters and buffers that `from_pretrained(torch_dtype=dtype)` would give `dtype`.

    These are the floating tensors of the state dict but for the modules the model keeps in float32: in diffusers for
    either half, in transformers for float16 or, where it says strictly, for either.  Quantized models keep theirs.
    """
    import torch

    if getattr(module, "hf_quantizer", None) is not None or packs(module):
        return
    kept = _kept_in_single(module, dtype)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not kept & set(name.split(".")):
            yield tensor


def _kept_in_single(module: Any, dtype: Any) -> frozenset[str]:
    import torch
    from diffusers import ModelMixin

    kept = frozenset(getattr(module, "_keep_in_fp32_modules", None) or ())
    if isinstance(module, ModelMixin):
        return kept
    strict = frozenset(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    return kept | strict if dtype == torch.float16 else strict
