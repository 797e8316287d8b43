"""Techniques that need a recording of their own, on full-size pipelines of several families: predicted against seen."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import rig
from rig import Server

sys.path.append(str(rig.PROJECT / "benchmarks"))

from founding import PROMPT, STEPS, on_the_card

from planner import profiles
from planner.cards import card
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.snippet import ARGUMENTS
from planner.techniques import DEFAULT

CARD, VRAM = "rtx-3090", 80 * rig.GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One technique on one request; `phase` is where it acts."""

    model: str
    use: tuple[str, str | int]
    phase: str
    request: dict[str, Any] = field(hash=False)
    named: bool = False
    """Whether it is offered to those alone who name it."""
    saves: bool = True
    """Whether it takes less memory."""
    placement: str = "resident"

    def __str__(self) -> str:
        return "-".join(map(str, (self.model, *self.use, self.placement)))

    @property
    def asked(self) -> Request:
        usual = profiles.find(self.model).defaults
        given = {name: getattr(usual, name) for name in ("height", "width", "frames", "guidance")}
        return Request(
            **{**given, "steps": STEPS, "fidelity": Fidelity.LOSSY, "extra": tuple(usual.extra), **self.request},
            use=(self.use[0], "=".join(map(str, self.use))) if self.named else (),
        )

    @property
    def call(self) -> dict[str, Any]:
        asked = self.asked
        given = {name: getattr(asked, field) for field, name in ARGUMENTS.items()}
        count = "num_videos_per_prompt" if asked.frames else "num_images_per_prompt"
        return {k: v for k, v in given.items() if v is not None} | {
            count: asked.images,
            "prompt": PROMPT,
            **dict(asked.extra),
        }


