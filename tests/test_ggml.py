"""Weights in GGUF files: their headers say what loading makes of them, and loading says so too."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import headers
import pytest
import torch
from safetensors.torch import load_file
from techniques.tiny import PROMPT, stable_diffusion

import planner
from planner import ggml, profiles, tasks
from planner.blueprint import build
from planner.errors import BadRequest, UnknownModel
from planner.ghost import haunted
from planner.packed import parts
from planner.snippet import code
from planner.streamable import held
from planner.trace import component_of

CALL = {"height": 64, "width": 64, "steps": 2, "budget": "4GB"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, and a file of its UNet in which rows of whole blocks are packed."""
    gguf = pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("tiny")
    stable_diffusion(folder / "letters").save_pretrained(folder / "pipeline")
    (weights,) = (folder / "pipeline" / "unet").glob("*.safetensors")
    writer, kind = gguf.GGUFWriter(folder / "unet.gguf", "tiny"), gguf.GGMLQuantizationType.Q8_0
    for name, tensor in load_file(weights).items():
        if tensor.dim() == 2 and not tensor.shape[1] % 32:
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights.unlink()
    return folder


def test_the_header_is_read_as_the_library_reads_it(place: Path) -> None:
    gguf = pytest.importorskip("gguf")
    theirs = [
        (tensor.name, int(tensor.tensor_type), tuple(map(int, reversed(tensor.shape))))
        for tensor in gguf.GGUFReader(place / "unet.gguf").tensors
    ]
    assert [(stored.name, stored.kind, stored.shape) for stored in ggml.read(place / "unet.gguf")] == theirs


def test_planned_loaded_and_run(place: Path, tmp_path: Path) -> None:
    named = [f"unet={place / 'unet.gguf'}"]
    wanted = CALL | {"device": planner.card("rtx-3070"), "cache": tmp_path, "without": ["precision"]}
    pipe, plan = planner.load(place / "pipeline", components=named, **wanted)
    ghost = haunted(build(tasks.filed(profiles.read_folder(place / "pipeline"), named[0]), None)).pipe.unet
    sizes = [sorted(tensor.nbytes for tensor in held(module)) for module in (pipe.unet, ghost)]
    assert sizes[0] == sizes[1]
    assert "quantized" in component_of("unet", pipe.unet, pipe).traits
    assert any(hasattr(weight, "quant_type") for weight in pipe.unet.parameters())
    assert f'unet = UNet2DConditionModel.from_single_file("{place}/unet.gguf"' in _joined(code(plan))
    assert ", unet=unet)" in _joined(code(plan))
    pipe(PROMPT, height=64, width=64, num_inference_steps=2)


def _joined(statements: str) -> str:
    """As it was before it was folded, but for a text that was."""
    lines = (line.strip() for line in statements.splitlines())
    return " ".join(lines).replace("( ", "(").replace(",)", ")").replace(", )", ")")


def test_full_size_and_in_the_names_of_its_makers(tmp_path: Path) -> None:
    """Which diffusers' own conversion changes; fused layers are parted."""
    pytest.importorskip("gguf")
    profile = tasks.filed(profiles.find("flux1-dev"), f"transformer={headers.flux(tmp_path / 'flux.gguf', 'Q4_K')}")
    transformer: Any = haunted(build(profile, None)).pipe.transformer
    layers = {path: layer for path, layer in transformer.named_modules() if hasattr(layer, "compute_dtype")}
    assert len(layers) == headers.STREAMS * 14 + headers.SINGLE * 6
    numbers = sum(rows * columns for _, rows, columns in headers.blocks())
    packed = sum(part.tensor.nbytes for layer in layers.values() for part in parts(layer.weight))
    assert packed == numbers // 256 * 144  # of which 2 are the scale, 2 the least, and 12 those of 8 smaller blocks
    assert transformer.x_embedder.weight.dtype == torch.bfloat16
    part = next(part for part in profile.components if part.name == "transformer")
    last = f"single_blocks.{headers.SINGLE - 1}."
    few = replace(part, tensors=tuple(stored for stored in part.tensors if not stored.name.startswith(last)))
    with pytest.raises(BadRequest, match=r"this FluxTransformer2DModel \(11,\d+,\d+,\d+ of 11,901,408,320 numbers\)"):
        build(replace(profile, components=(few,)), None)
    assert profiles.content_key(profile) != profiles.content_key(profiles.find("flux1-dev"))


def test_what_is_no_such_file(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = profiles.read_folder(place / "pipeline")
    whole = (place / "unet.gguf").read_bytes()
    for content in (b"", b"GGUF", whole[:200], b"GGML" + whole[4:], whole[:4] + b"\x09" + whole[5:]):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(UnknownModel, match="no readable GGUF header"):
            tasks.filed(folder, f"unet={tmp_path}/broken.gguf")
    with pytest.raises(BadRequest, match=r"has no 'transformer' to read from .*, only unet, vae"):
        tasks.filed(folder, f"transformer={place}/unet.gguf")
    foreign = tasks.filed(folder, f"vae={place}/unet.gguf")
    with pytest.raises(BadRequest, match="does not hold the weights of this AutoencoderKL"):
        build(foreign, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BadRequest, match="needs gguf: pip install gguf"):
        build(foreign, None)
