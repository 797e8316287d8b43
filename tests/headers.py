"""Headers of GGUF files without the weights: of FLUX.1-dev in the names its makers gave its layers, and of others."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

WIDTH = 3072
STREAMS, SINGLE = 19, 38
Layer = tuple[str, int, int]
RENAMED = {
    "LTXVideoTransformer3DModel": {
        "proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm",
    }
}  # fmt: skip
"""What diffusers calls otherwise (convert_ltx_transformer_checkpoint_to_diffusers, 0.42.1)."""


def flux(file: Path, kind: str) -> Path:
    """As llama.cpp's tools pack it: matrices of the blocks in `kind`, all else in float32."""
    import numpy
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    packed = GGMLQuantizationType[kind]
    numbers, nbytes = GGML_QUANT_SIZES[packed]
    writer = GGUFWriter(file, "flux")
    writer.add_string("general.name", "FLUX.1-dev")
    writer.add_array("general.tags", ["text-to-image", "letters"])
    writer.add_array("general.numbers", [1, 2, 3])
    writer.add_bool("general.whole", False)

    def plain(name: str, *shape: int) -> None:
        writer.add_tensor_info(
            name, shape, numpy.dtype("float32"), 4 * prod(shape), raw_dtype=GGMLQuantizationType["F32"]
        )

    for name, rows, columns in blocks():
        shape = (rows, columns // numbers * nbytes)
        writer.add_tensor_info(f"{name}.weight", shape, numpy.dtype("uint8"), prod(shape), raw_dtype=packed)
        plain(f"{name}.bias", rows)
    for name, rows, columns in outside():
        plain(f"{name}.weight", rows, columns)
        plain(f"{name}.bias", rows)
    for name in norms():
        plain(f"{name}.scale", 128)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return file


def others(file: Path, model: str, kind: str) -> Path:
    """A transformer whose makers' names are diffusers' own, or nearly: matrices of the blocks in `kind`."""
    import diffusers
    import numpy
    import torch
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    from planner import profiles

    part = next(part for part in profiles.find(model).components if part.name == "transformer")
    with torch.device("meta"):
        tensors = getattr(diffusers, part.kind).from_config(dict(part.config)).state_dict()
    packed = GGMLQuantizationType[kind]
    numbers, nbytes = GGML_QUANT_SIZES[packed]
    writer = GGUFWriter(file, model)
    for name, tensor in tensors.items():
        for ours, theirs in RENAMED.get(part.kind, {}).items():
            name = name.replace(ours, theirs)  # noqa: PLW2901
        if tensor.dim() == 2 and "blocks." in name and name.endswith(".weight"):  # tables stay as they are
            shape = (tensor.shape[0], tensor.shape[1] // numbers * nbytes)
            writer.add_tensor_info(name, shape, numpy.dtype("uint8"), prod(shape), raw_dtype=packed)
        else:
            dtype = numpy.dtype("float32")
            writer.add_tensor_info(name, tensor.shape, dtype, 4 * tensor.numel(), raw_dtype=GGMLQuantizationType["F32"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return file


def blocks() -> Iterator[Layer]:
    for block in (f"double_blocks.{n}.{stream}" for n in range(STREAMS) for stream in ("img", "txt")):
        yield f"{block}_mod.lin", 6 * WIDTH, WIDTH
        yield f"{block}_attn.qkv", 3 * WIDTH, WIDTH
        yield f"{block}_attn.proj", WIDTH, WIDTH
        yield f"{block}_mlp.0", 4 * WIDTH, WIDTH
        yield f"{block}_mlp.2", WIDTH, 4 * WIDTH
    for block in (f"single_blocks.{n}" for n in range(SINGLE)):
        yield f"{block}.linear1", 7 * WIDTH, WIDTH
        yield f"{block}.linear2", WIDTH, 5 * WIDTH
        yield f"{block}.modulation.lin", 3 * WIDTH, WIDTH


def outside() -> Iterator[Layer]:
    yield "img_in", WIDTH, 64
    yield "txt_in", WIDTH, 4096
    for name, columns in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        yield f"{name}.in_layer", WIDTH, columns
        yield f"{name}.out_layer", WIDTH, WIDTH
    yield "final_layer.linear", 64, WIDTH
    yield "final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH


def norms() -> Iterator[str]:
    for block in (f"double_blocks.{n}.{stream}_attn" for n in range(STREAMS) for stream in ("img", "txt")):
        yield from (f"{block}.norm.{side}_norm" for side in ("query", "key"))
    yield from (f"single_blocks.{n}.norm.{side}_norm" for n in range(SINGLE) for side in ("query", "key"))
