"""4-bit weights of bitsandbytes: in a folder and in a live pipeline they have the bytes that the library gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from techniques.tiny import flux, stable_diffusion

import planner
from planner import fourbit, profiles
from planner.blueprint import build
from planner.errors import BadRequest
from planner.ghost import ghost_of, haunted
from planner.packed import parts
from planner.trace import component_of


def sizes(tensor: Any) -> list[int]:
    return sorted(piece.tensor.nbytes for piece in parts(tensor) if piece.tensor.nbytes)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (256, 96), (33, 65)])
def test_sizes_are_the_librarys(nested: bool, shape: tuple[int, int]) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    real = bnb.nn.Linear4bit(shape[1], shape[0], quant_type="nf4", compress_statistics=nested).to("cpu")
    with torch.device("meta"):
        stand_in = torch.nn.Linear(shape[1], shape[0])
    fourbit.pack(stand_in, nested=nested, compute=torch.float32)
    assert sizes(stand_in.weight) == sizes(real.weight)


def test_bits_and_scales() -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(3072, 12288)
    fourbit.pack(layer, nested=True, compute=torch.bfloat16)
    numbers = 3072 * 12288
    assert sizes(layer.weight) == sorted([numbers // 2, numbers // 64, 4 * numbers // 64 // 256, 4 * 256, 4 * 16, 4])
    fourbit.pack(plain := torch.nn.Linear(3072, 64, device="meta"), nested=False, compute=torch.bfloat16)
    assert sizes(plain.weight) == sorted([3072 * 32, 4 * 3072, 64])


def in_four_bits(folder: Path, component: str) -> int:
    """Rewrite a component of a folder as bitsandbytes saves it, and return the bytes of its tensors on the card."""
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("down_blocks") and ".attentions." in name and tensor.dim() == 2:
            packed[name] = torch.zeros((tensor.numel() + 1) // 2, 1, dtype=torch.uint8)
            packed[f"{name}.absmax"] = torch.zeros(-(-tensor.numel() // 64))
            packed[f"{name}.quant_map"] = torch.zeros(16)
            packed[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(80, dtype=torch.uint8)
        else:
            packed[name] = tensor.clone()
    save_file(packed, file)
    config = json.loads((folder / component / "config.json").read_text())
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"}
    (folder / component / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
    return sum(tensor.nbytes for name, tensor in packed.items() if "bitsandbytes__" not in name)


def test_a_folder_in_four_bits_has_its_real_bytes(tmp_path: Path) -> None:
    stable_diffusion(tmp_path / "letters").save_pretrained(tmp_path / "pipeline")
    real = in_four_bits(tmp_path / "pipeline", "unet")
    profile = profiles.read_folder(tmp_path / "pipeline")
    ghost = haunted(build(profile, None))
    unet = component_of("unet", ghost.pipe.unet, ghost.pipe)
    assert sum(unet.weights) == real
    assert unet.dtype == "float32"
    assert "quantized" in unet.traits
    assert unet.units == unet.stacks == ()
    made = planner.plan(
        tmp_path / "pipeline", device=planner.card("rtx-3070"), budget="4GB", height=64, width=64, steps=2,
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert made.option("placement").value == "resident"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"quant_method": "quanto"}, "stored quantized by quanto, of which only"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"by bitsandbytes \(8 bits\)"),
        ({}, "no method named"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "0 of its 1 safetensors files have such weights"),
    ],
)
def test_other_ways_get_one_sentence(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    stable_diffusion(tmp_path / "letters").save_pretrained(tmp_path / "pipeline")
    file = tmp_path / "pipeline" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": how}))
    with pytest.raises(BadRequest, match=said):
        profiles.read_folder(tmp_path / "pipeline")


def test_a_live_pipeline_in_four_bits(tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    pipe = flux(tmp_path)
    block = pipe.transformer.single_transformer_blocks[0]
    old = block.proj_mlp
    block.proj_mlp = bnb.nn.Linear4bit(old.in_features, old.out_features, quant_type="nf4").to("cpu")
    ghost = ghost_of(pipe)
    (real, double) = (module.transformer.single_transformer_blocks[0].proj_mlp for module in (pipe, ghost.pipe))
    assert sizes(double.weight) == sizes(real.weight)
    x = torch.zeros(2, old.in_features)
    assert double(ghost.mode.from_tensor(x)).shape == real(x).shape


def test_a_live_pipeline_with_weights_of_gguf(tmp_path: Path) -> None:
    quants = pytest.importorskip("gguf").quants
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
    from gguf import GGMLQuantizationType

    kind, pipe = GGMLQuantizationType.Q8_0, flux(tmp_path)
    block = pipe.transformer.single_transformer_blocks[0]
    old = block.proj_mlp
    block.proj_mlp = GGUFLinear(old.in_features, old.out_features, True, compute_dtype=torch.float32)
    packed = torch.from_numpy(quants.quantize(old.weight.detach().numpy(), kind))
    block.proj_mlp.weight, block.proj_mlp.bias = GGUFParameter(packed, quant_type=kind), old.bias
    ghost = ghost_of(pipe)
    double = ghost.pipe.transformer.single_transformer_blocks[0].proj_mlp
    assert sizes(double.weight) == [packed.nbytes] == [old.weight.numel() // 32 * 34]
    assert double(ghost.mode.from_tensor(torch.zeros(2, old.in_features))).shape == (2, old.out_features)
