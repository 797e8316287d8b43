"""Arguments of a pipeline call: the prompt, two steps, and stand-ins for what the pipeline requires beside them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from inside.tokens import PROMPT

STEPS = 2
"""Denoising steps: the second frees and reuses what the first left, further ones change no peak."""
EDITORS = ("Img2Img", "Inpaint", "ControlNet", "Edit", "Adapter", "Upscale")
"""Words in the names of pipelines that need an image though their signature may not say so."""
VIDEO_SIZES = {"StableVideo": (1024, 576), "Wan": (832, 480), "HunyuanVideo15": (832, 480)}
"""Default width and height of pipelines that start from an image (their own `__call__`)."""


def of(pipe: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What to call `pipe` with: `asked` wins, its `batch` repeats the prompt, and what `pipe` lacks is dropped."""
    wants = inspect.signature(pipe.__call__).parameters
    asked = dict(asked)
    batch = asked.pop("batch", 1)
    strength = wants["strength"].default if "strength" in wants else 1
    call = {"num_inference_steps": math.ceil(STEPS / min(strength, 1)), "output_type": "np", **asked}
    call = _texts(type(pipe).__name__, batch) | call
    call = _pictures(pipe, wants, (asked.get("width"), asked.get("height"))) | call
    call = _embeddings(type(pipe).__name__, batch, pipe) | call
    return {name: value for name, value in call.items() if name in wants}


def _texts(kind: str, batch: int) -> dict[str, Any]:
    def repeated(text: str) -> str | list[str]:
        return [text] * batch if batch > 1 else text

    return {"prompt": repeated(PROMPT)} | ({"negative_prompt": repeated("")} if "Kolors" in kind else {})


def _pictures(
    pipe: Any, wants: Mapping[str, inspect.Parameter], asked: tuple[int | None, int | None]
) -> dict[str, Any]:
    kind = type(pipe).__name__
    width, height = (side or usual for side, usual in zip(asked, _usual_size(pipe), strict=True))
    grey = getattr(getattr(getattr(pipe, "adapter", None), "config", None), "in_channels", 3) == 1
    picture = Image.new("L" if grey else "RGB", (128, 128) if "Upscale" in kind else (width, height))
    stand_ins = {"image": picture, "control_image": picture, "mask_image": Image.new("L", (width, height), 255)}
    needed = any(word in kind for word in EDITORS)
    return {
        name: [image] if "EditPlus" in kind else image
        for name, image in stand_ins.items()
        if name in wants and (needed or wants[name].default is inspect.Parameter.empty)
    }


def _usual_size(pipe: Any) -> tuple[int, int]:
    for word, size in VIDEO_SIZES.items():
        if word in type(pipe).__name__:
            return size
    latent = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
    side = latent * getattr(pipe, "vae_scale_factor", 8) if isinstance(latent, int) else 1024
    return side, side


def _embeddings(kind: str, batch: int, pipe: Any) -> dict[str, torch.Tensor]:
    """What another pipeline would hand over: CLIP bigG image embeddings, EfficientNet or CLIP features."""
    device = "cpu" if pipe.device.type == "cpu" else "cuda"

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=device, dtype=pipe.dtype)

    if "Kandinsky" in kind:
        return {"image_embeds": zeros(batch, 1280), "negative_image_embeds": zeros(batch, 1280)}
    if "Cascade" in kind or "WuerstchenDecoder" in kind:
        return {"image_embeddings": zeros(batch, 16, 24, 24)}
    return {}
