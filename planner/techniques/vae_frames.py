"""Tiles along time: a video autoencoder works on overlapping runs of frames and blends where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.device import Device
from planner.errors import ApplyFailed
from planner.program import Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember, undone_on_error

FLAGS = ("use_framewise_encoding", "use_framewise_decoding")
SIZES = ("tile_sample_min_num_frames", "tile_sample_stride_num_frames")
RUNS: Mapping[str, tuple[int, int]] = {
    "AutoencoderKLLTXVideo": (16, 8), "AutoencoderKLLTX2Video": (16, 8), "AutoencoderKLHunyuanVideo": (8, 4),
}  # fmt: skip
"""Frames of a run and from one to the next: what the class has, switched off, and half of what HunyuanVideo's has
switched on (diffusers 0.42.1); both are whole latents, of 8 and of 4 frames."""


@dataclass(frozen=True, slots=True)
class VaeFrames:
    """Decode and encode in short runs of frames.  Faithful: they are blended, and convolutions see one at a time."""

    name: str = "vae_frames"
    scope: Scope = "autoencoder"
    needs: str = "an autoencoder of LTX or HunyuanVideo and a video longer than one run of frames"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        able = [c for c in program.components if c.kind in RUNS and (request.frames or 0) > RUNS[c.kind][0]]
        if request.fidelity < Fidelity.FAITHFUL:
            return ()
        return tuple(
            Option(
                technique=self.name,
                value=RUNS[part.kind][0],
                fidelity=Fidelity.FAITHFUL,
                calls=tuple(f"pipe.{part.name}.{attribute} = {value}" for attribute, value in _attributes(part.kind)),
            )
            for part in able
        )

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:  # noqa: ARG002
        able = [part for part in modules(pipe).values() if type(part).__name__ in RUNS]
        if not able:
            raise ApplyFailed(f"{type(pipe).__name__} has 0 autoencoders that tile along time; leave {self.name} out.")
        undo = in_reverse(remember(part, *FLAGS, *SIZES) for part in able)
        with undone_on_error(undo):
            for part in able:
                for attribute, value in _attributes(type(part).__name__):
                    setattr(part, attribute, value)
        return undo


def _attributes(kind: str) -> tuple[tuple[str, bool | int], ...]:
    return (*((flag, True) for flag in FLAGS), *zip(SIZES, RUNS[kind], strict=True))
