"""Single techniques on full-size pipelines of several families: promised against seen, and taken back."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import rig
from applied import allocated, plan_of, promised, ran, roomy
from rig import Server

sys.path.append(str(rig.PROJECT / "benchmarks"))

from founding import PROMPT, STEPS

from planner import profiles
from planner.plan import Plan
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.snippet import ARGUMENTS
from planner.techniques import DEFAULT

CARD = "rtx-3090"


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
    dtype: str | None = None
    """Of the weights as they are loaded, where it is not what the profile says."""
    least: float = 0.999
    """Of what was seen in that phase, as much is promised."""

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
HALVED = {"height": 512, "width": 512}
SCRAP = {"height": 256, "width": 256}
COVERED = {"height": 720, "width": 560, "frames": 40}
"""What Allegro's own tiles cover, too."""
STAMP = {"height": 64, "width": 64, "frames": 5}
"""What a CPU decodes in seconds, as pictures and as a video."""
HOST = ("vae_on_host", "vae")
LEAVES = "sequential"
FUSED = ("fused_qkv", "")
XFORMERS = ("attention", "xformers")
ATTENDING = (
    ("sd15", "unet", HALVED), ("flux1-dev", "transformer", HALVED), ("wan2.1-t2v-1.3b", "transformer", SMALL),
)  # fmt: skip
HALF, WIDE_HALF = ("precision", "float16"), ("precision", "bfloat16")
JIT = ("tracing", "jit")
GRAPH = 0.99
"""The call in which a graph is made holds up to 0.7 % more than the denoiser does by itself."""
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
    Case(model="sd15", use=HALF, phase="unet", request=SCRAP, dtype="float32"),
    Case(model="sd3-medium", use=WIDE_HALF, phase="transformer", request=SCRAP, dtype="float32"),
    Case(model="wan2.1-t2v-1.3b", use=WIDE_HALF, phase="transformer", request=SMALL, dtype="float32"),
    Case(model="sd15", use=JIT, phase="unet", request=HALVED | {"calls": 2}, saves=False, least=GRAPH),
    Case(model="if-i-m", use=JIT, phase="unet", request={"calls": 2}, saves=False, least=GRAPH),
    Case(model="kandinsky-2.2-decoder", use=JIT, phase="unet", request=HALVED | {"calls": 2}, saves=False, least=GRAPH),
    *(Case(model=m, use=XFORMERS, phase=p, request=r, saves=False) for m, p, r in ATTENDING),
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


def planned(case: Case, cache: Path) -> Plan:
    """The technique and where the weights are, and nothing else."""
    asked, device = case.asked, roomy(CARD)
    programs = Programs(FromProfile(profiles.find(case.model), case.dtype), asked, cache)
    pricer = Pricer(programs, device, asked, DEFAULT)
    bare = pricer.price(()).program
    offered = [option for technique in DEFAULT for option in technique.options(bare, device, asked)]
    chosen = [o for o in offered if (o.technique, o.value) in (("placement", case.placement), case.use)]
    assert len(chosen) == 2, "offered"
    plan = plan_of(case.model, pricer, pricer.price(tuple(chosen)), asked, device)
    programs.keep()
    return plan


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_takes_what_is_promised_and_is_taken_back(vgpu: Server, cache: Path, case: Case) -> None:
    if case.use == XFORMERS:
        pytest.importorskip("xformers")
    plan = planned(case, cache)
    foreseen, truth = promised(plan), allocated(ran(vgpu, plan, case.call, dtype=case.dtype))
    for phase, least in (("whole", 0.999), (case.phase, case.least)):
        assert least * truth[phase] <= foreseen[phase] <= 1.01 * truth[phase], phase
    plain = next(phase.peak for phase in plan.baseline.phases if phase.name == case.phase)
    assert (foreseen[case.phase] < plain) == case.saves or case.placement != "resident"
