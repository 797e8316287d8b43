from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.channels_last import ChannelsLast, to_channels_last

from . import programs, tiny

REQUEST = Request(height=512, width=512)


@pytest.mark.parametrize(("role", "component"), [("denoiser", "unet"), ("autoencoder", "vae")])
def test_only_the_order_in_memory_changes(sdxl: Any, role: str, component: str) -> None:
    technique = ChannelsLast(role)
    before, output = snapshot(sdxl), tiny.run(sdxl)
    undo = technique.apply(sdxl, Option(technique=technique.name, value=component))
    weight = sdxl.components[component].conv_in.weight if component == "unet" else sdxl.vae.encoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(tiny.run(sdxl), output, atol=1e-5)
    undo()
    assert before.difference(snapshot(sdxl)) == ()
    assert torch.equal(tiny.run(sdxl), output)


def test_mixed_ranks_and_earlier_layouts_survive() -> None:
    module = torch.nn.Sequential(torch.nn.Conv3d(2, 2, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 4, 1))
    module[1].to(memory_format=torch.channels_last)
    before = [weight.stride() for weight in module.parameters()]
    undo = to_channels_last(module)
    assert module[2].weight.stride() == (4, 1, 4, 4)
    undo()
    assert [weight.stride() for weight in module.parameters()] == before


def test_both_roles_go_together() -> None:
    whole = programs.program(programs.unet(), programs.vae(), programs.text_encoder())
    denoiser, autoencoder = ChannelsLast("denoiser"), ChannelsLast("autoencoder")
    (first,) = denoiser.options(whole, programs.device(), REQUEST)
    (second,) = autoencoder.options(whole, programs.device(), REQUEST)
    both = autoencoder.variant(denoiser.variant(whole.variant, first), second)
    assert both.channels_last == {"unet", "vae"}
    assert (denoiser.name, autoencoder.name) == ("channels_last_denoiser", "channels_last_vae")
    assert first.calls == ("pipe.unet.to(memory_format=torch.channels_last)",)


def test_offered_for_convolutions_only() -> None:
    whole = programs.program(programs.transformer(), programs.vae(traits=frozenset({"autoencoder"})))
    assert ChannelsLast("denoiser").options(whole, programs.device(), REQUEST) == ()
    assert ChannelsLast("autoencoder").options(whole, programs.device(), REQUEST) == ()


def test_controlnets_have_a_role_of_their_own() -> None:
    net = programs.unet(name="controlnet", kind="ControlNetModel", traits=frozenset({"conv2d"}))
    whole = programs.program(programs.unet(), net)
    (option,) = ChannelsLast("controlnet").options(whole, programs.device(), REQUEST)
    assert option.value == "controlnet"


@pytest.mark.parametrize(
    ("dtype", "capability", "offered"),
    [("bfloat16", (7, 5), False), ("bfloat16", (8, 0), True), ("float16", (7, 5), True), ("float32", (7, 5), True)],
)
def test_not_offered_where_cudnn_has_no_kernels(dtype: str, capability: tuple[int, int], offered: bool) -> None:
    """On the virtual GPU with 7.5 Sana's autoencoder failed in bfloat16, and FLUX.1's copied all of it back."""
    coder = programs.vae(dtype=dtype)
    whole, card = programs.program(programs.unet(), coder), programs.device(capability)
    assert bool(ChannelsLast("autoencoder").options(whole, card, REQUEST)) is offered
    assert ChannelsLast("denoiser").options(whole, card, REQUEST)
