"""Arguments of the pipeline call that a request stands for, as far as the pipeline takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

from planner import tasks
from planner.errors import BadRequest
from planner.request import PICTURES, Request
from planner.sizes import Size, Sizes

if TYPE_CHECKING:
    from PIL.Image import Image

    from planner.program import Variant

PROMPT_TOKENS = 64
"""Tokens assumed for a prompt where the pipeline does not pad: about fifty words."""
OTHERWISE: dict[str, tuple[str, ...]] = {
    "image": ("images", "input_images", "cond_image"),
    "mask": ("mask", "mask_video", "control_mask"),
    "control": ("control_video", "hint", "conditioning_frames", "pose_video"),
    "reference": ("image_reference", "reference_images", "reference_image", "ref_image"),
    "last_image": (),
    "video": (),
}
"""Names that pictures go by in the calls of fewer classes; the first that is there is taken."""
LISTS = ("EditPlus", "ControlNetUnion")
"""Words in the names of pipelines that want a list even of one picture."""
EMBEDDED = ("image_embeddings", "image_embeds", "negative_image_embeds")
"""Arguments that a prior left on the card."""
CHUNK = "decode_chunk_size"
"""Argument of the calls of video pipelines, and of their `decode_latents`."""
FRAMES = 16
"""Frames of a video to start from where neither the request nor the pipeline says how many."""


def call_arguments(pipe: Any, request: Request, variant: Variant) -> dict[str, Any]:
    """Arguments of one call.  Raises BadRequest for what was asked and the pipeline does not take."""
    accepted = inspect.signature(pipe.__call__).parameters
    prompts, images = split(request.prompts, request.images, variant.splits)
    pictures = Pictures(pipe, request, accepted)
    embeddings = _embeddings(pipe, accepted, prompts, images, pictures.result)
    if embeddings.keys() & EMBEDDED[:1]:  # the prior gave one for each image, and a decoder makes one of each
        images = 1
    words = " ".join(["word"] * (request.prompt_tokens or PROMPT_TOKENS))
    wanted: dict[str, Any] = {
        "prompt": [words] * prompts if prompts > 1 else words,
        "height": request.height,
        "width": request.width,
        "num_frames": request.frames,
        "video_length": request.frames,
        "num_images_per_prompt": images,
        "num_videos_per_prompt": images,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "strength": request.strength,
        "output_type": "np",
        **pictures.arguments(),
        **embeddings,
        **dict(request.extra),
    }
    frames = None if {"video", "video_length"} & set(accepted) else request.frames
    asked = {"num_frames": frames, "strength": request.strength, **dict(request.extra)}
    for name, value in asked.items():
        if value is not None and name not in accepted:
            raise _refusal(pipe, name, repr(value), accepted)
    if prompts > 1 and isinstance(negative := wanted.get("negative_prompt"), str):
        wanted["negative_prompt"] = [negative] * prompts  # some pipelines want as many, and of the same type
    return {name: value for name, value in wanted.items() if name in accepted and value is not None}


def split(prompts: int, images: int, splits: int) -> tuple[int, int]:
    """Prompts and images per prompt of the largest of `splits` calls: whole prompts first, then their images."""
    if splits <= prompts:
        return -(-prompts // splits), images
    return 1, -(-images // -(-splits // prompts))


def decodes_in_chunks(pipe: Any) -> bool:
    """Whether the pipeline decodes frames in chunks of a size that one may choose."""
    decode = getattr(pipe, "decode_latents", None)
    return decode is not None and CHUNK in inspect.signature(decode).parameters


class Pictures:
    """The pictures that one call is handed: those asked for, and those without which the pipeline would not start."""

    def __init__(self, pipe: Any, request: Request, accepted: Mapping[str, inspect.Parameter]) -> None:
        self._kind = tasks.kind_of(type(pipe).__name__)
        self._pipe, self._request, self._accepted = pipe, tasks.fitted(request, self._kind.name), accepted

    @property
    def result(self) -> tuple[int, int]:
        """Width and height of what is generated: as asked, else as the pipeline's defaults are."""
        usual = _usual(self._pipe, self._accepted)
        return self._request.width or usual[0], self._request.height or usual[1]

    def arguments(self) -> dict[str, Any]:
        """Black pictures by argument; masks are white."""
        made: dict[str, Any] = {}
        for picture in PICTURES:
            asked: Sizes = getattr(self._request, picture)
            name = next((n for n in self._names(picture) if n in self._accepted and n not in made), None)
            wanted = asked or (Size(),) * (name is not None and self._required(picture, name))
            assumed = asked == (Size(),) and picture in self._kind.needs - {"control"}  # for its name, perhaps in vain
            if name is None and asked and not assumed:
                raise self._refusal(picture)
            if name is not None and wanted:
                made[name] = self._value(name, wanted * (self._wanted(picture) if len(wanted) == 1 else 1))
        return made

    def _names(self, picture: str) -> tuple[str, ...]:
        last = ("image",) if picture == "control" and "control" in self._kind.needs else ()
        return (self._kind.argument(picture), *OTHERWISE[picture], *last)

    def _required(self, picture: str, name: str) -> bool:
        no_default = self._accepted[name].default is inspect.Parameter.empty
        return no_default or (picture == "reference" and _image_adapters(self._pipe) > 0)

    def _wanted(self, picture: str) -> int:
        """How many pictures one stands for: each ControlNet and adapter takes its own."""
        if picture == "control":
            return _parts(self._pipe, ("controlnet", "adapter"), ("nets", "adapters"))
        return max(_image_adapters(self._pipe), 1) if picture == "reference" else 1

    def _refusal(self, picture: str) -> BadRequest:
        kind = self._kind.name
        other = tasks.class_for(kind, [picture], getattr(self._pipe, "config", {}))
        advice = f"make it a {other} with {other}.from_pipe(pipe)" if other != kind else "leave it out"
        return BadRequest(f"{kind} takes no {PICTURES[picture].partition(' ')[2]}; {advice}.")

    def _value(self, name: str, wanted: Sizes) -> Any:
        pictures = [self._picture(name, size) for size in wanted]
        moving = "video" in name or name == "conditioning_frames" or (name == "mask" and "video" in self._accepted)
        if moving and len(pictures) == 1:
            pictures *= self._request.frames or _default(self._accepted, "num_frames") or FRAMES
        if name == "hint":
            return _tensor(pictures)
        if moving or len(pictures) > 1 or name.endswith("images") or any(word in self._kind.name for word in LISTS):
            return pictures
        return pictures[0]

    def _picture(self, name: str, size: Size) -> Image:
        from PIL import Image

        mask = "mask" in name
        grey = mask or (name == "image" and _channels(getattr(self._pipe, "adapter", None)) == 1)
        width, height = self.result
        sides = (size.width or width, size.height or height)
        return Image.new("L" if grey else "RGB", sides, 255 if mask else 0)


