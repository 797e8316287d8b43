"""The whole story on tiny real pipelines: planned, configured, run, and given back as they were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from techniques import tiny

import planner
from planner.apply import is_applied
from planner.plan import Plan
from planner.program import Program, Variant
from planner.snapshot import snapshot
from planner.techniques import DEFAULT
from planner.techniques.base import Option, Scope, Undo

CARD = planner.card("rtx-3070")
SMALL = {"height": 32, "width": 32, "steps": 2}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(kind: str, folder: Path) -> Any:
    return tiny.MAKERS[kind](folder)


def two_images(pipe: Any) -> torch.Tensor:
    return tiny.run(pipe, **tiny.arguments(pipe, images=2, seeds=(1, 2)))


def options(*chosen: tuple[str, str | int]) -> tuple[Option, ...]:
    return tuple(Option(technique=technique, value=value) for technique, value in chosen)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_same_images_before_with_and_after(kind: str, tmp_path: Path) -> None:
    pipe = made(kind, tmp_path)
    state, before = snapshot(pipe), tiny.run(pipe)
    plan = planner.auto_configure(pipe, budget="8GB", device=CARD, fidelity="exact", **SMALL)
    assert plan.promise.needed <= plan.budget
    assert all(option.fidelity == planner.Fidelity.EXACT for option in plan.options)
    assert torch.equal(tiny.run(pipe), before)
    plan.revert(pipe)
    assert torch.equal(tiny.run(pipe), before)
    assert state.difference(snapshot(pipe)) == ()
    assert not is_applied(pipe)


@pytest.mark.parametrize(
    "chosen",
    [
        (("placement", "model"),),
        (("placement", "sequential"),),
        (("vae_slicing", ""), ("placement", "model"), ("split", 2)),
        (("channels_last_denoiser", "unet"), ("channels_last_vae", "vae"), ("placement", "resident")),
    ],
    ids=["model", "sequential", "pieces", "channels-last"],
)
def test_exact_plans_change_no_pixel_beyond_rounding(chosen: tuple[tuple[str, str | int], ...], tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    before, state = two_images(pipe), snapshot(pipe)
    plan = replace(planner.plan(pipe, budget="8GB", device=CARD, images=2, **SMALL), options=options(*chosen))
    Plan.from_json(plan.to_json()).apply(pipe)
    torch.testing.assert_close(two_images(pipe), before, atol=1e-4, rtol=1e-4)
    plan.revert(pipe)
    assert torch.equal(two_images(pipe), before)
    assert state.difference(snapshot(pipe)) == ()


def test_planning_changes_nothing(tmp_path: Path) -> None:
    pipe = made("sdxl", tmp_path)
    state = snapshot(pipe)
    plan = planner.plan(pipe, budget="8GB", device=CARD, **SMALL)
    assert state.difference(snapshot(pipe)) == ()
    assert plan.pipeline == plan.model == "StableDiffusionXLPipeline"


def test_a_second_plan_first_undoes_the_first(tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    state = snapshot(pipe)
    first = replace(
        planner.plan(pipe, budget="8GB", device=CARD, **SMALL), options=options(("placement", "sequential"))
    )
    first.apply(pipe)
    second = planner.auto_configure(pipe, budget="8GB", device=CARD, **SMALL)
    assert second.option("placement") == Option(
        technique="placement", value="resident", neutral=True, calls=('pipe.to("cuda")',)
    )
    second.revert(pipe)
    assert state.difference(snapshot(pipe)) == ()
    with pytest.raises(planner.ApplyFailed, match="nothing to revert"):
        second.revert(pipe)


def test_hooks_of_others_are_reported_and_left_alone(tmp_path: Path) -> None:
    from accelerate import cpu_offload_with_hook

    pipe = made("sd", tmp_path)
    cpu_offload_with_hook(pipe.unet, torch.device("cpu"))
    state = snapshot(pipe)
    with pytest.raises(planner.ApplyFailed, match=r"unet \(1 of .*remove_all_hooks"):
        planner.auto_configure(pipe, budget="8GB", device=CARD, **SMALL)
    assert state.difference(snapshot(pipe)) == ()


@dataclass(frozen=True, slots=True)
class Fused:
    """A third party's technique: QKV projections fused; or one that fails half way."""

    fails: bool
    name: str = "one_product"
    scope: Scope = "denoiser"

    def options(self, program: Program, device: planner.Device, request: planner.Request) -> tuple[Option, ...]:
        return (Option(technique=self.name, calls=("pipe.fuse_qkv_projections()",)),)

    def variant(self, variant: Variant, option: Option) -> Variant:
        return variant

    def rewrite(self, program: Program, option: Option) -> Program:
        return program

    def apply(self, pipe: Any, option: Option) -> Undo:
        if self.fails:
            raise RuntimeError("no kernel for it here")
        processors = pipe.unet.attn_processors
        pipe.unet.fuse_qkv_projections()
        return lambda: pipe.unet.set_attn_processor(processors)


