"""Folders that torchao quantized: their bytes are those of the files, and of the pipeline that is loaded from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from techniques.tiny import stable_diffusion

import planner
from planner import profiles, rounded
from planner.blueprint import build
from planner.errors import BadRequest
from planner.ghost import haunted
from planner.packed import parts
from planner.streamable import held
from planner.trace import component_of

KINDS = ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig")


def saved(place: Path, kind: str) -> Path:
    """A tiny pipeline, its UNet as diffusers saves what torchao rounded."""
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig, UNet2DConditionModel

    stable_diffusion(place / "letters").to(torch.bfloat16).save_pretrained(place / "pipeline")
    how = TorchAoConfig(getattr(quantization, kind)())
    folder = place / "pipeline" / "unet"
    unet: Any = UNet2DConditionModel.from_pretrained(folder, quantization_config=how, torch_dtype=torch.bfloat16)
    for file in folder.iterdir():
        file.unlink()
    unet.save_pretrained(folder)
    return place / "pipeline"


def bytes_of(tensors: Any) -> int:
    return sum(piece.tensor.nbytes for tensor in tensors for piece in parts(tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_the_files(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind)
    (file,) = (folder / "unet").glob("*.safetensors")
    header = json.loads(file.read_bytes()[8:][: int.from_bytes(file.read_bytes()[:8], "little")])
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    ghost = haunted(build(profiles.read_folder(folder), None))
    unet = component_of("unet", ghost.pipe.unet, ghost.pipe)
    assert sum(unet.weights) == max(ends)
    assert unet.dtype == "bfloat16"
    assert "quantized" in unet.traits


def test_planned_and_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path, KINDS[1])
    wanted = {"height": 64, "width": 64, "steps": 2, "budget": "4GB", "cache": tmp_path / "cache"}
    pipe, plan = planner.load(folder, device=planner.card("rtx-3070"), **wanted)
    assert plan.dtype == "bfloat16"
    ghost = haunted(build(profiles.read_folder(folder), None))
    assert bytes_of(held(pipe.unet)) == sum(component_of("unet", ghost.pipe.unet, ghost.pipe).weights)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BadRequest, match="2 layers are stored quantized by torchao, which is not installed"):
        rounded.pack(torch.nn.Module(), ("a", "b"), {})
