"""Transformers from GGUF files at full size: foreseen from the header, and as diffusers' own layers unpack them."""

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


def run(model: str, file: str, place: str, call: dict[str, Any]) -> dict[str, Any]:
    """Sent to the virtual GPU: two steps of a pipeline, its transformer made of the file's tensors, unwritten."""
    import tempfile
    from pathlib import Path

    import diffusers
    import torch
    from inside import arguments, peaks, pipelines, smallvalues

    from planner import filed, ggml, profiles
    from planner.hub import write_json
    from planner.techniques import Option
    from planner.techniques.placement import Placement

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    part = next(part for part in profiles.find(model).components if part.name == "transformer")
    checkpoint = {}
    for stored in ggml.read(Path(file)):
        empty = filed._empty(stored)
        host = torch.empty(empty.shape, dtype=empty.dtype)
        checkpoint[stored.name] = type(empty)(host, quant_type=empty.quant_type) if empty.dtype == torch.uint8 else host
    pipe, dtype = pipelines.shipped(model), torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", {"_class_name": part.kind, **part.config})
        given = filed.quantized(dtype)
        pipe.transformer = getattr(diffusers, part.kind).from_single_file(
            checkpoint, config=folder, torch_dtype=dtype, **given
        )
    heard = peaks.Peaks(pipe)
    Placement().apply(pipe, Option(technique="placement", value=place))
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    return {**heard.whole, "phases": heard.phases}


CASES = (
    ("flux1-dev", "Q4_K", "resident"),
    ("flux1-dev", "Q8_0", "model"),
    ("flux1-dev", "Q5_0", "resident"),
    ("qwen-image", "Q4_K", "resident"),
    ("ltx-video-0.9.5", "Q8_0", "model"),
)
SIZES: dict[str, dict[str, int]] = {
    "flux1-dev": {"height": 1024, "width": 1024},
    "qwen-image": {"height": 512, "width": 512},
    "ltx-video-0.9.5": {"height": 320, "width": 512, "frames": 25},
}


@pytest.mark.parametrize(("model", "kind", "place"), CASES)
def test_memory_is_as_foreseen(vgpu: Server, tmp_path: Path, model: str, kind: str, place: str) -> None:
    file = tmp_path / "weights.gguf"
    if model == "flux1-dev":
        headers.flux(file, kind)
    else:
        headers.others(file, model, kind)
    profile, size = tasks.filed(profiles.find(model), f"transformer={file}"), SIZES[model]
    asked = Request(**size, steps=2)
    pricer = Pricer(Programs(FromProfile(profile, None), asked, None), card(CARD), asked, DEFAULT)
    (root,) = pricer.roots()
    (settled,) = (option for option in pricer.offered("placement", root) if option.value == place)
    foreseen = pricer.rehearse(pricer.price(pricer.merged(root, (settled,))), None)
    call = {"num_frames" if name == "frames" else name: value for name, value in size.items()}
    sent = {"model": model, "file": str(file), "place": place, "call": call | {"num_inference_steps": 2}}
    seen = vgpu.script(run, sent, **rig.card(CARD))
    by_phase = {name: allocated for name, allocated, _ in foreseen.phases}
    assert 0.999 * seen["allocated"] <= foreseen.allocated <= 1.005 * seen["allocated"]
    truth = seen["phases"]["transformer"]["allocated"]
    assert 0.999 * truth <= by_phase["transformer"] <= 1.005 * truth
