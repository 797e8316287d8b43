"""A transformer from a GGUF file at full size: foreseen from its header, and as diffusers' own layers unpack it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import headers
import pytest
import rig
from rig import Server

from planner import profiles, tasks
from planner.cards import card
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Request
from planner.techniques import DEFAULT

pytest.importorskip("gguf")

CARD = "a100-sxm4-80gb"


def run(file: str, place: str, call: dict[str, Any]) -> dict[str, Any]:
    """Sent to the virtual GPU: two steps of FLUX.1-dev, its transformer made of the file's tensors, unwritten."""
    import tempfile
    from pathlib import Path

    import torch
    from diffusers import FluxTransformer2DModel
    from inside import arguments, peaks, pipelines, smallvalues

    from planner import filed, ggml, profiles
    from planner.hub import write_json
    from planner.techniques import Option
    from planner.techniques.placement import Placement

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    part = next(part for part in profiles.find("flux1-dev").components if part.name == "transformer")
    checkpoint = {}
    for stored in ggml.read(Path(file)):
        empty = filed._empty(stored)
        host = torch.empty(empty.shape, dtype=empty.dtype)
        checkpoint[stored.name] = type(empty)(host, quant_type=empty.quant_type) if empty.dtype == torch.uint8 else host
    pipe, dtype = pipelines.shipped("flux1-dev"), torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", {"_class_name": part.kind, **part.config})
        given = filed.quantized(dtype)
        pipe.transformer = FluxTransformer2DModel.from_single_file(
            checkpoint, config=folder, torch_dtype=dtype, **given
        )
    heard = peaks.Peaks(pipe)
    Placement().apply(pipe, Option(technique="placement", value=place))
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    return {**heard.whole, "phases": heard.phases}


@pytest.mark.parametrize(("kind", "place"), [("Q4_K", "resident"), ("Q8_0", "model"), ("Q5_0", "resident")])
def test_memory_is_as_foreseen(vgpu: Server, tmp_path: Path, kind: str, place: str) -> None:
    file = headers.flux(tmp_path / "flux.gguf", kind)
    profile = tasks.filed(profiles.find("flux1-dev"), f"transformer={file}")
    asked = Request(height=1024, width=1024, steps=2)
    pricer = Pricer(Programs(FromProfile(profile, None), asked, None), card(CARD), asked, DEFAULT)
    (root,) = pricer.roots()
    (settled,) = (option for option in pricer.offered("placement", root) if option.value == place)
    foreseen = pricer.rehearse(pricer.price(pricer.merged(root, (settled,))), None)
    call = {"height": 1024, "width": 1024, "num_inference_steps": 2}
    seen = vgpu.script(run, {"file": str(file), "place": place, "call": call}, **rig.card(CARD))
    by_phase = {name: allocated for name, allocated, _ in foreseen.phases}
    assert 0.999 * seen["allocated"] <= foreseen.allocated <= 1.005 * seen["allocated"]
    truth = seen["phases"]["transformer"]["allocated"]
    assert 0.999 * truth <= by_phase["transformer"] <= 1.005 * truth
