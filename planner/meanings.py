"""Meanings: what an option does, in a few words for someone who reads its name for the first time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planner.group_hooks import Grouping
from planner.techniques import group, streaming
from planner.techniques.base import Option
from planner.techniques.tiles import Tile

KERNELS: Mapping[str, str] = {
    "flash": "PyTorch's flash kernel",
    "efficient": "PyTorch's memory-efficient kernel",
    "cudnn": "cuDNN's kernel",
    "math": "plain products, which write out all scores",
    "sliced": "slices, one after the other",
    "xformers": "the package xformers",
}
PLACES: Mapping[str, str] = {
    "model": "each component is on the card only while it works",
    "sequential": "each layer's weights come to the card just before it works",
}
BITS: Mapping[str, str] = {
    "int8": "8 bits",
    "float8": "8 bits",
    "llm_int8": "8 bits",
    "nf4": "4 bits",
    "fp4": "4 bits",
}


def meaning(option: Option) -> str:
    """What it does; empty for techniques of others."""
    words = MEANINGS.get(option.technique, "")
    return words(option) if callable(words) else words.format(option.value)


def _streaming(option: Option) -> str:
    count, of, until = streaming.parsed(option)
    name = option.component
    if not count:
        return f"{name} comes to the card when it is called, and leaves it before {until} is"
    if count == of:
        return f"{name} waits in host memory; its units come to the card, each just before it works"
    stay = f"; the rest comes once, and leaves the card before {until} is called" if until else ""
    return f"{count} of the {of} units of {name} come from host memory each time they are needed{stay}"


def _placement(option: Option) -> str:
    if option.value == "resident":
        whole = any(call.startswith("pipe.to(") for call in option.calls)
        return "all weights are on the card throughout" if whole else "all other weights are on the card throughout"
    if known := PLACES.get(str(option.value)):
        return known
    choice = group.Choice.of(str(option.value))
    stay = f"; all of {' and '.join(choice.without)} stays there" if choice.without else ""
    return _in_groups(choice.grouping) + stay


def _offload(option: Option) -> str:
    return f"{option.component} is not on the card as a whole: {_in_groups(group.ALL[str(option.value)])}"


def _in_groups(grouping: Grouping) -> str:
    what = "each block's" if grouping.blocks else "each layer's"
    ahead = ", copied while the one before works" if grouping.stream else ""
    files = ", from files" if grouping.disk else ""
    return f"{what} weights come to the card just before it works{files}{ahead}"


def _tiling(option: Option) -> str:
    tile = Tile.of(option.value)
    return (
        f"decodes in tiles of {tile.edge} pixels that overlap by {tile.overlap}"
        if tile.overlap
        else (f"decodes in overlapping tiles of {tile.edge} pixels")
    )


def _attention(option: Option) -> str:
    return f"attention is computed by {KERNELS.get(str(option.value), f'the kernel {option.value}')}"


def _quantization(option: Option) -> str:
    return f"linear layers keep each weight in {BITS.get(str(option.value), 'fewer bits')}"


def _tracing(option: Option) -> str:
    if option.value == "jit":
        return "the denoiser runs from a recorded graph, with no Python between its kernels"
    return "the denoiser is compiled"


MEANINGS: Mapping[str, str | Callable[[Option], str]] = {
    "expandable_segments": "torch's memory grows in place, so that less of it is lost between blocks",
    "precision": "weights loaded as float32 are cast to {}",
    "fused_qkv": "queries, keys and values come from one product instead of three",
    "layerwise_casting": "the denoiser's weights wait in half of their bytes, and are cast as they are used",
    "quantization": _quantization,
    "channels_last_denoiser": "convolution weights of {} lie as tensor cores read them",
    "channels_last_vae": "convolution weights of {} lie as tensor cores read them",
    "vae_slicing": "a batch is decoded image by image",
    "vae_tiling": _tiling,
    "vae_frames": "the video is decoded in overlapping runs of {} frames",
    "decode_chunks": "the video is decoded {} frames at a time",
    "attention": _attention,
    "vae_on_host": "the CPU decodes, slowly",
    "forward_chunks": "feed-forward layers take a few rows at a time",
    "step_cache": "what one denoising step worked out serves later ones",
    "micro_batch": "images and halves of guidance go through the denoiser {} at a time",
    "streaming": _streaming,
    "offload": _offload,
    "placement": _placement,
    "tracing": _tracing,
    "split": "{} smaller calls instead of one",
}
"""By technique; `{}` is the option's value."""
