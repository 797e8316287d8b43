from __future__ import annotations

from typing import Any

import pytest
import torch

from planner import host
from planner.errors import ApplyFailed
from planner.program import Setting, Variant
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.layerwise_casting import LayerwiseCasting

from . import programs, tiny

CASTING = LayerwiseCasting()
OPTION = Option(technique="layerwise_casting", value="float8_e4m3fn", fidelity=Fidelity.LOSSY)
ABLE = frozenset({"denoiser", "layerwise_casting"})
LOSSY = Request(fidelity=Fidelity.LOSSY)


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def bytes_of(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def test_smaller_while_applied_and_bit_equal_after(pipe: Any) -> None:
    before, output, whole = snapshot(pipe), tiny.run(pipe), bytes_of(denoiser(pipe))
    undo = CASTING.apply(pipe, OPTION)
    assert bytes_of(denoiser(pipe)) < 0.8 * whole
    rounded = tiny.run(pipe)
    assert not torch.equal(rounded, output)
    assert (rounded - output).abs().mean() < 0.1
    assert bytes_of(denoiser(pipe)) < 0.8 * whole
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


def test_what_cannot_be_undone_is_said_before(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(sd)
    monkeypatch.setattr(host, "available_host_ram", lambda: 100)
    with pytest.raises(ApplyFailed, match="100 B are free, so fp8 could not be undone"):
        CASTING.apply(sd, OPTION)
    assert before.difference(snapshot(sd)) == ()


def test_for_good_keeps_nothing(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_host_ram", lambda: 100)
    undo = LayerwiseCasting(for_good=True).apply(sd, OPTION)
    assert sd.unet.mid_block.attentions[0].proj_in.weight.dtype == torch.float8_e4m3fn
    with pytest.raises(ApplyFailed, match="load the pipeline anew"):
        undo()


@pytest.mark.parametrize(
    ("dtype", "traits", "request_", "count"),
    [
        ("bfloat16", ABLE, LOSSY, 1),
        ("bfloat16", ABLE, Request(), 0),
        ("int8", ABLE, LOSSY, 0),
        ("bfloat16", frozenset({"denoiser"}), LOSSY, 0),
    ],
)
def test_offered_by_request(dtype: str, traits: frozenset[str], request_: Request, count: int) -> None:
    whole = programs.program(programs.transformer(dtype=dtype, traits=traits), programs.vae())
    options = CASTING.options(whole, programs.device(), request_)
    assert len(options) == count
    assert all(option.fidelity == Fidelity.LOSSY for option in options)


def test_calls_do_the_same_without_us(flux: Any) -> None:
    """Weights are cast for as long as a layer runs, and are then the very ones they were."""
    whole = programs.program(programs.transformer(dtype="float32", traits=ABLE))
    (option,) = CASTING.options(whole, programs.device(), LOSSY)
    assert option.plain
    exec("\n".join(option.calls), {"pipe": flux, "torch": torch})
    layer = flux.transformer.x_embedder
    small = layer.weight.data_ptr()
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert layer(torch.zeros(1, layer.in_features)).dtype == torch.float32
    assert (layer.weight.dtype, layer.weight.data_ptr()) == (torch.float8_e4m3fn, small)


def test_variant() -> None:
    setting = Setting("layerwise_casting", "float8_e4m3fn", "call")
    assert CASTING.variant(Variant(), OPTION) == Variant(settings=(setting,))
