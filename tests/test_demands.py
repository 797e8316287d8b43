"""What is named must be had, and what is ruled out must not; what cannot be had is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from techniques import tiny

from planner import absent, plan, snippet
from planner.cards import card
from planner.errors import BadRequest
from planner.request import Request
from planner.study import opened
from planner.techniques import DEFAULT


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.stable_diffusion_xl(tmp_path_factory.mktemp("sdxl"))


def planned(pipe: Any, **wanted: Any) -> Any:
    asked = {"height": 512, "width": 512, "budget": "4GB", "steps": 2} | wanted
    return plan(pipe, device=card("rtx-3070"), **asked)


@pytest.mark.parametrize(
    ("named", "value"),
    [("micro_batch", 1), ("vae_tiling=256", 256), ("attention=math", "math"), ("placement=model", "model")],
)
def test_what_is_named_is_in_the_plan(sdxl: Any, named: str, value: str | int) -> None:
    made = planned(sdxl, use=[named])
    assert made.option(named.partition("=")[0]).value == value
    assert made.from_json(made.to_json()) == made


def test_several_go_together(sdxl: Any) -> None:
    made = planned(sdxl, use=["micro_batch", "placement=sequential"])
    assert {option.technique: option.value for option in made.options} == {"micro_batch": 1, "placement": "sequential"}


def test_what_is_ruled_out_is_not(sdxl: Any) -> None:
    free = planned(sdxl, images=4, use=["split"], without=["vae_slicing"])
    assert free.option("split")
    assert not planned(sdxl, images=4, without=["split", "vae_slicing"]).option("vae_slicing")
    assert planned(sdxl, without=["placement"]).option("placement").neutral


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"use": ["fp8"]}, "no technique 'fp8' among"),
        ({"use": ["layerwise_casting"]}, "layerwise_casting is lossy, and at most faithful was asked for"),
        ({"use": ["vae_tiling"], "fidelity": "exact"}, "ask for fidelity faithful"),
        ({"use": ["micro_batch=7"]}, "micro_batch=7 is not on offer; choose 1"),
        ({"use": ["vae_slicing"]}, "it needs an autoencoder that slices, and several images"),
        ({"use": ["split"], "without": ["split"]}, "both asked for and ruled out"),
        ({"use": ["streaming"]}, "chosen for each component by itself"),
        (
            {"use": ["tracing=jit", "placement=sequential"], "calls": 9},
            "placement=sequential and tracing=jit exclude each other; leave 1 of the 2 away",
        ),
        (
            {"use": ["step_cache=first_block:0.08", "tracing=jit"], "calls": 9, "fidelity": "lossy"},
            "step_cache cannot be had for this StableDiffusionXLPipeline",
        ),
        (
            {"use": ["layerwise_casting", "quantization=int8"], "fidelity": "lossy"},
            "layerwise_casting=float8_e4m3fn and quantization=int8 exclude each other",
        ),
        ({"use": ["freeu"]}, "freeu cannot be had: FreeU changes the picture"),
        ({"use": ["device_map"]}, "a plan is for 1 card"),
        ({"use": ["attention=flex"]}, "attention=flex cannot be had: uncompiled it writes out all scores"),
        ({"use": ["attention=_flash_varlen_3"]}, "by the length of its prompt"),
        ({"use": ["quantization=nvfp4"]}, "on Blackwell alone"),
        ({"use": ["tracing=max-autotune"]}, "CUDA graphs keep a pool of memory"),
        ({"use": ["placement=device_map"]}, "a plan is for 1 card"),
        ({"use": ["placement=elsewhere"]}, "placement=elsewhere is not on offer; choose resident"),
        ({"use": [""]}, "it has to name techniques"),
        ({"use": ["micro_batch"], "plain": True}, "micro_batch needs code of ours, and only plain diffusers"),
        ({"plain": "yes"}, "it has to be true or false"),
    ],
)
def test_what_cannot_be_had_is_refused(sdxl: Any, wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        planned(sdxl, **wanted)


def test_every_absent_name_is_advice_in_one_sentence() -> None:
    values = (why for table in absent.VALUES.values() for why in table.values())
    for why in (*absent.TECHNIQUES.values(), *values):
        assert ";" in why, why
        assert not why.endswith(".")
    assert not absent.TECHNIQUES.keys() & {technique.name for technique in DEFAULT}
    assert set(absent.VALUES) <= {technique.name for technique in DEFAULT}
    assert absent.reason("cudaMallocAsync") == absent.reason("cuda_malloc_async") != ""
    assert absent.reason("taesd") == absent.reason("AutoencoderTiny") != ""
    assert absent.reason("vae_tiling") == absent.reason("attention", "flash") == ""


def test_a_placement_that_does_not_do_gets_the_reason(sdxl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(sdxl), "model_cpu_offload_seq", None)
    with pytest.raises(BadRequest, match="it has no model_cpu_offload_seq, the order in which components move"):
        planned(sdxl, use=["placement=model"])


def test_a_single_name_needs_no_list() -> None:
    assert Request(use="micro_batch").use == ("micro_batch",)  # type: ignore[arg-type]
    assert Request.from_json(Request(use=("split=2",), without=("tracing",)).to_json()).without == ("tracing",)


def test_a_plain_plan_needs_no_code_of_ours(sdxl: Any) -> None:
    """Of techniques that are ours nothing is on offer; code that needs us says so, and how to do without."""
    study = opened(sdxl, Request(height=512, width=512, steps=2, images=2, plain=True))
    pricer = study.pricer(card("rtx-3070"))
    offered = {name: pricer.offered(name, pricer.price(())) for name in pricer.techniques}
    assert all(option.plain for options in offered.values() for option in options)
    assert not offered["streaming"]
    assert not offered["micro_batch"]
    assert {"resident", "model", "group_leaf_stream"} <= {option.value for option in offered["placement"]}
    first = snippet.code(planned(sdxl, use=["micro_batch"])).partition("\n")[0]
    assert first == "# needs vram-planner for micro_batch; plan with --plain to do without"
    made = planned(sdxl, plain=True)
    assert "planner" not in snippet.code(made)
    assert made.from_json(made.to_json()).request.plain
