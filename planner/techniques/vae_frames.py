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
RUNS: Mapping[str, tuple[int, ...]] = {
    "AutoencoderKLLTXVideo": (32, 16), "AutoencoderKLLTX2Video": (32, 16), "AutoencoderKLHunyuanVideo": (32, 8),
}  # fmt: skip
"""Frames of a run, whole latents: LTX' classes have runs of 16 and HunyuanVideo's of 16, those of LTX switched off."""
BLENDED: Mapping[str, int] = {
    "AutoencoderKLLTXVideo": 8, "AutoencoderKLLTX2Video": 8, "AutoencoderKLHunyuanVideo": 4,
}  # fmt: skip
"""Frames in which a run is blended with the one before; the classes' own (diffusers 0.42.1)."""


@dataclass(frozen=True, slots=True)
class VaeFrames:
    """Decode and encode in short runs of frames.  Faithful: they are blended, and convolutions see one at a time."""

    name: str = "vae_frames"
    scope: Scope = "autoencoder"
    needs: str = "an autoencoder of LTX or HunyuanVideo and a video longer than one run of frames"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        if request.fidelity < Fidelity.FAITHFUL:
            return ()
        able = [c for c in program.components if c.kind in RUNS]
        return tuple(
            Option(
                technique=self.name,
                value=run,
                fidelity=Fidelity.FAITHFUL,
                calls=tuple(f"pipe.{part.name}.{name} = {value}" for name, value in _attributes(part.kind, run)),
            )
            for part in able
            for run in RUNS[part.kind]
            if (request.frames or 0) - 1 > run  # a run has one frame more, the first
        )

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, self.scope))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:
        able = [part for part in modules(pipe).values() if type(part).__name__ in RUNS]
        if not able:
            raise ApplyFailed(f"{type(pipe).__name__} has 0 autoencoders that tile along time; leave {self.name} out.")
        undo = in_reverse(remember(part, *FLAGS, *SIZES) for part in able)
        with undone_on_error(undo):
            for part in able:
                for attribute, value in _attributes(type(part).__name__, int(option.value)):
                    setattr(part, attribute, value)
        return undo


def _attributes(kind: str, run: int) -> tuple[tuple[str, bool | int], ...]:
    return (*((flag, True) for flag in FLAGS), *zip(SIZES, (run, run - BLENDED[kind]), strict=True))
