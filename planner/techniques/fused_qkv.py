"""Fused projections: queries, keys and values of an attention from one product instead of three."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed
from planner.program import Component, Program, Setting, Variant
from planner.request import Request
from planner.techniques.attention import remember_processors
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, is_ghost, modules, remember, undone_on_error
from planner.techniques.tracing import is_denoiser


@dataclass(frozen=True, slots=True)
class FusedQkv:
    """diffusers' fused projections in the denoiser.  Exact up to kernel rounding.

    The single ones stay beside them, so it takes memory for a few launches less: it is for those who name it.
    """

    name: str = "fused_qkv"
    scope: Scope = "call"
    needs: str = "a denoiser whose projections diffusers can fuse, and which is not quantized"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        able = [component for component in program.components if _can(component)]
        if not able or self.name not in request.use:
            return ()
        calls = tuple(f"pipe.{component.name}.fuse_qkv_projections()" for component in able)
        return (Option(technique=self.name, calls=calls),)

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:  # noqa: ARG002
        able = [part for name, part in modules(pipe).items() if is_denoiser(name) and hasattr(part, METHOD)]
        for part in able:
            _check(part)
        undo = in_reverse((remember_processors(pipe), *(_remembered(part) for part in able)))
        with undone_on_error(undo):
            for part in able:
                _fuse(part)
        return undo


METHOD = "fuse_qkv_projections"
WHOLE = ("to_q", "to_k", "to_v")


def _can(component: Component) -> bool:
    return {"denoiser", "fuses_qkv"} <= component.traits and "quantized" not in component.traits


def _fuse(module: Any) -> None:
    """The new weights of a ghost have no bytes either."""
    weight = next(module.parameters())
    with weight.fake_mode if is_ghost(weight) else nullcontext():
        module.fuse_qkv_projections()
    module.requires_grad_(requires_grad=weight.requires_grad)


def _check(module: Any) -> None:
    """Raise ApplyFailed for what fusing would leave out: adapters, and processors with weights."""
    import torch

    layers = [layer for part in _attentions(module) for name in WHOLE if (layer := getattr(part, name, None))]
    processors = [getattr(part, "processor", None) for part in _attentions(module)]
    foreign = [layer for layer in layers if type(layer) is not torch.nn.Linear]
    foreign += [processor for processor in processors if isinstance(processor, torch.nn.Module)]
    if foreign:
        raise ApplyFailed(
            f"Fusing would leave out what {len(foreign)} layers and processors add ({type(foreign[0]).__name__}); fuse "
            "adapters into the weights first, or plan without fused_qkv."
        )


def _attentions(module: Any) -> Iterator[Any]:
    return (part for part in module.modules() if hasattr(part, "fuse_projections"))


def _remembered(module: Any) -> Undo:
    """Diffusers' own way back keeps new layers, and what it remembers, where processors are replaced."""
    tables = [(part._modules, dict(part._modules)) for part in _attentions(module)]
    flags = [remember(part, "fused_projections") for part in _attentions(module)]

    def restore() -> None:
        for table, children in tables:
            table.clear()
            table.update(children)

    return in_reverse((*flags, restore, remember(module, "original_attn_processors")))
