from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from planner.errors import ApplyFailed
from planner.events import Call
from planner.program import Program, Setting, Variant
from planner.programs import FromPipe, Programs
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques import DEFAULT
from planner.techniques.base import Option
from planner.techniques.fused_qkv import FusedQkv
from planner.techniques.layerwise_casting import LayerwiseCasting
from planner.techniques.placement import Placement

from . import programs, tiny

FUSED = FusedQkv()
OPTION = Option(technique="fused_qkv")
NAMED = Request(use=("fused_qkv",))


def fused(module: Any) -> int:
    """How many attentions have one projection for several."""
    return sum(any(hasattr(part, name) for name in ("to_qkv", "to_kv")) for part in module.modules())


def test_exact_during_and_after(pipe: Any) -> None:
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    before, output, keys = snapshot(pipe), tiny.run(pipe), list(denoiser.state_dict())
    undo = FUSED.apply(pipe, OPTION)
    assert fused(denoiser) > 0
    assert torch.allclose(tiny.run(pipe), output, atol=1e-4)
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert list(denoiser.state_dict()) == keys
    assert "original_attn_processors" not in vars(denoiser)
    assert torch.equal(tiny.run(pipe), output)


def test_it_goes_with_what_comes_after_it(sd: Any) -> None:
    before, output = snapshot(sd), tiny.run(sd)
    undos = [FUSED.apply(sd, OPTION)]
    undos.append(LayerwiseCasting().apply(sd, Option(technique="layerwise_casting", value="float8_e4m3fn")))
    undos.append(Placement(device="cpu").apply(sd, Option(technique="placement", value="group_leaf")))
    assert tiny.run(sd).shape == output.shape
    for undo in reversed(undos):
        undo()
    assert before.difference(snapshot(sd)) == ()
    assert torch.equal(tiny.run(sd), output)
    names = [technique.name for technique in DEFAULT]
    assert names.index("fused_qkv") < min(map(names.index, ("layerwise_casting", "quantization", "streaming")))


def test_adapters_and_processors_with_weights_are_not_left_out(sd: Any) -> None:
    attention = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    class Weighted(AttnProcessor2_0, torch.nn.Module):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    own, before = attention.processor, snapshot(sd)
    attention.set_processor(Weighted())
    with pytest.raises(ApplyFailed, match="Weighted"):
        FUSED.apply(sd, OPTION)
    vars(attention).pop("processor", None)
    attention._modules.pop("processor", None)
    attention.processor = own
    attention.to_q = torch.nn.Sequential(attention.to_q)
    with pytest.raises(ApplyFailed, match="Sequential"):
        FUSED.apply(sd, OPTION)
    attention.to_q = attention.to_q[0]
    assert before.difference(snapshot(sd)) == ()


def one(*traits: str) -> Program:
    unet = programs.unet(traits=frozenset({"denoiser", *traits}))
    return programs.program(unet, unet=(programs.attention(),))


def test_offered_to_those_who_name_it() -> None:
    able, card = one("fuses_qkv"), programs.device()
    (option,) = FUSED.options(able, card, NAMED)
    assert option.calls == ("pipe.unet.fuse_qkv_projections()",)
    assert FUSED.options(able, card, Request()) == ()
    assert FUSED.options(one(), card, NAMED) == ()
    assert FUSED.options(one("fuses_qkv", "quantized"), card, NAMED) == ()


def test_new_layers_are_recorded_as_modules_with_weights_of_their_own(sd: Any) -> None:
    request = Request(height=64, width=64, steps=2)
    programs_ = Programs(FromPipe(sd), request, None)
    plain, fused_ = programs_.get(Variant()), programs_.get(Variant().under(Setting("fused_qkv", "", "call")))

    def called(program: Program) -> dict[str, tuple[int, ...]]:
        calls = (event for body in program.recordings for event in body.events if isinstance(event, Call))
        return {call.module: program.recordings[call.recording].own for call in calls}

    assert "to_qkv" not in called(plain)
    assert called(fused_)["to_qkv"]
    assert called(fused_)["to_kv"]
    assert sum(fused_.component("unet").weights) > sum(plain.component("unet").weights)
