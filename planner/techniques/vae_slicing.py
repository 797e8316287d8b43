"""VAE slicing: the autoencoder decodes one image of a batch after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from planner.device import Device
from planner.program import Program, Variant
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember


@dataclass(frozen=True, slots=True)
class VaeSlicing:
    """Decode image by image.  Offered where a call makes more than one."""

    name: str = "vae_slicing"
    scope: Scope = "autoencoder"
    needs: str = "an autoencoder that slices, and several images or frames decoded at once"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        able = [component.name for component in program.components if "slicing" in component.traits]
        rows = max((part.rows for part in program.components if part.name in able), default=0)
        if not able or (rows or request.prompts * request.images // program.variant.splits) < 2:
            return ()
        return (Option(technique=self.name, calls=tuple(f"pipe.{name}.enable_slicing()" for name in able)),)

    def variant(self, variant: Variant, option: Option) -> Variant:  # noqa: ARG002
        return replace(variant, sliced=True)

    def apply(self, pipe: Any, option: Option) -> Undo:  # noqa: ARG002
        return in_reverse(set_slicing(part) for part in modules(pipe).values() if hasattr(part, "use_slicing"))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program


def set_slicing(vae: Any) -> Undo:
    """Turn slicing on; the undo restores the flag as it was."""
    undo = remember(vae, "use_slicing")
    vae.enable_slicing()
    return undo