def _refusal(pipe: Any, name: str, value: str, accepted: Mapping[str, Any]) -> BadRequest:
    known = ", ".join(sorted(set(accepted) - {"args", "kwargs", "prompt"})[:12])
    return BadRequest(f"{type(pipe).__name__} takes no {name} (asked: {value}); it takes {known} and others.")


def _parts(pipe: Any, names: tuple[str, ...], lists: tuple[str, ...]) -> int:
    """How many models a component unites, as several ControlNets or adapters may be one component."""
    part = next((getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None), None)
    return next((len(getattr(part, several)) for several in lists if hasattr(part, several)), 1)


def _image_adapters(pipe: Any) -> int:
    """IP-Adapters that are loaded; each wants an image."""
    denoisers = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    projections = [getattr(part, "encoder_hid_proj", None) for part in denoisers]
    layers = [len(getattr(p, "image_projection_layers", ())) for p in projections]
    return sum(layers) or int(any(getattr(part, "image_proj", None) is not None for part in denoisers))


def _channels(part: Any) -> int:
    inner = getattr(part, "adapters", (part,))[0]
    return int(_config(inner).get("in_channels", 3))


def _config(part: Any) -> Mapping[str, Any]:
    return getattr(part, "config", None) or {}


def _usual(pipe: Any, accepted: Mapping[str, inspect.Parameter]) -> tuple[int, int]:
    """Width and height a pipeline makes by default, for pipelines whose signature or denoiser says so; else 1024."""
    width, height = _default(accepted, "width"), _default(accepted, "height")
    if width and height:
        return width, height
    config = _config(getattr(pipe, "unet", None) or getattr(pipe, "transformer", None))
    scale = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", None) or 1
    scale = 1 if "Upscale" in type(pipe).__name__ else scale  # the image lies beside the latents
    side = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    match config.get("sample_width") or side, config.get("sample_height") or side:
        case (int(across), int(down)):
            return across * int(scale), down * int(scale)
    return 1024, 1024


def _default(accepted: Mapping[str, inspect.Parameter], name: str) -> int:
    value = accepted[name].default if name in accepted else None
    return value if isinstance(value, int) else 0


def _tensor(pictures: list[Image]) -> Any:
    import torch

    return torch.zeros(len(pictures), 3, pictures[0].height, pictures[0].width)


def _embeddings(
    pipe: Any, accepted: Mapping[str, Any], prompts: int, images: int, result: tuple[int, int]
) -> dict[str, Any]:
    """What a prior would hand over: an image as one vector, or as a small field of them that sets the result's size.

    Where the pipeline computes, as there the prior did.
    """
    import torch

    def made(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=pipe.dtype, device=pipe._execution_device)

    if "image_embeddings" in accepted:  # of latent_dim_scale latents a side, each 4 pixels of the VQGAN
        step = 4 * float(_config(pipe).get("latent_dim_scale", 10.67))
        width, height = (ceil(side / step) for side in result)
        return {"image_embeddings": made(prompts * images, 16, height, width)}
    size = _config(getattr(pipe, "unet", None)).get("encoder_hid_dim")
    names = EMBEDDED[1:]
    if not size or "negative_image_embeds" not in accepted:
        return {}
    return {name: made(prompts, size) for name in names}
