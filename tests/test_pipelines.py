"""Each family of shipped pipelines plans: the default request of one of its profiles is traced over ghosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import profiles
from planner.cards import card
from planner.request import Request
from planner.study import opened

TRACED = (
    "allegro", "animatediff-sd15", "audioldm2", "auraflow", "chroma", "cogvideox-2b", "cogview3-plus", "if-i-m",
    "flux1-schnell", "flux2-klein-4b", "hidream", "hunyuandit-v1.2", "hunyuanvideo", "kandinsky-2.2-decoder", "kolors",
    "latte", "ltx-video-0.9.0", "lumina2", "mochi", "modelscope", "pixart-sigma", "qwen-image-edit", "sana",
    "sd-x4-upscaler", "sd3-medium", "sdxl-inpainting", "stable-audio", "svd", "wan2.1-t2v-1.3b", "wuerstchen-decoder",
    "z-image-turbo",
)  # fmt: skip
"""One profile of each family, two of kinds that start from something else than a prompt."""


def test_every_family_has_one() -> None:
    families = {profiles.find(name).family for name in profiles.names()}
    assert {profiles.find(name).family for name in TRACED} == families


@pytest.mark.parametrize("name", TRACED)
def test_a_default_request_is_traced(name: str, tmp_path: Path) -> None:
    profile = profiles.find(name)
    study = opened(name, Request(steps=2), cache=tmp_path)  # later steps repeat the second
    priced = study.pricer(card("h200-sxm")).baseline()
    weights = {part.name: sum(part.weights) for part in priced.program.components}
    assert set(weights) == {part.name for part in profile.models if not part.optional}
    assert priced.worst.peak.total > sum(weights.values())
    worked = {phase.name.partition(".")[0] for phase in priced.phases} - {"start"}
    assert worked <= set(weights)
    denoisers = {part.name for part in priced.program.components if "denoiser" in part.traits}
    assert denoisers & worked
