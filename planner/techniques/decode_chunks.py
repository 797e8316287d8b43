"""Decode chunks: pipelines that decode a video's frames as a batch decode fewer of them at a time."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

from planner.arguments import CHUNK, decodes_in_chunks
from planner.device import Device
from planner.errors import ApplyFailed
from planner.program import Component, Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import remember
from planner.techniques.micro_batch import halvings

TEMPORAL = frozenset({"AutoencoderKLTemporalDecoder"})
"""Classes whose decoder sees the frames of a chunk together, so that chunks change the numbers a little."""


@dataclass(frozen=True, slots=True)
class DecodeChunks:
    """Decode at most so many frames at a time.  Exact, or faithful where the decoder looks across frames."""

    name: str = "decode_chunks"
    scope: Scope = "autoencoder"
    needs: str = f"a pipeline whose call takes {CHUNK} and decodes several frames at a time"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        able = [c for c in program.components if "decode_chunks" in c.traits and c.rows > 1]
        offered = (self._option(component, frames) for component in able for frames in halvings(component.rows))
        return tuple(option for option in offered if option.fidelity <= request.fidelity)

    def _option(self, component: Component, frames: int) -> Option:
        fidelity = Fidelity.FAITHFUL if component.kind in TEMPORAL else Fidelity.EXACT
        call = f"pipe({CHUNK}={frames})"
        return Option(technique=self.name, value=frames, fidelity=fidelity, lean=True, calls=(call,))

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant.under(Setting(self.name, option.value, "call"))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:
        if not decodes_in_chunks(pipe):
            raise ApplyFailed(f"{type(pipe).__name__} decodes all in one and takes no {CHUNK}; leave it out.")
        undo, decode, most = remember(pipe, "decode_latents"), pipe.decode_latents, int(option.value)
        signature = inspect.signature(decode)

        @functools.wraps(decode)
        def in_chunks(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.arguments[CHUNK] = min(given.arguments.get(CHUNK, most), most)
            return decode(*given.args, **given.kwargs)

        pipe.decode_latents = in_chunks
        return undo
