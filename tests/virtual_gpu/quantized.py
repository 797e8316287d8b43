"""What tests of quantized weights ask of full-size pipelines: two steps of one image, or of a short video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner import profiles
from planner.cards import card
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.techniques import DEFAULT

CARD = "a100-sxm4-80gb"
SIZES = {"flux1-dev": (1024, 1024), "sd3-medium": (1024, 1024), "sdxl": (1024, 1024), "wan2.1-t2v-1.3b": (480, 832)}
FRAMES = 17
LEFT = 32_000_000
"""Bytes that stay after all is undone: cuBLAS keeps a workspace, an autoencoder of videos its last frames."""


def priced(model: str, value: str, cache: Path) -> tuple[Programs, Pricer]:
    """Programs and prices of a pipeline whose weights are quantized so."""
    height, width = SIZES[model]
    frames = {"frames": FRAMES} if "wan" in model else {}
    asked = Request(
        height=height, width=width, steps=2, fidelity=Fidelity.LOSSY, use=(f"quantization={value}",), **frames
    )
    programs = Programs(FromProfile(profiles.find(model), None), asked, cache)
    return programs, Pricer(programs, card(CARD), asked, DEFAULT)


def call(model: str) -> dict[str, Any]:
    """The same request as a pipeline takes it; what it does not know is left out there."""
    height, width = SIZES[model]
    return {"height": height, "width": width, "num_frames": FRAMES, "num_inference_steps": 2}


def denoiser(model: str) -> str:
    """The phase of the component that was quantized."""
    return "unet" if model == "sdxl" else "transformer"


def within(foreseen: int, seen: int, most: float) -> bool:
    """Whether a promise is at most a thousandth too small, and at most `most` times what was seen."""
    return 0.999 * seen <= foreseen <= most * seen
