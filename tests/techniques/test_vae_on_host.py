"""Decoding on the host: what is offered, what a live pipeline does then, and that nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.errors import ApplyFailed
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.live import in_reverse
from planner.techniques.placement import Placement
from planner.techniques.vae_on_host import VaeOnHost, decode_on_host

from . import programs, tiny

NAMED = Request(use=("vae_on_host",))
VAE = Option(technique="vae_on_host", value="vae")


def test_nothing_of_it_stays(pipe: Any) -> None:
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = VaeOnHost(device="cpu").apply(pipe, VAE)
    assert before.difference(snapshot(pipe))
    assert torch.equal(tiny.run(pipe), output)
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


def test_the_rest_settles_on_the_card_and_the_autoencoder_does_not(sdxl: Any) -> None:
    before = snapshot(sdxl)
    undos = [VaeOnHost(device="cpu").apply(sdxl, VAE)]
    undos.append(Placement(device="meta").apply(sdxl, Option(technique="placement", value="resident")))
    devices = {name: next(sdxl.components[name].parameters()).device.type for name in ("vae", "unet", "text_encoder")}
    assert devices == {"vae": "cpu", "unet": "meta", "text_encoder": "meta"}
    in_reverse(undos)()
    assert before.difference(snapshot(sdxl)) == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_decoded_in_single_and_kept(sd: Any, dtype: torch.dtype) -> None:
    sd.vae.to(dtype)
    before, latents = snapshot(sd), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen: list[torch.dtype] = []
    hook = sd.vae.decoder.conv_in.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    undo = decode_on_host(sd.vae, device="cpu")
    with torch.no_grad():
        made = sd.vae.decode(latents, return_dict=False)[0]
        assert torch.equal(sd.vae.decode(latents).sample, made)
    assert (made.dtype, set(seen), sd.vae.dtype) == (dtype, {torch.float32}, dtype)
    undo()
    hook.remove()
    assert before.difference(snapshot(sd)) == ()
    with torch.no_grad():
        wide = sd.vae.float().decode(latents.float()).sample
    assert torch.equal(made, wide.to(dtype))


def test_an_error_in_the_decode_leaves_the_weights_as_they_were(sd: Any) -> None:
    sd.vae.to(torch.bfloat16)
    weights = {name: tensor.data_ptr() for name, tensor in sd.vae.state_dict().items()}
    undo = decode_on_host(sd.vae, device="cpu")
    with pytest.raises(RuntimeError), torch.no_grad():
        sd.vae.decode(torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16))
    assert {name: tensor.data_ptr() for name, tensor in sd.vae.state_dict().items()} == weights
    undo()


def test_offered_to_those_who_name_it() -> None:
    whole = programs.program(programs.unet(), programs.vae(), vae=())
    assert VaeOnHost().options(whole, programs.device(), Request()) == ()
    (option,) = VaeOnHost().options(whole, programs.device(), NAMED)
    assert (option.value, option.calls[-1], int(option.fidelity)) == ("vae", "decode_on_host(pipe.vae)", 0)


@pytest.mark.parametrize("trait", ["quantized", "travels"])
def test_not_where_weights_are_packed_or_elsewhere(trait: str) -> None:
    taken = programs.vae(traits=programs.VAE | {trait})
    assert VaeOnHost().options(programs.program(taken, vae=()), programs.device(), NAMED) == ()


def test_not_with_kernels_the_host_has_not() -> None:
    whole = programs.program(programs.vae(), vae=(programs.attention(backend="xformers"),))
    assert VaeOnHost().options(whole, programs.device(), NAMED) == ()


def test_a_component_that_does_not_decode_is_refused(sd: Any) -> None:
    before = snapshot(sd)
    with pytest.raises(ApplyFailed, match="unet is none of"):
        VaeOnHost(device="cpu").apply(sd, Option(technique="vae_on_host", value="unet"))
    assert before.difference(snapshot(sd)) == ()
