from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderOobleck
from diffusers.models.embeddings import HunyuanDiTAttentionPool

from planner.errors import ApplyFailed
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques import placement
from planner.techniques.base import Option
from planner.techniques.live import modules
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


def test_weights_used_behind_their_layers_back_do_not_go_with_sequential_offload() -> None:
    """accelerate brings weights when their layer is called, which HunyuanDiT's pooling never does."""
    pooling = HunyuanDiTAttentionPool(4, 8, num_heads=2)
    text = torch.ones(1, 4, 8)
    with torch.no_grad():
        pooling(text)
        cpu_offload(pooling, torch.device("cpu"))
        with pytest.raises(RuntimeError, match="meta"):
            pooling(text)
    for lender in (HunyuanDiTAttentionPool(4, 8, num_heads=2), torch.nn.MultiheadAttention(8, 2)):
        unet = torch.nn.Sequential(torch.nn.Linear(8, 8), lender)
        traits = component_of("unet", unet, SimpleNamespace(unet=unet)).traits
        assert "lends_weights" in traits
    program = programs.program(programs.unet(traits=frozenset({"denoiser", "lends_weights"})))
    assert "sequential" not in {o.value for o in PLACEMENT.options(program, programs.device(), Request())}


def test_packed_components_are_moved_where_others_are_streamed(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks of ours are in the way of the pipeline's own `to`, which otherwise moves what is packed."""
    moved: list[str] = []
    for name, part in modules(sd).items():
        monkeypatch.setattr(part, "to", lambda device, name=name: moved.append(name))
    monkeypatch.setattr(placement, "_packs_apart", lambda part: part is sd.text_encoder)
    monkeypatch.setattr(placement, "is_ours", lambda hook: hook is sd)
    sd.unet._hf_hook = sd
    monkeypatch.setattr(placement, "travels", lambda part: part is sd.unet)
    PLACEMENT.apply(sd, Option(technique="placement", value="resident"))
    assert moved == [name for name in modules(sd) if name != "unet"]


def test_disk_is_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.host.free_disk", lambda _: 7)
    assert Placement().housed(None, here=False).room is None
    assert Placement(room=3).housed(None, here=False).room == 3
    assert Placement().housed(None, here=True).room == 7
    assert Placement().housed(5, here=True).room == 5
