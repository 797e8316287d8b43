"""Channels-last weights: convolutions in the layout that tensor cores read, without copies in and out of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from planner.device import Device
from planner.program import Component, Program, Variant
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import modules, undone_on_error


@dataclass(frozen=True, slots=True)
class ChannelsLast:
    """Rank-4 weights of one role's components in channels-last order.  Exact: only the order in memory changes."""

    role: str
    """`denoiser`, `autoencoder` or `controlnet`; each is a technique of its own, so that several go together."""
    needs: str = "a component of that role with only two-dimensional convolutions, which the card has kernels for"

    @property
    def name(self) -> str:
        return f"channels_last_{'vae' if self.role == 'autoencoder' else self.role}"

    @property
    def scope(self) -> Scope:
        return "autoencoder" if self.role == "autoencoder" else "denoiser"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        able = (c for c in program.components if self._can(c) and not _lacks_kernels(c, device))
        return tuple(map(self._option, able))

    def variant(self, variant: Variant, option: Option) -> Variant:
        return replace(variant, channels_last=variant.channels_last | {str(option.value)})

    def apply(self, pipe: Any, option: Option) -> Undo:
        return to_channels_last(modules(pipe)[str(option.value)])

    def _can(self, component: Component) -> bool:
        plays = self.role in component.traits or (self.role == "controlnet" and "ControlNet" in component.kind)
        return plays and "conv2d" in component.traits

    def _option(self, component: Component) -> Option:
        call = f"pipe.{component.name}.to(memory_format=torch.channels_last)"
        return Option(technique=self.name, value=component.name, calls=(call,))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program


def _lacks_kernels(component: Component, device: Device) -> bool:
    """Whether cuDNN has none that read this layout: bfloat16 before 8.0.

    torch multiplies matrices there, and copies inputs and weights back to rows first; by channel, as Sana's autoencoder
    needs it, torch asks cuDNN all the same and fails (ConvParams::use_cudnn_depthwise does not ask the card).
    """
    return component.dtype == "bfloat16" and device.compute_capability < (8, 0)


def to_channels_last(module: Any) -> Undo:
    """Reorder the rank-4 weights of `module`; the undo gives each its own strides back.

    torch refuses rank-5 weights in this layout, so a module that has some is reordered part by part without them.
    """
    import torch

    ranks = {tensor.dim() for tensor in module.parameters()}
    wholes = [module] if 5 not in ranks else [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    before = [(tensor, tensor.stride()) for tensor in (*module.parameters(), *module.buffers()) if tensor.dim() == 4]

    def undo() -> None:
        for tensor, strides in before:
            if tensor.stride() != strides:
                restored = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
                tensor.data = restored.copy_(tensor.data)

    with undone_on_error(undo):
        for whole in wholes:
            whole.to(memory_format=torch.channels_last)
    return undo
