from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry
from diffusers.models.attention_processor import AttnProcessor

from planner.snapshot import snapshot

from . import tiny

CHANGES: dict[str, Callable[[Any], object]] = {
    "unet.conv_in.weight": lambda pipe: pipe.unet.conv_in.to(memory_format=torch.channels_last),
    "text_encoder.final_layer_norm.bias": lambda pipe: pipe.text_encoder.final_layer_norm.half(),
    "vae.use_tiling": lambda pipe: pipe.vae.enable_tiling(),
    "vae.tile_latent_min_size": lambda pipe: setattr(pipe.vae, "tile_latent_min_size", 8),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor": lambda pipe: pipe.unet.set_attn_processor(
        AttnProcessor()
    ),
    "unet.conv_in.forward": lambda pipe: setattr(pipe.unet.conv_in, "forward", pipe.unet.conv_in.forward),
    "unet._compiled_call_impl": lambda pipe: pipe.unet.compile(backend="eager"),
    "vae._hf_hook": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "pipe._offload_device": lambda pipe: setattr(pipe, "_offload_device", "cpu"),
    "pipe.__class__": lambda pipe: setattr(pipe, "__class__", type("Other", (type(pipe),), {})),
    "pipe.unet": lambda pipe: setattr(pipe, "unet", tiny.unet()),
    "torch.cuda.flash_sdp": lambda _: torch.backends.cuda.enable_flash_sdp(False),
    "diffusers.attention_backend": lambda _: Registry.set_active_backend(AttentionBackendName._NATIVE_MATH),
}


@pytest.fixture
def switches() -> Iterator[None]:
    flash, active = torch.backends.cuda.flash_sdp_enabled(), Registry.get_active_backend()[0]
    yield
    torch.backends.cuda.enable_flash_sdp(flash)
    Registry.set_active_backend(active)


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("fact", sorted(CHANGES))
def test_each_change_shows(sd: Any, fact: str) -> None:
    before = snapshot(sd)
    CHANGES[fact](sd)
    after = snapshot(sd)
    assert before != after
    assert any(line.startswith(f"{fact}: ") for line in before.difference(after))


def test_calls_of_the_pipeline_do_not_show(pipe: Any) -> None:
    before = snapshot(pipe)
    tiny.run(pipe)
    assert before == snapshot(pipe)


def test_differences_say_what_became_what(sd: Any) -> None:
    before = snapshot(sd)
    sd.vae.enable_slicing()
    assert before.difference(snapshot(sd)) == ("vae.use_slicing: False became True",)