def test_an_error_half_way_takes_everything_back(tmp_path: Path) -> None:
    from planner.apply import configure

    pipe = made("sd", tmp_path)
    state = snapshot(pipe)
    plan = planner.plan(pipe, budget="8GB", device=CARD, **SMALL)
    chosen = options(
        ("channels_last_denoiser", "unet"), ("vae_tiling", 64), ("placement", "model"), ("one_product", "")
    )
    with pytest.raises(planner.ApplyFailed, match=r"one_product.*no kernel for it here; the pipeline is as it was"):
        configure(pipe, replace(plan, options=chosen), techniques=(*DEFAULT, Fused(fails=True)), device="cpu")
    assert state.difference(snapshot(pipe)) == ()
    assert not is_applied(pipe)


def test_a_third_partys_technique_is_planned_with(tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    techniques = (*DEFAULT, Fused(fails=False))
    plan = planner.plan(pipe, budget="8GB", device=CARD, techniques=techniques, **SMALL)
    assert any(rejection.what == "one_product" for rejection in plan.rejected)


def test_a_plan_is_for_its_own_pipeline_class(tmp_path: Path) -> None:
    (tmp_path / "xl").mkdir()
    plan = planner.plan(made("sd", tmp_path), budget="8GB", device=CARD, **SMALL)
    with pytest.raises(planner.BadRequest, match="for a StableDiffusionPipeline, this is a StableDiffusionXLPipeline"):
        plan.apply(made("sdxl", tmp_path / "xl"))


def test_the_host_decodes_where_nothing_else_fits(tmp_path: Path) -> None:
    request = {"device": CARD, "cache": tmp_path, "height": 512, "width": 512, "steps": 2, "fidelity": "exact"}
    roomy, tight = (planner.plan("sd15", budget=b, host_ram="64GB", **request) for b in ("1GB", "900MB"))
    assert roomy.option("vae_on_host") is None
    assert tight.option("vae_on_host") is not None
    assert tight.promise.needed <= tight.budget
    assert tight.promise.host > 1_277_000_000
    assert tight.request.use == ()
    with pytest.raises(planner.Infeasible, match="budget that would do is 8"):
        planner.plan("sd15", budget="700MB", host_ram="64GB", **request)


def test_weights_wait_on_disk_only_where_host_memory_cannot_hold_them(tmp_path: Path) -> None:
    request = {"device": CARD, "cache": tmp_path, "height": 512, "width": 512, "budget": "2GB"}
    for room, on_disk in (("8GB", False), ("1GB", False), ("500MB", True)):
        options = planner.plan("sd15", host_ram=room, **request).options
        assert any("disk" in str(option.value) for option in options) == on_disk
    with pytest.raises(planner.Infeasible):
        planner.plan("sd15", host_ram="500MB", **{**request, "without": ["placement", "offload"]})
    with pytest.raises(planner.Infeasible, match=r"\d+ [MG]B of disk are missing; allow more or free some; else"):
        planner.plan("sd15", host_ram="500MB", disk="1GB", **request)
    with pytest.raises(planner.BadRequest, match=r"it writes 2\.\d+ GB to disk, where 1\.00 GB are free or allowed"):
        planner.plan("sd15", use=["placement=group_leaf_disk"], disk="1GB", **request)


def test_a_component_that_stays_need_not_be_named(tmp_path: Path) -> None:
    request = {"device": CARD, "cache": tmp_path, "height": 512, "width": 512, "steps": 2, "host_ram": "64GB"}
    placed = planner.plan("sdxl", use=["placement=group_leaf_stream_record"], **request).option("placement")
    assert placed is not None
    assert placed.value == "group_leaf_stream_record-without-vae"


def test_when_nothing_fits_the_smallest_budget_does(tmp_path: Path) -> None:
    request = {"device": CARD, "cache": tmp_path, "height": 512, "width": 512, "steps": 2}
    with pytest.raises(planner.Infeasible, match="budget that would do") as refused:
        planner.plan("sd15", budget="500MB", **request)
    error = refused.value
    assert error.phase in {phase.name for phase in error.leanest.promise.phases}
    assert error.over > 0
    enough = planner.plan("sd15", budget=error.smallest_budget, **request)
    assert enough.promise.needed <= error.smallest_budget


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"budget": "8 bananas"}, "8 bananas"),
        ({"budget": "9GB"}, "more than the"),
        ({"budget": "400MB"}, "CUDA context"),
        ({"height": -8}, "-8"),
        ({"frames": 81}, "takes no num_frames"),
        ({"height": 513, "width": 513}, "513"),
    ],
    ids=str,
)
def test_bad_requests_are_advice(wanted: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(planner.PlannerError, match=words):
        planner.plan("sd15", device=CARD, cache=tmp_path, **wanted)


def test_a_cached_program_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, planner; from pathlib import Path;"
        "p = planner.plan('sd15', device=planner.card('rtx-3070'), budget='8GB', steps=2, cache=Path(sys.argv[1]));"
        "print(p.promise.allocated, 'torch' in sys.modules)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs[0][0] == runs[1][0]
    assert (runs[0][1], runs[1][1]) == ("True", "False")
