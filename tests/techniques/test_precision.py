from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.precision import Precision

from . import programs, tiny

PRECISION = Precision()
REQUEST = Request(height=512, width=512)


def apply(pipe: Any, dtype: str) -> Any:
    return PRECISION.apply(pipe, Option(technique="precision", value=dtype, fidelity=Fidelity.FAITHFUL))


def test_revert_is_exact(pipe: Any) -> None:
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = apply(pipe, "bfloat16")
    half = tiny.run(pipe)
    assert not torch.equal(half, output)
    assert (half - output).abs().mean() < 0.05
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


def test_sdxl_upcasts_its_vae_and_still_reverts(sdxl: Any) -> None:
    before, output = snapshot(sdxl), tiny.run(sdxl)
    undo = apply(sdxl, "float16")
    assert sdxl.vae.dtype == sdxl.unet.dtype == torch.float16
    tiny.run(sdxl)
    undo()
    assert before.difference(snapshot(sdxl)) == ()
    assert torch.equal(tiny.run(sdxl), output)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_same_dtypes_as_loading(wan: Any, tmp_path: Any, dtype: str) -> None:
    models = {"transformer": wan.transformer, "text_encoder": wan.text_encoder, "vae": wan.vae}
    loaded = {}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        loaded[name] = type(model).from_pretrained(tmp_path / name, torch_dtype=getattr(torch, dtype))
    apply(wan, dtype)
    for name, model in models.items():
        expected = {key: tensor.dtype for key, tensor in loaded[name].state_dict().items()}
        assert {key: tensor.dtype for key, tensor in model.state_dict().items()} == expected


def test_keeps_what_the_model_keeps(wan: Any) -> None:
    apply(wan, "bfloat16")
    assert wan.transformer.scale_shift_table.dtype == torch.float32
    assert wan.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def offered(*components: Any, capability: tuple[int, int] = (8, 9), request: Request = REQUEST) -> list[object]:
    whole = programs.program(*components)
    return [option.value for option in PRECISION.options(whole, programs.device(capability), request)]


def test_offered_for_float32_only() -> None:
    single = programs.unet(dtype="float32")
    assert offered(single) == ["float16", "bfloat16"]
    assert offered(programs.unet()) == []
    assert offered(single, capability=(7, 5)) == ["float16"]


def test_not_offered_when_exactness_is_asked() -> None:
    request = Request(height=512, width=512, fidelity=Fidelity.EXACT)
    assert offered(programs.unet(dtype="float32"), request=request) == []


@pytest.mark.parametrize("kind", ["T5EncoderModel", "UMT5EncoderModel", "Gemma2Model", "Qwen2_5_VLModel"])
def test_no_float16_where_it_overflows(kind: str) -> None:
    single = programs.unet(dtype="float32")
    assert offered(single, programs.text_encoder(kind=kind)) == ["bfloat16"]
    assert offered(single, programs.text_encoder(kind=kind), capability=(7, 5)) == []


def test_variant_and_call() -> None:
    whole = programs.program(programs.unet(dtype="float32"))
    option = PRECISION.options(whole, programs.device(), REQUEST)[1]
    assert PRECISION.variant(whole.variant, option).dtype == "bfloat16"
    assert option.calls == ("pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.bfloat16)",)
