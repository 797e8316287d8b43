"""Layerwise casting: the denoiser's weights wait in 8-bit floats, and each layer's are cast up while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from planner import host
from planner.device import Device
from planner.errors import ApplyFailed
from planner.holding import hold
from planner.program import Component, Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.techniques import inlined
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, is_ghost, modules, remember, undone_on_error
from planner.techniques.tracing import is_denoiser
from planner.units import format_bytes

STORAGE = "float8_e4m3fn"
"""What diffusers stores by default: four bits of exponent, three of mantissa; it needs no support by the card."""
WIDE = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class LayerwiseCasting:
    """Keep weights in fp8 but for norms, embeddings and what else the model exempts.  Lossy: they are rounded.

    The weights as they were stay in host RAM, and the undo puts them back; where there is not enough RAM nothing is
    done, unless `for_good` says that the pipeline will be loaded anew.
    """

    for_good: bool = False
    name: str = "layerwise_casting"
    scope: Scope = "call"
    needs: str = "a denoiser of diffusers that is not quantized"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        able = [component for component in program.components if _can(component)]
        if not able or request.fidelity < Fidelity.LOSSY:
            return ()
        calls = (inlined.HOLD, *(call for component in able for call in _calls(component)))
        return (Option(technique=self.name, value=STORAGE, fidelity=Fidelity.LOSSY, calls=calls),)

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:
        able = {name: part for name, part in modules(pipe).items() if is_denoiser(name) and _castable(part)}
        if not self.for_good:
            _check_room(able)
        undo = in_reverse([_remember(name, part, keep=not self.for_good) for name, part in able.items()])
        with undone_on_error(undo):
            for part in able.values():
                _cast(part, str(option.value))
        return undo


def _can(component: Component) -> bool:
    return {"denoiser", "layerwise_casting"} <= component.traits and component.dtype in WIDE


def _castable(module: Any) -> bool:
    return hasattr(module, "enable_layerwise_casting") and getattr(module, "hf_quantizer", None) is None


def _calls(component: Component) -> tuple[str, ...]:
    """Diffusers' own, and what keeps the weights where they are."""
    dtypes = f"storage_dtype=torch.{STORAGE}, compute_dtype=torch.{component.dtype}"
    return (
        f"pipe.{component.name}.enable_layerwise_casting({dtypes})",
        inlined.HELD.format(name=component.name),
    )


def _cast(module: Any, storage: str) -> None:
    import torch

    module.enable_layerwise_casting(storage_dtype=getattr(torch, storage), compute_dtype=module.dtype)
    hold(module)


def _weights(module: Any) -> Iterator[Any]:
    seen: set[int] = set()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _check_room(able: dict[str, Any]) -> None:
    """Beside weights on the host comes their cast copy; of weights on the card the whole."""
    needed = 0
    for module in able.values():
        for tensor in (weight for weight in _weights(module) if not is_ghost(weight)):
            needed += tensor.numel() * (1 if tensor.device.type == "cpu" else tensor.element_size())
    if needed > (free := host.available_host_ram()):
        raise ApplyFailed(
            f"The weights of {', '.join(able)} as they are take {format_bytes(needed)} more of host RAM and "
            f"{format_bytes(free)} are free, so fp8 could not be undone; free some, or pass "
            "LayerwiseCasting(for_good=True) and load the pipeline anew afterwards."
        )


def _remember(name: str, module: Any, *, keep: bool) -> Undo:
    """What takes the hooks off and puts the weights back, or says that they are gone."""
    hooks = in_reverse([remember_hooks(part) for part in module.modules()])
    if not keep:
        return in_reverse([_gone(name), hooks])
    before = [(tensor, tensor.data.cpu(), tensor.device, tensor.dtype) for tensor in _weights(module)]

    def restore() -> None:
        for tensor, data, device, dtype in before:
            if tensor.dtype != dtype:
                tensor.data = data.to(device)

    return in_reverse([restore, hooks])


def remember_hooks(part: Any) -> Undo:
    """The registry of diffusers' hooks on a module, and what is in it."""
    attributes, registry = remember(part, "forward", "_diffusers_hook"), getattr(part, "_diffusers_hook", None)
    if registry is None:
        return attributes
    return in_reverse([attributes, remember_registry(registry)])


def remember_registry(registry: Any) -> Undo:
    """The hooks in a registry of diffusers, which takes further ones in place."""
    hooks, order, functions = dict(registry.hooks), list(registry._hook_order), list(registry._fn_refs)

    def restore() -> None:
        registry.hooks, registry._hook_order, registry._fn_refs = hooks, order, functions

    return restore


def _gone(name: str) -> Undo:
    def refuse() -> None:
        raise ApplyFailed(f"The weights of {name} were rounded to fp8 for good; load the pipeline anew.")

    return refuse
