from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderOobleck

from planner.errors import ApplyFailed
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.placement import Placement
from planner.trace import component_of

from . import programs, tiny

PLACEMENT = Placement(device="cpu")


@pytest.mark.parametrize("value", ["resident", "model", "sequential", "group_block", "group_leaf_stream-without-vae"])
def test_exact_during_and_after(pipe: Any, value: str) -> None:
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = PLACEMENT.apply(pipe, Option(technique="placement", value=value))
    assert torch.equal(tiny.run(pipe), output)
    assert torch.equal(tiny.run(pipe), output)
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


@pytest.mark.parametrize("value", ["model", "sequential"])
def test_offload_hooks_are_real(sd: Any, value: str) -> None:
    undo = PLACEMENT.apply(sd, Option(technique="placement", value=value))
    assert hasattr(sd.unet if value == "model" else sd.unet.conv_in, "_hf_hook")
    assert sd._offload_device.type == "cpu"
    assert sd.unet.conv_in.weight.is_meta == (value == "sequential")
    undo()
    assert not hasattr(sd, "_offload_device")
    assert not any(hasattr(part, "_hf_hook") for part in sd.unet.modules())


def test_tied_weights_stay_tied(wan: Any) -> None:
    text = wan.text_encoder
    assert text.shared.weight is text.encoder.embed_tokens.weight
    PLACEMENT.apply(wan, Option(technique="placement", value="sequential"))()
    assert text.shared.weight is text.encoder.embed_tokens.weight


def test_refuses_a_pipeline_that_is_offloaded_already(sd: Any) -> None:
    sd.enable_model_cpu_offload(device="cpu")
    before = snapshot(sd)
    with pytest.raises(ApplyFailed, match="remove_all_hooks"):
        PLACEMENT.apply(sd, Option(technique="placement", value="sequential"))
    assert before == snapshot(sd)


def test_a_failure_leaves_no_trace(sd: Any) -> None:
    before = snapshot(sd)
    sd.model_cpu_offload_seq = None
    with pytest.raises(ValueError, match="model_cpu_offload_seq"):
        PLACEMENT.apply(sd, Option(technique="placement", value="model"))
    assert before.difference(snapshot(sd)) == ()


def test_model_offload_needs_a_chain() -> None:
    from dataclasses import replace

    from planner.request import Request

    request = Request(height=512, width=512)
    whole = programs.program(programs.unet(), programs.vae())
    assert [o.value for o in PLACEMENT.options(whole, programs.device(), request)] == [
        "resident",
        "model",
        "sequential",
    ]
    chainless = replace(whole, chain=())
    assert [o.value for o in PLACEMENT.options(chainless, programs.device(), request)] == ["resident", "sequential"]


def test_groups_are_offered_where_the_denoiser_has_them() -> None:
    from planner.program import Stack, Unit
    from planner.request import Request

    def offered(*stacks: Stack) -> dict[str, tuple[str, ...]]:
        whole = programs.program(programs.unet(stacks=stacks), programs.vae())
        options = PLACEMENT.options(whole, programs.device(), Request(height=512, width=512))
        return {str(o.value): o.calls for o in options if str(o.value).startswith("group")}

    assert offered() == {}
    assert list(offered(Stack("", (), (0,)))) == ["group_leaf-without-vae", "group_leaf_stream-without-vae"]
    blocks = offered(Stack("", ((Unit(("blocks.0",), (0,)),),), ()))
    assert len(blocks) == 4
    assert blocks["group_block-without-vae"] == (
        (
            'pipe.enable_group_offload(torch.device("cuda"), offload_type="block_level", num_blocks_per_group=1, '
            'exclude_modules=["vae"])'
        ),
    )


def test_weight_norm_does_not_go_with_sequential_offload() -> None:
    """Its hook makes the weight before accelerate's has brought what it is made of: the numbers are wrong."""
    vae = AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 2], channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=4, audio_channels=1,
    ).eval()  # fmt: skip
    pipe = SimpleNamespace(vae=vae)
    assert "weight_norm" in component_of("vae", vae, pipe).traits
    latents = torch.ones(1, 4, 8)
    with torch.no_grad():
        sound = vae.decode(latents).sample
        cpu_offload(vae, torch.device("cpu"))
        assert not torch.allclose(vae.decode(latents).sample, sound)
    traits = frozenset({"autoencoder", "weight_norm"})
    program = programs.program(programs.unet(), programs.vae(traits=traits))
    assert "sequential" not in {o.value for o in PLACEMENT.options(program, programs.device(), Request())}
    assert "sequential" in {
        o.value for o in PLACEMENT.options(programs.program(programs.unet()), programs.device(), Request())
    }
