"""Files of weights that hold no bytes, only their sizes: weights have no values here, and a disk has an end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}


def install() -> None:
    """From now on safetensors writes such files."""
    safetensors.torch.save_file = save


def save(tensors: Mapping[str, torch.Tensor], file: str) -> None:
    """A header as safetensors writes it, and a hole."""
    header, end = {}, 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        offsets = [end, end := end + tensor.nbytes]
        header[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(file).open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