SQUARE = {"height": 1024, "width": 1024}
CLIP = {"height": 480, "width": 832, "frames": 33}
SMALL = {"height": 320, "width": 512, "frames": 33}
SCRAP = {"height": 256, "width": 256}
COVERED = {"height": 720, "width": 560, "frames": 40}
"""What Allegro's own tiles cover, too."""
STAMP = {"height": 64, "width": 64, "frames": 5}
"""What a CPU decodes in seconds, as pictures and as a video."""
HOST = ("vae_on_host", "vae")
LEAVES = "sequential"
FUSED = ("fused_qkv", "")
FP8 = ("layerwise_casting", "float8_e4m3fn")
CASES = (
    Case(model="sdxl", use=("micro_batch", 1), phase="unet", request=SQUARE),
    Case(model="sd15", use=("micro_batch", 4), phase="unet", request={"height": 512, "width": 512, "images": 8}),
    Case(model="sd3-medium", use=("micro_batch", 1), phase="transformer", request=SQUARE),
    Case(model="flux1-dev", use=("micro_batch", 1), phase="transformer", request=SQUARE | {"images": 3}),
    Case(model="wan2.1-t2v-1.3b", use=("micro_batch", 1), phase="transformer", request=CLIP | {"images": 2}),
    Case(model="svd", use=("decode_chunks", 4), phase="vae.decode", request={}),
    Case(model="animatediff-sd15", use=("decode_chunks", 4), phase="vae.decode", request={}),
    Case(model="latte", use=("decode_chunks", 4), phase="vae.decode", request={}),
    Case(model="ltx-video-0.9.5", use=("vae_frames", 16), phase="vae.decode", request={}),
    Case(model="ltx-2", use=("vae_frames", 16), phase="vae.decode", request={}),
    Case(model="hunyuanvideo", use=("vae_frames", 8), phase="vae.decode", request=SMALL),
    Case(model="ltx-video-0.9.5", use=("vae_frames", 32), phase="vae.decode", request={}),
    Case(model="hunyuanvideo", use=("vae_frames", 32), phase="vae.decode", request=SMALL | {"frames": 65}, saves=False),
    Case(model="sd15", use=("vae_tiling", "512/64"), phase="vae.decode", request=SQUARE, named=True),
    Case(model="wan2.1-t2v-1.3b", use=("vae_tiling", "256/128"), phase="vae.decode", request=CLIP, named=True),
    Case(model="cogvideox-2b", use=("vae_tiling", 160), phase="vae.decode", request={"frames": 17}),
    Case(model="cogvideox-2b", use=("vae_tiling", "320/64"), phase="vae.decode", request={"frames": 17}, named=True),
    Case(model="hunyuanvideo-1.5-480p-t2v", use=("vae_tiling", 384), phase="vae.decode", request={"frames": 17}),
    Case(model="allegro", use=("vae_tiling", "240/80"), phase="vae.decode", request=COVERED),
    Case(model="svd", use=("forward_chunks", ""), phase="unet", request={}),
    Case(model="sd3-medium", use=("forward_chunks", ""), phase="transformer", request=SQUARE),
    Case(model="sdxl", use=FP8, phase="unet", request=SQUARE),
    Case(model="sd3-medium", use=FP8, phase="transformer", request=SQUARE),
    Case(model="sd15", use=HOST, phase="vae.decode", request=SCRAP, named=True),
    Case(model="sdxl", use=HOST, phase="vae.decode", request=SCRAP, named=True),
    Case(model="flux1-dev", use=HOST, phase="vae.decode", request=SCRAP, named=True),
    Case(model="wan2.1-t2v-1.3b", use=HOST, phase="vae.decode", request=STAMP, named=True),
    Case(model="wan2.1-t2v-1.3b", use=FP8, phase="transformer", request=CLIP),
    Case(model="sd15", use=FUSED, phase="unet", request=SCRAP, named=True, saves=False, placement="group_leaf"),
    Case(model="sd3-medium", use=FUSED, phase="transformer", request=SCRAP, named=True, saves=False, placement=LEAVES),
    Case(model="sdxl", use=FUSED, phase="unet", request=SQUARE, named=True, saves=False),
    Case(model="sd3-medium", use=FUSED, phase="transformer", request=SQUARE, named=True, saves=False),
    Case(model="flux1-dev", use=FUSED, phase="transformer", request=SQUARE, named=True, saves=False),
    Case(model="wan2.1-t2v-1.3b", use=FUSED, phase="transformer", request=CLIP, named=True, saves=False),
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


def predicted(case: Case, cache: Path, *, used: bool) -> dict[str, int]:
    """Allocated peaks by phase and over all."""
    device = replace(card(CARD), total=VRAM, free=VRAM)
    programs = Programs(FromProfile(profiles.find(case.model), None), case.asked, cache)
    pricer = Pricer(programs, device, case.asked, DEFAULT)
    bare = pricer.price(()).program
    offered = [option for technique in DEFAULT for option in technique.options(bare, device, case.asked)]
    wanted = {("placement", case.placement), *({case.use} if used else ())}
    chosen = [o for o in offered if (o.technique, o.value) in wanted]
    assert len(chosen) == 1 + used, "offered"
    seen = pricer.rehearse(pricer.price(tuple(chosen)), None)
    programs.keep()
    return {"whole": seen.allocated, **{name: allocated for name, allocated, _ in seen.phases}}


def seen(vgpu: Server, case: Case) -> dict[str, int]:
    """The same on the card."""
    options: list[Any] = [case.use, ("placement", case.placement)]
    sent = {"model": case.model, "dtype": None, "call": case.call, "options": options}
    answer = vgpu.script(on_the_card, sent, **rig.card(CARD) | {"vram": VRAM})
    return {"whole": answer["allocated"], **{name: peak["allocated"] for name, peak in answer["phases"].items()}}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_peaks_are_as_predicted(vgpu: Server, cache: Path, case: Case) -> None:
    plain, foreseen, truth = predicted(case, cache, used=False), predicted(case, cache, used=True), seen(vgpu, case)
    for phase in ("whole", case.phase):
        assert 0.999 * truth[phase] <= foreseen[phase] <= 1.01 * truth[phase], phase
    assert (foreseen[case.phase] < plain[case.phase]) == case.saves or case.placement != "resident"
