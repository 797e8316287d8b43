"""What printed code finds where it loads from the hub: the shipped profiles, with unwritten weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from inside import parts, pipelines
from planner import filed, ggml, profiles, tasks
from planner.hub import write_json
from planner.tasks import JOINED

FROM_FILE = diffusers.FluxTransformer2DModel.from_single_file.__func__


def pipeline(model: str, dtype: str | None = None, *, pictures: Sequence[str] = (), **without: str) -> Any:
    """The pipeline a plan calls `model`: joined from several profiles, and from files, where it says so."""
    names = model.split(JOINED)
    plain = JOINED.join(name for name in names if not profiles.is_file(name))
    pipe = pipelines.shipped(plain, dtype, parts=without, pictures=pictures)
    for name, _, file in (each.partition("=") for each in names if profiles.is_file(each)):
        kind = type(getattr(pipe, name))
        pipe.register_modules(**{name: from_file(kind, file, tasks.resolve(plain), name, pipe.dtype)})
    return pipe


def from_file(kind: Any, file: str, profile: Any, name: str, dtype: torch.dtype) -> Any:
    """A component as diffusers makes it of a GGUF file, of which the header is enough."""
    part = next(part for part in profile.components if part.name == name)
    checkpoint = {}
    for stored in ggml.read(Path(file)):
        empty = filed._empty(stored)
        host = torch.empty(empty.shape, dtype=empty.dtype)
        checkpoint[stored.name] = type(empty)(host, quant_type=empty.quant_type) if empty.dtype == torch.uint8 else host
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", {"_class_name": part.kind, **part.config})
        return FROM_FILE(kind, checkpoint, config=folder, torch_dtype=dtype, **filed.quantized(dtype))


def stand_in(model: str, kind: str, pictures: Sequence[str]) -> None:
    """Have diffusers answer what the code of a plan loads: a pipeline, models it is given, pictures."""
    first, *lenders = (name for name in model.split(JOINED) if not profiles.is_file(name))
    whole = JOINED.join((first, *lenders))

    def loaded(hub_id: str, torch_dtype: Any, **given: Any) -> Any:
        assert tasks.resolve(hub_id).components == tasks.resolve(first).components
        without = {name: pipelines.LEFT_OUT for name, part in given.items() if part is None}
        if isinstance(torch_dtype, dict):
            without |= {name: _name(dtype) for name, dtype in torch_dtype.items() if name != "default"}
            torch_dtype = torch_dtype["default"]
        pipe = pipelines.shipped(whole, _name(torch_dtype), parts=without, pictures=pictures)
        pipe.register_modules(**{name: part for name, part in given.items() if part is not None})
        return pipe

    def lent(kind: Any, hub_id: str, torch_dtype: torch.dtype) -> Any:
        part = next(part for part in profiles.find(hub_id).components if part.kind == kind.__name__)
        return parts.build(kind, part.config, torch_dtype)

    def filed_(kind: Any, file: str, config: str, subfolder: str, torch_dtype: torch.dtype, **how: Any) -> Any:
        assert isinstance(how.pop("quantization_config"), diffusers.GGUFQuantizationConfig)
        assert not how
        return from_file(kind, file, tasks.resolve(config), subfolder, torch_dtype)

    getattr(diffusers, kind).from_pretrained = loaded
    diffusers.ControlNetModel.from_pretrained = classmethod(lent)
    diffusers.FluxTransformer2DModel.from_single_file = classmethod(filed_)
    diffusers.utils.load_image = lambda _: Image.new("RGB", (64, 64))


def in_order() -> None:
    """Have components go to the card in the order in which a plan moves them: diffusers goes by a set."""
    moved = diffusers.DiffusionPipeline.to

    def to(pipe: Any, device: str, **how: Any) -> Any:
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        return moved(pipe, device, **how)

    diffusers.DiffusionPipeline.to = to


def round_alike() -> None:
    """Have torchao round one weight of each shape, and make the others like it."""
    import torchao.quantization

    from planner.techniques import quantization

    one = torchao.quantization.quantize_

    def each(model: Any, config: Any, wanted: Any = None) -> None:
        if wanted is None:
            return one(model, config)
        value = next(value for value, name in quantization.CONFIGS.items() if name == type(config).__name__)
        return quantization._quantize([part for path, part in model.named_modules() if wanted(part, path)], value)

    quantization.is_ghost = lambda _: True
    torchao.quantization.quantize_ = each


def _name(dtype: torch.dtype) -> str:
    return str(dtype).partition(".")[2]
