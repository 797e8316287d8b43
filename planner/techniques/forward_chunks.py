"""Forward chunks: the feed-forward layers of the denoiser take one row, or one frame, at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed
from planner.program import Program, Setting, Variant
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember, undone_on_error

CHUNKED = frozenset({"UNetSpatioTemporalConditionModel", "SD3Transformer2DModel"})
"""Classes whose chunks are few: a row, or a frame, each.  Those of UNet3DConditionModel and its kin would be as many
as there are pixels in a latent (diffusers 0.42.1)."""


@dataclass(frozen=True, slots=True)
class ForwardChunks:
    """Feed-forward layers in chunks of one.  Exact: they look at one token at a time anyway."""

    name: str = "forward_chunks"
    scope: Scope = "denoiser"
    needs: str = f"a denoiser of class {' or '.join(sorted(CHUNKED))}"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        able = [component.name for component in program.components if component.kind in CHUNKED]
        calls = tuple(f"pipe.{name}.enable_forward_chunking(chunk_size=1)" for name in able)
        return (Option(technique=self.name, lean=True, calls=calls),) if able else ()

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:  # noqa: ARG002
        able = [part for part in modules(pipe).values() if type(part).__name__ in CHUNKED]
        if not able:
            raise ApplyFailed(f"{type(pipe).__name__} has 0 denoisers with such layers; leave {self.name} out.")
        undo = in_reverse(remember(part, "_chunk_size", "_chunk_dim") for whole in able for part in whole.modules())
        with undone_on_error(undo):
            for part in able:
                part.enable_forward_chunking(chunk_size=1)
        return undo
