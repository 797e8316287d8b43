"""Quantization: linear layers keep 8-bit numbers by torchao, or those that bitsandbytes packs while they are loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from planner import host, packed
from planner.device import Device
from planner.errors import ApplyFailed, BadRequest
from planner.program import Component, Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.techniques import inlined, packing
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, is_ghost, modules, undone_on_error
from planner.techniques.tracing import is_denoiser
from planner.units import format_bytes

CONFIGS = {"int8": "Int8WeightOnlyConfig", "float8": "Float8WeightOnlyConfig"}
"""Of torchao 0.15 and later."""
DTYPES = {"int8": ("bfloat16", "float32"), "float8": ("bfloat16", "float16", "float32")}
"""Weights they are made from: an int8 product is scaled when it is summed, and its sums leave the range of float16."""
LARGE = 1_000_000_000
"""Bytes from which a text encoder is worth rounding: T5-XXL and language models are, CLIP is not."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """Round the linear layers of denoisers and large text encoders.  Lossy.

    By torchao to 8 bits, those inside the blocks.  The weights as they were stay in host RAM, and the undo puts them
    back; where there is not enough RAM nothing is done, unless `for_good` says that the pipeline will be loaded anew.
    By bitsandbytes nearly all, while a pipeline is loaded: so only where none is there yet, and never undone.
    """

    for_good: bool = False
    large: int = LARGE
    name: str = "quantization"
    scope: Scope = "call"
    needs: str = (
        "torchao (pip install torchao) or, before it is loaded, bitsandbytes, and a denoiser that is not quantized yet "
        "in bfloat16 or, but for int8, float16"
    )

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        taken = program.variant.setting("layerwise_casting") or program.variant.setting(self.name)
        if taken or request.fidelity < Fidelity.LOSSY:
            return ()
        found = [(value, tuple(self._calls(program, value))) for value in CONFIGS]
        named = [name.partition("=")[2] for name in request.use if name.startswith(f"{self.name}=")]
        found += [(value, self._loads(program, value)) for value in packing.BITS if value in (*packing.USUAL, *named)]
        return tuple(
            Option(technique=self.name, value=value, fidelity=Fidelity.LOSSY, calls=calls)
            for value, calls in found
            if calls
        )

    def lacks(self, value: str, program: Program, device: Device) -> str:  # noqa: ARG002
        """Why a way to quantize is not on offer; empty where that is plain."""
        if value not in packing.BITS or any("quantized" in part.traits for part in program.components):
            return ""
        if not all("unread" in part.traits for part in program.components):
            return "is chosen while loading, and this one is loaded; use planner.load"
        if importlib.util.find_spec(packing.LIBRARY) is None:
            return f"needs {packing.LIBRARY}, which is not installed: pip install {packing.LIBRARY}"
        return ""

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:
        value = str(option.value)
        chosen = {name: part for name, part in modules(pipe).items() if self.takes(name, part)}
        if value in packing.BITS:
            return self._loaded(pipe, chosen, value)
        layers = [layer for part in chosen.values() for layer in layers_of(part, value)]
        if self.for_good and not layers and any(map(packed.packs, chosen.values())):
            return _gone(", ".join(chosen), 8)  # it was loaded so
        if not layers:
            raise ApplyFailed(f"{type(pipe).__name__} has 0 layers that {value} can take; plan this pipeline.")
        if self.for_good:
            _quantize(layers, value)
            return _gone(", ".join(chosen), 8)
        _check_room(", ".join(chosen), layers)
        undo = in_reverse([_remember(layer) for layer in layers])
        with undone_on_error(undo):
            _quantize(layers, value)
        return undo

    def may_take(self, name: str) -> bool:
        """Whether a component of that name is one to round, if it is large enough."""
        return is_denoiser(name) or name.startswith("text_encoder")

    def takes(self, name: str, module: Any) -> bool:
        """Whether a component is one to round."""
        return is_denoiser(name) or (self.may_take(name) and sum(map(_bytes, module.parameters())) >= self.large)

    def _loaded(self, pipe: Any, chosen: dict[str, Any], value: str) -> Undo:
        """Of a ghost, what loading will have done; of a pipeline, whether it has."""
        if all(packing.is_unread(part) for part in chosen.values()):
            return in_reverse([packing.pack_ghosts(part, value) for part in chosen.values()])
        if plain := [name for name, part in chosen.items() if packing.is_plain(part)]:
            raise ApplyFailed(
                f"The plan packs {', '.join(plain)} to {value} while loading and this {type(pipe).__name__} was loaded "
                "otherwise; load it by planner.load, or as the plan's code does."
            )
        return _gone(", ".join(chosen), packing.BITS[value]) if self.for_good else _nothing

    def _calls(self, program: Program, value: str) -> Iterator[str]:
        able = [part for part in self._taken(program) if part.dtype in DTYPES[value]]
        if not able or importlib.util.find_spec("torchao") is None:
            return
        yield f"from torchao.quantization import {CONFIGS[value]}, quantize_"
        yield inlined.WITHIN
        config = f"{CONFIGS[value]}(set_inductor_config=False)"
        yield from (f"quantize_(pipe.{part.name}, {config}, within_blocks(pipe.{part.name}))" for part in able)

    def _loads(self, program: Program, value: str) -> tuple[str, ...]:
        unread = all("unread" in part.traits for part in program.components)
        dtypes = {part.name: part.dtype for part in self._taken(program)}
        if not unread or not dtypes or importlib.util.find_spec(packing.LIBRARY) is None:
            return ()
        return packing.IMPORT, packing.call(program.pipeline, value, dtypes)

    def _taken(self, program: Program) -> Iterator[Component]:
        """The components to round; none where every denoiser is rounded already."""
        denoisers = [component for component in program.components if "denoiser" in component.traits]
        for component in program.components if any(map(_plain, denoisers)) else ():
            encoder = "text_encoder" in component.traits and sum(component.weights) >= self.large
            if _plain(component) and ("denoiser" in component.traits or encoder):
                yield component


def quantize_blocks(module: Any, value: str = "int8") -> None:
    """Round the linear layers in the blocks of a module for good.  `value`: int8 or float8.  Raises BadRequest."""
    if value not in CONFIGS:
        raise BadRequest(f"{value!r} is none of the {len(CONFIGS)} ways to quantize; use {', '.join(CONFIGS)}.")
    _quantize(list(layers_of(module, value)), value)


def layers_of(module: Any, value: str) -> Iterator[Any]:
    """The linear layers within lists of blocks, but for those the model keeps in float32 and packed ones."""
    import torch

    kept = frozenset(getattr(module, "_keep_in_fp32_modules", None) or ())
    dtypes = {getattr(torch, name) for name in DTYPES[value]}
    seen: set[int] = set()
    for path, listed in module.named_modules():
        if not isinstance(listed, torch.nn.ModuleList):
            continue
        for inner, layer in listed.named_modules():
            mine = type(layer) is torch.nn.Linear and not kept & set(f"{path}.{inner}".split("."))
            if mine and id(layer) not in seen and layer.weight.dtype in dtypes and not packed.is_packed(layer.weight):
                seen.add(id(layer))
                yield layer


def _plain(component: Component) -> bool:
    return "quantized" not in component.traits


def _bytes(tensor: Any) -> int:
    return sum(int(piece.tensor.numel() * piece.tensor.element_size()) for piece in packed.parts(tensor))


def _quantize(layers: list[Any], value: str) -> None:
    """Ghosts of one shape are rounded once: what comes of them differs in nothing."""
    from torchao import quantization

    config = getattr(quantization, CONFIGS[value])(set_inductor_config=False)
    known: dict[tuple[Any, ...], Any] = {}
    for layer in layers:
        weight = layer.weight
        key = (tuple(weight.shape), weight.dtype)
        if is_ghost(weight) and key in known:
            layer.weight = _like(known[key])
            continue
        before = vars(layer).get("extra_repr")
        quantization.quantize_(layer, config)
        vars(layer).pop("extra_repr") if before is None else None
        known[key] = layer.weight


def _like(weight: Any) -> Any:
    import torch

    with torch.no_grad():
        return torch.nn.Parameter(packed.rebuilt(weight, torch.empty_like), requires_grad=False)


def _check_room(names: str, layers: list[Any]) -> None:
    """Beside weights on the host come their 8 bits; of weights on the card the whole."""
    needed = 0
    for weight in (layer.weight for layer in layers if not is_ghost(layer.weight)):
        needed += weight.numel() * (1 if weight.device.type == "cpu" else weight.element_size())
    if needed > (free := host.available_host_ram()):
        raise ApplyFailed(
            f"The weights of {names} as they are take {format_bytes(needed)} more of host RAM and {format_bytes(free)} "
            "are free, so quantization could not be undone; free some, or pass Quantization(for_good=True) and load "
            "the pipeline anew afterwards."
        )


def _remember(layer: Any) -> Undo:
    """What puts the weight back, which waits in host RAM."""
    weight, device = layer.weight, layer.weight.device
    if not is_ghost(weight):
        aside = weight.data.cpu()

    def restore() -> None:
        if not is_ghost(weight):
            weight.data = aside.to(device)
        layer._parameters["weight"] = weight

    return restore


def _nothing() -> None:
    """Nothing was done."""


def _gone(names: str, bits: int) -> Undo:
    def refuse() -> None:
        raise ApplyFailed(f"The weights of {names} were rounded to {bits} bits for good; load the pipeline anew.")

    return refuse
