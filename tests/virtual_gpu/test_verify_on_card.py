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
