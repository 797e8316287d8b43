from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from planner import host
from planner.errors import ApplyFailed, BadRequest
from planner.ghost import ghost_of
from planner.packed import is_packed, parts
from planner.program import Setting, Variant
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.streamable import units_of
from planner.techniques.base import Option
from planner.techniques.placement import Placement
from planner.techniques.quantization import Quantization, layers_of, quantize_blocks
from planner.techniques.streaming import Streaming
from planner.trace import component_of

from . import programs, tiny

pytest.importorskip("torchao")

QUANTIZATION = Quantization(large=0)
LOSSY = Request(fidelity=Fidelity.LOSSY)
DENOISER = frozenset({"denoiser"})


def option(value: str) -> Option:
    return Option(technique="quantization", value=value, fidelity=Fidelity.LOSSY)


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def real_bytes(module: Any) -> int:
    """As the tensors themselves say, whatever they are packed in."""
    found = 0
    for tensor in (*module.parameters(), *module.buffers()):
        names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
        found += sum(getattr(tensor, name).nbytes for name in names) if names else tensor.nbytes
    return found


@pytest.mark.parametrize("value", ["int8", "float8"])
def test_smaller_while_applied_and_bit_equal_after(pipe: Any, value: str) -> None:
    before, output, whole = snapshot(pipe), tiny.run(pipe), real_bytes(denoiser(pipe))
    layers = list(layers_of(denoiser(pipe), value))
    undo = QUANTIZATION.apply(pipe, option(value))
    numbers = sum(layer.weight.numel() for layer in layers)
    scales = sum(layer.weight.shape[0] * (5 if value == "int8" else 4) for layer in layers)  # int8 has zero points too
    assert real_bytes(denoiser(pipe)) == whole - 4 * numbers + numbers + scales
    rounded = tiny.run(pipe)
    assert not torch.equal(rounded, output)
    assert (rounded - output).abs().mean() < 0.1
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


@pytest.mark.parametrize("value", ["int8", "float8"])
def test_a_ghost_has_the_bytes_of_the_pipeline(flux: Any, value: str) -> None:
    from_plain = ghost_of(flux)
    QUANTIZATION.apply(from_plain.pipe, option(value))
    QUANTIZATION.apply(flux, option(value))
    from_rounded = ghost_of(flux)
    for name in ("transformer", "text_encoder_2"):
        real = component_of(name, getattr(flux, name), flux)
        assert sum(real.weights) == real_bytes(getattr(flux, name))
        assert component_of(name, getattr(from_plain.pipe, name), flux).weights == real.weights
        assert component_of(name, getattr(from_rounded.pipe, name), flux).weights == real.weights
        assert real.dtype == "float32"
        assert "quantized" in real.traits


def test_what_is_left_as_it_is(flux: Any) -> None:
    quantize_blocks(flux.transformer, "int8")
    outside = (flux.transformer.x_embedder, flux.transformer.proj_out, flux.transformer.context_embedder)
    assert all(type(layer.weight.data) is torch.Tensor for layer in outside)
    inside = flux.transformer.single_transformer_blocks[0]
    assert [piece.tensor.dtype for piece in parts(inside.proj_mlp.weight)] == [torch.int8, torch.float32, torch.int8]
    with pytest.raises(BadRequest, match="none of the 2 ways to quantize; use int8, float8"):
        quantize_blocks(flux.transformer, "int3")


@pytest.mark.parametrize("value", ["int8", "float8"])
def test_streams_and_comes_back(flux: Any, value: str) -> None:
    before, plain = snapshot(flux), tiny.run(flux)
    undo = QUANTIZATION.apply(flux, option(value))
    rounded = tiny.run(flux)
    units = len(units_of(flux.transformer))
    for share in (f"{units // 2}/{units}", f"0/{units}-until-vae"):
        chosen = Option(technique="streaming", component="transformer", value=share)
        home = Streaming(device="cpu").apply(flux, chosen)
        settled = Placement(device="cpu").apply(flux, Option(technique="placement", value="resident", neutral=True))
        for _ in range(2):
            assert torch.equal(tiny.run(flux), rounded)
        settled()
        home()
    assert torch.equal(tiny.run(flux), rounded)
    undo()
    assert before.difference(snapshot(flux)) == ()
    assert torch.equal(tiny.run(flux), plain)


def test_it_settles_on_the_card_beside_what_travels(flux: Any) -> None:
    units = len(units_of(flux.text_encoder_2))
    QUANTIZATION.apply(flux, option("float8"))
    streamed = Option(technique="streaming", component="text_encoder_2", value=f"1/{units}")
    Streaming(device="cpu").apply(flux, streamed)
    Placement(device="meta").apply(flux, Option(technique="placement", value="resident"))
    assert {piece.tensor.device.type for p in flux.transformer.parameters() for piece in parts(p)} == {"meta"}


def test_what_cannot_be_undone_is_said_before(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(sd)
    monkeypatch.setattr(host, "available_host_ram", lambda: 100)
    with pytest.raises(ApplyFailed, match="100 B are free, so quantization could not be undone"):
        QUANTIZATION.apply(sd, option("int8"))
    assert before.difference(snapshot(sd)) == ()
    undo = Quantization(for_good=True).apply(sd, option("int8"))
    assert component_of("unet", sd.unet, sd).traits >= {"quantized"}
    with pytest.raises(ApplyFailed, match="rounded to 8 bits for good; load the pipeline anew"):
        undo()


@pytest.mark.parametrize(
    ("dtype", "traits", "request_", "values"),
    [
        ("bfloat16", DENOISER, LOSSY, ["int8", "float8"]),
        ("float16", DENOISER, LOSSY, ["float8"]),
        ("bfloat16", DENOISER, Request(), []),
        ("bfloat16", DENOISER | {"quantized"}, LOSSY, []),
    ],
)
def test_offered_by_request(dtype: str, traits: frozenset[str], request_: Request, values: list[str]) -> None:
    whole = programs.program(programs.transformer(dtype=dtype, traits=traits), programs.vae())
    options = QUANTIZATION.options(whole, programs.device(), request_)
    assert [chosen.value for chosen in options] == values
    assert all(chosen.fidelity == Fidelity.LOSSY for chosen in options)


def test_not_offered_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = programs.program(programs.transformer(dtype="bfloat16", traits=DENOISER))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert QUANTIZATION.options(whole, programs.device(), LOSSY) == ()
    assert "pip install torchao" in QUANTIZATION.needs


def test_calls_do_the_same(flux: Any) -> None:
    whole = programs.program(programs.transformer(dtype="float32", traits=DENOISER))
    chosen = QUANTIZATION.options(whole, programs.device(), LOSSY)[0]
    mine = list(layers_of(flux.transformer, str(chosen.value)))
    assert chosen.plain
    exec("\n".join(chosen.calls), {"torch": torch, "pipe": flux})
    linear = [part for part in flux.transformer.modules() if isinstance(part, torch.nn.Linear)]
    assert len(mine) < len(linear)
    assert [part for part in linear if is_packed(part.weight)] == [part for part in linear if part in mine]
    assert "quantized" in component_of("transformer", flux.transformer, flux).traits


def test_no_sequential_offload_of_packed_weights() -> None:
    packed = programs.program(programs.transformer(traits=DENOISER | {"quantized"}), programs.vae())
    values = [chosen.value for chosen in Placement().options(packed, programs.device(), LOSSY)]
    assert "resident" in values
    assert "sequential" not in values


def test_variant() -> None:
    setting = Setting("quantization", "int8", "call")
    assert QUANTIZATION.variant(Variant(), option("int8")) == Variant(settings=(setting,))
