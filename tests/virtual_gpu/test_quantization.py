"""Quantized weights on full-size pipelines, resident and streamed: foreseen and as torchao's tensors behave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rig
from quantized import CARD, LEFT, call, denoiser, priced, within
from rig import Server

import planner
from planner.cards import card
from planner.techniques import packing

pytest.importorskip("torchao")

CASES = (
    *(("flux1-dev", "int8", place) for place in ("resident", "model", "streaming")),
    ("flux1-dev", "float8", "resident"),
    ("sd3-medium", "float8", "resident"),
    ("sdxl", "float8", "resident"),
    ("wan2.1-t2v-1.3b", "int8", "streaming"),
)


def run(model: str, options: list[dict[str, Any]], call: dict[str, Any], cap: int = 0) -> dict[str, Any]:
    """Sent to the virtual GPU: two steps.  Of each shape one weight is rounded, the others are made like it."""
    import torch
    from inside import arguments, peaks, pipelines, smallvalues

    from planner.techniques import DEFAULT, Option, quantization

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    if cap:
        torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)
    quantization.is_ghost = lambda tensor: True  # no weight is worth its bytes here
    pipe = pipelines.shipped(model)
    heard, techniques = peaks.Peaks(pipe), {technique.name: technique for technique in DEFAULT}
    undos = [techniques[o["technique"]].apply(pipe, Option(**o)) for o in options]
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    seen = {**heard.whole, "phases": heard.phases}
    for undo in reversed(undos):
        undo()
    torch.cuda.empty_cache()
    return seen | {"left": torch.cuda.memory_allocated()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs recorded once for all tests of this file."""
    return tmp_path_factory.mktemp("programs")


@pytest.mark.parametrize(("model", "value", "place"), CASES)
def test_memory_is_as_foreseen(vgpu: Server, cache: Path, model: str, value: str, place: str) -> None:
    programs, pricer = priced(model, value, cache)
    (root,) = pricer.roots()
    if place == "streaming":
        offered = [o for o in pricer.offered("streaming", root) if o.component == "transformer"]
        root = pricer.price(pricer.merged(root, (offered[len(offered) // 2],)))
    settled = [o for o in pricer.offered("placement", root) if o.value == place or (o.neutral and place == "streaming")]
    placed = pricer.price(pricer.merged(root, tuple(settled)))
    foreseen = pricer.rehearse(placed, None)
    programs.keep()
    chosen = [{"technique": o.technique, "value": o.value, "component": o.component} for o in placed.candidate]
    seen = vgpu.script(run, {"model": model, "options": chosen, "call": call(model)}, **rig.card(CARD))
    by_phase = {name: allocated for name, allocated, _ in foreseen.phases}
    assert within(foreseen.allocated, seen["allocated"], 1.01)
    phase = denoiser(model)
    assert within(by_phase[phase], seen["phases"][phase]["allocated"], 1.01)
    assert seen["left"] < LEFT


def test_it_is_chosen_where_it_pays_and_runs_under_the_cap(
    vgpu: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "USUAL", ())  # bitsandbytes' 4 bits pay more, where it is installed
    asked: dict[str, Any] = {"budget": "10GB", "height": 1024, "width": 1024, "fidelity": "lossy"}
    device = card("rtx-4090")
    plan = planner.plan("flux1-dev", device=device, cache=cache, **asked)
    exact = planner.plan(
        "flux1-dev", device=device, cache=cache, without=["quantization", "layerwise_casting"], **asked
    )
    option = plan.option("quantization")
    assert option is not None
    assert option.value == "int8"
    assert plan.promise.seconds < 0.98 * exact.promise.seconds
    chosen = [{"technique": o.technique, "value": o.value, "component": o.component} for o in plan.options]
    sent = {"model": "flux1-dev", "options": chosen, "call": call("flux1-dev"), "cap": plan.capacity}
    seen = vgpu.script(run, sent, **rig.card("rtx-4090"))
    foreseen = {phase.name: phase.peak for phase in plan.promise.phases}
    for name in ("text_encoder_2", "transformer"):  # decoding takes a leaner engine of cuDNN where the cap asks for one
        assert within(foreseen[name], seen["phases"][name]["allocated"], 1.01), name
    assert seen["allocated"] <= plan.promise.allocated
    assert seen["reserved"] <= plan.capacity
