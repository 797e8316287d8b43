"""Verdicts and calibrations on the virtual GPU: everything but the clock."""

from __future__ import annotations

from typing import Any

import pytest
import rig

pytestmark = pytest.mark.virtual_gpu


def verified(model: str, budget: str, use: list[str] | None = None) -> dict[str, Any]:
    """Sent to the card: plan, apply, run, and hold the run against the promise."""
    import torch
    from inside import arguments, pipelines, smallvalues

    from planner.auto import auto_configure

    mode = smallvalues.install()
    pipe = pipelines.shipped(model)
    plan = auto_configure(pipe, budget=budget, steps=2, use=use or ())
    words = arguments.of(pipe, {"num_inference_steps": 2})
    with torch.no_grad():
        verdict = plan.verify(lambda: pipe(**words), pipe, learn=False)
    del mode
    return {
        "held": verdict.held,
        "ratios": {row.what: row.ratio for row in verdict.rows()},
        "phases": [phase.name for phase in verdict.phases],
        "context": verdict.card,
        "table": str(verdict),
    }


def calibrated() -> dict[str, Any]:
    """Sent to the card: all measurements, whatever its clock says."""
    from dataclasses import asdict

    from planner.calibrate import Bench, calibrate
    from planner.probe import probe_one

    device = probe_one()
    return asdict(calibrate(device, Bench(scale=8, least=0.001), free=device.free))


def scratch(asked: bool) -> list[dict[str, Any]]:
    """Sent to the card: what convolutions take, held against cuDNN's answers or against the rules that stand in."""
    from dataclasses import asdict

    import pytest

    from planner import cudnn, samples, workspace
    from planner.calibration import Calibration
    from planner.probe import probe_one

    device, told = probe_one(), []
    with pytest.MonkeyPatch.context() as patch:
        if not asked:
            patch.setattr(cudnn, "library", lambda: None)
        seen = samples.measured(device, "cuda:0")
        card = Calibration(device_name=device.name, made="now", scratch=seen).applied(device)
        for sample in samples.SAMPLES:
            for dtype in samples.DTYPES:
                conv = sample.conv(dtype, last=False)
                planned = sum(workspace.copied(conv, card)) + workspace.engines(conv, card)[0]
                told.append({"kind": workspace.kind(conv), "short": samples._taken(conv, "cuda:0") - planned})
    return [{"beyond": each.beyond, **asdict(each)} for each in seen] + told


def test_a_verdict_says_what_the_card_saw(vgpu: rig.Server) -> None:
    found = vgpu.script(verified, {"model": "sd15", "budget": "4GB"}, **rig.card("rtx-3070"), context=300 * 2**20)
    assert found["held"]
    assert found["ratios"]["allocated"] == pytest.approx(1.0, abs=0.02)
    assert found["ratios"]["unet, allocated"] == pytest.approx(1.0, abs=0.02)
    assert {"text_encoder", "unet", "vae.decode"} <= set(found["phases"])
    assert found["context"] == pytest.approx(300 * 2**20, rel=0.1)
    assert "promised" in found["table"]


def test_a_phase_begins_when_its_predecessor_has_left(vgpu: rig.Server) -> None:
    """Under model offload the UNet is still there when the decode is called, and leaves before it begins."""
    asked = {"model": "sd15", "budget": "6GB", "use": ["placement=model"]}
    found = vgpu.script(verified, asked, **rig.card("rtx-3070"), context=300 * 2**20)
    for phase in ("text_encoder", "unet", "vae.decode"):
        assert found["ratios"][f"{phase}, allocated"] == pytest.approx(1.0, abs=0.001), phase


def test_a_calibration_measures_a_card(vgpu: rig.Server) -> None:
    made = vgpu.script(calibrated, {}, **rig.card("rtx-3070"), context=300 * 2**20)
    assert made["device_name"] == "NVIDIA GeForce RTX 3070"
    assert made["context"] == pytest.approx(300 * 2**20, rel=0.1)
    for name in ("pinned_rate", "pageable_rate", "return_rate", "issue", "products", "convolutions", "attentions"):
        assert made[name] > 0, name
    assert made["pinned_return_rate"] > 0
    assert len(made["scratch"]) == 15


@pytest.mark.parametrize("card", ["rtx-3070", "t4"])
def test_convolutions_take_what_is_foreseen(vgpu: rig.Server, card: str) -> None:
    """Asked without a card cuDNN answers as it does on one, so a calibration adds nothing."""
    found = vgpu.script(scratch, {"asked": True}, **rig.card(card), context=300 * 2**20)
    kinds = [each for each in found if "beyond" in each]
    assert len(kinds) == 15
    for each in kinds:
        assert (each["measured"], each["beyond"]) == (each["foreseen"], False), each
    assert max(each["measured"] for each in kinds) > 10**8


@pytest.mark.parametrize("card", ["rtx-3070", "t4"])
def test_what_convolutions_take_more_reaches_plans(vgpu: rig.Server, card: str) -> None:
    """By the rules alone some scratch is missed; once the card was measured none is."""
    found = vgpu.script(scratch, {"asked": False}, **rig.card(card), context=300 * 2**20)
    assert any(each["beyond"] for each in found if "beyond" in each)
    shorts = [each for each in found if "short" in each]
    assert len(shorts) == 30
    for each in shorts:
        assert each["short"] <= 0, each
