"""Rounded: weights stored by torchao, made anew on the meta device by the library itself, from what the folder says."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from planner import packed
from planner.errors import BadRequest
from planner.hub import Json


def pack(module: Any, layers: Sequence[str], how: Mapping[str, Json]) -> None:
    """Give the layers of a module on meta the weights that loading would.

    `how`: torchao's own description of what it did.  Raises BadRequest without torchao, or where it does otherwise.
    """
    if importlib.util.find_spec("torchao") is None:
        raise BadRequest(
            f"{len(layers)} layers are stored quantized by torchao, which is not installed: pip install torchao, or "
            "give the unquantized folder."
        )
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    try:
        config = config_from_dict(dict(how))
        for path in layers:
            quantize_(module.get_submodule(path), config)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise _cannot(len(layers), how, str(error)) from error
    plain = [path for path in layers if not packed.is_packed(module.get_submodule(path).weight)]
    if plain:
        raise _cannot(len(layers), how, f"{len(plain)} stay as they are")


def _cannot(layers: int, how: Mapping[str, Json], why: str) -> BadRequest:
    return BadRequest(
        f"{layers} layers are stored by torchao's {how.get('_type')}, which this version of it does not make of them "
        f"({' '.join(why.split())[:120]}): give the unquantized folder, or the torchao that wrote it."
    )
