"""Packing: what bitsandbytes makes of linear layers while a pipeline is loaded, by the libraries' own quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.packed import packs
from planner.quantizable import kept_in_single, layers_of
from planner.techniques.base import Undo
from planner.techniques.live import default_device, in_reverse, is_ghost

LIBRARY = "bitsandbytes"
BITS = {"nf4": 4, "fp4": 4, "llm_int8": 8}
"""Ways that are chosen while loading, and the bits of a number."""
USUAL = ("nf4",)
"""Those offered without being named: fp4 takes as much and rounds worse, LLM.int8 takes more than torchao's int8."""
IMPORT = "from diffusers import PipelineQuantizationConfig"
ON_THE_WAY = 2
"""A layer on the card to be packed takes its bytes, what comes of them, and less than half as much between."""


def call(pipeline: str, value: str, dtypes: Mapping[str, str]) -> str:
    """The plain diffusers code; `dtypes`: of each component to pack, that of the first computes."""
    four = f'"bnb_4bit_quant_type": "{value}", "bnb_4bit_compute_dtype": torch.{next(iter(dtypes.values()))}'
    given = '"load_in_8bit": True' if BITS[value] == 8 else f'"load_in_4bit": True, {four}'
    names, backend = ", ".join(f'"{name}"' for name in dtypes), f"bitsandbytes_{BITS[value]}bit"
    config = f'quant_backend="{backend}", quant_kwargs={{{given}}}, components_to_quantize=[{names}]'
    return f"pipe = {pipeline}.from_pretrained(MODEL, quantization_config=PipelineQuantizationConfig({config}))"


def is_unread(module: Any) -> bool:
    """Whether a component is a ghost."""
    return any(map(is_ghost, module.parameters()))


def is_plain(module: Any) -> bool:
    """Whether a component has layers to pack and none that is packed."""
    return not packs(module) and any(True for _ in layers_of(module))


def pack_ghosts(module: Any, value: str) -> Undo:
    """Have a ghost bear what loading would give it; returns what takes it back."""
    from planner import eightbit, fourbit

    layers = [layer for _, layer in layers_of(module)] if is_plain(module) else []
    undo = in_reverse([_seated(layer) for layer in layers])
    for layer in layers:
        if BITS[value] == 8:
            eightbit.pack(layer)
        else:
            fourbit.pack(layer, nested=False, compute=layer.weight.dtype)
    return undo


def pack(module: Any, value: str, room: int = 0) -> None:
    """Pack a component that was just read, layer by layer, as its library does while loading; it stays on the host.

    A layer for which `room` bytes of the card are enough is packed there, where that is quick.
    """
    import torch

    if not is_plain(module):
        return
    before = {path: layer for path, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    quantizer = _quantizer(module, value, next(layers_of(module))[1].weight.dtype)
    quantizer.preprocess_model(model=module, device_map={"": "cpu"}, keep_in_fp32_modules=kept_in_single(module))
    for path, old in before.items():
        layer = module.get_submodule(path)
        if layer is not old:
            large = ON_THE_WAY * old.weight.nbytes > room
            layer.weight = _packed(old.weight.data, layer.weight, "cpu" if large else default_device())
            layer.bias = old.bias
            del old.weight
    quantizer.postprocess_model(module)
    module.hf_quantizer = quantizer
    module.eval()


def _packed(numbers: Any, empty: Any, device: str) -> Any:
    """The library packs what arrives at a device; `empty` says how."""
    return type(empty)(numbers, requires_grad=False, **vars(empty)).to(device).to("cpu")


def _quantizer(module: Any, value: str, compute: Any) -> Any:
    import diffusers
    import transformers
    from diffusers.quantizers.auto import DiffusersAutoQuantizer
    from transformers.quantizers.auto import AutoHfQuantizer

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": value, "bnb_4bit_compute_dtype": compute}
    given = {"load_in_8bit": True} if BITS[value] == 8 else four
    if isinstance(module, diffusers.ModelMixin):
        return DiffusersAutoQuantizer.from_config(diffusers.BitsAndBytesConfig(**given), pre_quantized=False)
    return AutoHfQuantizer.from_config(transformers.BitsAndBytesConfig(**given), pre_quantized=False)


def _seated(layer: Any) -> Undo:
    weight = layer.weight

    def restore() -> None:
        layer._parameters["weight"] = weight

    return restore
