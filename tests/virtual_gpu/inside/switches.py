"""Memory techniques as their users switch them on, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Switch = Callable[[Any], object]
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
VAES = ("vae", "movq", "vqgan")


def apply(pipe: Any, names: Sequence[str]) -> None:
    """Switch techniques on, in order, and move to the device what none of them places."""
    for name in names:
        (PLACES | SWITCHES)[name](pipe)
    if not set(names) & PLACES.keys():
        pipe.to("cuda")


def _vae(pipe: Any) -> Any:
    return next(getattr(pipe, name) for name in VAES if hasattr(pipe, name))


def _denoisers(pipe: Any) -> list[Any]:
    return [part for name in DENOISERS if (part := getattr(pipe, name, None)) is not None]


def _channels_last(pipe: Any) -> None:
    for part in _denoisers(pipe):
        part.to(memory_format=torch.channels_last)


def _layerwise_fp8(pipe: Any) -> None:
    for part in _denoisers(pipe):
        part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=part.dtype)


def _attention(backend: str) -> Switch:
    def only(_: Any) -> None:
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.enable_flash_sdp(backend == "flash")
        torch.backends.cuda.enable_mem_efficient_sdp(backend == "efficient")

    return only


def _group(level: str, *, stream: bool) -> Switch:
    blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}

    def offload(pipe: Any) -> None:
        onload, away = torch.device("cuda"), torch.device("cpu")
        pipe.enable_group_offload(
            onload_device=onload, offload_device=away, offload_type=level, use_stream=stream, **blocks
        )

    return offload


PLACES: dict[str, Switch] = {
    "model_cpu_offload": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential_cpu_offload": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "group_block": _group("block_level", stream=False),
    "group_leaf": _group("leaf_level", stream=False),
    "group_block_stream": _group("block_level", stream=True),
    "group_leaf_stream": _group("leaf_level", stream=True),
}
SWITCHES: dict[str, Switch] = {
    "vae_tiling": lambda pipe: _vae(pipe).enable_tiling(),
    "vae_slicing": lambda pipe: _vae(pipe).enable_slicing(),
    "attention_slicing": lambda pipe: pipe.enable_attention_slicing(),
    "xformers": lambda pipe: pipe.enable_xformers_memory_efficient_attention(),
    "channels_last": _channels_last,
    "channels_last_vae": lambda pipe: _vae(pipe).to(memory_format=torch.channels_last),
    "layerwise_fp8": _layerwise_fp8,
    "math": _attention("math"),
    "efficient": _attention("efficient"),
    "flash": _attention("flash"),
    "expandable_segments": lambda _: torch.cuda.memory._set_allocator_settings("expandable_segments:True"),
}
