from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from planner import profiles
from planner.blueprint import build
from planner.demands import Demand, chosen
from planner.errors import ApplyFailed, BadRequest
from planner.ghost import ghost_of, haunted
from planner.packed import packs
from planner.quantizable import layers_of
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.streamable import held
from planner.techniques import packing
from planner.techniques.base import Option
from planner.techniques.placement import Placement
from planner.techniques.quantization import Quantization

from . import programs, tiny

QUANTIZATION = Quantization(large=0)
UNREAD = frozenset({"denoiser", "unread"})
NAMED = Request(fidelity=Fidelity.LOSSY, use=("quantization=nf4",))


def option(value: str) -> Option:
    return Option(technique="quantization", value=value, fidelity=Fidelity.LOSSY)


def on_any_host(module: Any) -> None:
    """CPUs with AVX512 lay packed weights out anew when they first run, which takes rows of whole blocks."""
    for part in module.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


def sizes(module: Any) -> list[int]:
    return sorted(tensor.nbytes for tensor in held(module))


@pytest.mark.parametrize("value", packing.BITS)
def test_a_ghost_has_the_bytes_of_the_pipeline(pipe: Any, value: str) -> None:
    pytest.importorskip("bitsandbytes")
    ghost = ghost_of(pipe)
    before = snapshot(ghost.pipe)
    undo = QUANTIZATION.apply(ghost.pipe, option(value))
    for name, part in ghost.modules():
        real = getattr(pipe, name)
        if QUANTIZATION.takes(name, real):
            packing.pack(real, value)
        assert sizes(part) == sizes(real), name
    undo()
    assert before.difference(snapshot(ghost.pipe)) == ()


def test_packed_by_the_library_as_it_loads(tmp_path: Path) -> None:
    """Its quantizer asks for a card before it begins; here is none, and the rest of it works without."""
    bnb = pytest.importorskip("bitsandbytes")
    from diffusers import BitsAndBytesConfig, FluxTransformer2DModel
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer as Quantizer

    pipe = tiny.flux(tmp_path)
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantizer, "validate_environment", lambda *_, **__: None)
        patch.setattr(Quantizer, "update_device_map", lambda *_: {"": "cpu"})
        loaded: Any = FluxTransformer2DModel.from_pretrained(
            tmp_path / "transformer", quantization_config=how, torch_dtype=torch.float32
        )
    packing.pack(pipe.transformer, "nf4")
    ours, theirs = pipe.transformer.state_dict(), loaded.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert ours.keys() == theirs.keys()
    assert pipe.transformer.is_loaded_in_4bit
    assert pipe.transformer.quantization_method == loaded.quantization_method
    assert {type(layer) for _, layer in loaded.named_modules() if isinstance(layer, torch.nn.Linear)} == {
        bnb.nn.Linear4bit
    }


def test_it_runs_and_is_near(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pipe = tiny.stable_diffusion(tmp_path)
    plain = tiny.run(pipe)
    packing.pack(pipe.unet, "nf4")
    on_any_host(pipe.unet)
    rounded = tiny.run(pipe)
    assert not torch.equal(plain, rounded)
    assert (plain - rounded).abs().mean() < 0.1


def test_layers_that_stay() -> None:
    """T5 keeps one layer of each block in float32, and the pipeline's first and last layers are packed as well."""
    pipe = haunted(build(profiles.find("flux1-dev"), None)).pipe
    t5 = {path for path, _ in layers_of(pipe.text_encoder_2)}
    assert len(t5) == 24 * 6
    assert not any(path.endswith("wo") for path in t5)
    transformer = {path for path, _ in layers_of(pipe.transformer)}
    assert {"x_embedder", "proj_out", "context_embedder", "norm_out.linear"} <= transformer
    wan = haunted(build(profiles.find("wan2.1-t2v-1.3b"), None)).pipe.transformer
    kept = {path for path, _ in wan.named_modules() if "time_embedder" in path}
    assert not kept & {path for path, _ in layers_of(wan)}


@pytest.mark.parametrize(
    ("traits", "request_", "values"),
    [
        (UNREAD, Request(fidelity=Fidelity.LOSSY), ["nf4"]),
        (UNREAD, Request(fidelity=Fidelity.LOSSY, use=("quantization=fp4",)), ["nf4", "fp4"]),
        (UNREAD, Request(), []),
        (UNREAD | {"quantized"}, Request(fidelity=Fidelity.LOSSY), []),
        (frozenset({"denoiser"}), Request(fidelity=Fidelity.LOSSY), []),
    ],
)
def test_offered_before_a_pipeline_is_there(traits: frozenset[str], request_: Request, values: list[str]) -> None:
    pytest.importorskip("bitsandbytes")
    whole = programs.program(
        programs.transformer(dtype="float16", traits=traits), programs.vae(traits=programs.VAE | {"unread"})
    )
    found = QUANTIZATION.options(whole, programs.device(), request_)
    assert [each.value for each in found if each.value in packing.BITS] == values


def test_why_not(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    demand = Demand(technique="quantization", value="nf4")
    live = programs.program(programs.transformer(dtype="float16", traits=frozenset({"denoiser"})))
    with pytest.raises(
        BadRequest,
        match=r"nf4 cannot be had for this .*: it is chosen while loading, and this one is loaded; use planner.load",
    ):
        chosen(demand, QUANTIZATION, live, programs.device(), NAMED)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    unread = programs.program(programs.transformer(dtype="float16", traits=UNREAD))
    with pytest.raises(BadRequest, match="needs bitsandbytes, which is not installed: pip install bitsandbytes"):
        chosen(demand, QUANTIZATION, unread, programs.device(), NAMED)
    with pytest.raises(
        ApplyFailed, match=r"packs text_encoder, .*, transformer to nf4 .* this FluxPipeline was loaded otherwise"
    ):
        QUANTIZATION.apply(flux, option("nf4"))


def test_what_is_packed_is_left_alone(flux: Any) -> None:
    pytest.importorskip("bitsandbytes")
    packing.pack(flux.transformer, "nf4")
    before = list(map(id, flux.transformer.parameters()))
    packing.pack(flux.transformer, "fp4")
    packing.pack(torch.nn.Linear(4, 4), "nf4")  # of neither library
    assert before == list(map(id, flux.transformer.parameters()))


def test_where_packed_weights_can_be() -> None:
    for clinging, places in ((frozenset({"clinging"}), ["resident"]), (frozenset[str](), ["resident", "model"])):
        part = programs.transformer(traits=frozenset({"denoiser", "quantized"}) | clinging)
        offered = Placement().options(programs.program(part, programs.vae()), programs.device(), NAMED)
        assert [each.value for each in offered] == places


def test_on_a_pipeline_that_was_loaded_so(flux: Any) -> None:
    pytest.importorskip("bitsandbytes")
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        packing.pack(getattr(flux, name), "nf4")
    QUANTIZATION.apply(flux, option("nf4"))()
    assert packs(flux.transformer)
    with pytest.raises(ApplyFailed, match="rounded to 4 bits for good; load the pipeline anew"):
        Quantization(for_good=True, large=0).apply(flux, option("nf4"))()
