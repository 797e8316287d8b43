from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch as dispatch
from diffusers.models import attention_processor as processors
from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor, XFormersAttnProcessor

from planner.attention import chosen as backend
from planner.attention import requests
from planner.demands import Demand, chosen
from planner.errors import ApplyFailed, BadRequest
from planner.kernels import Attention
from planner.pace import Pace
from planner.program import Program
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.techniques.attention import SWITCHED_OFF, AttentionBackend, fits
from planner.techniques.attention_libraries import LIBRARIES
from planner.techniques.base import Option

from . import programs, tiny

ATTENTION = AttentionBackend()
REQUEST = Request(height=512, width=512)


def option(value: str) -> Option:
    return Option(technique="attention", value=value)


@pytest.mark.parametrize("value", ["flash", "efficient", "math", "sliced"])
def test_a_unet(sdxl: Any, value: str) -> None:
    before, output = snapshot(sdxl), tiny.run(sdxl)
    undo = ATTENTION.apply(sdxl, option(value))
    assert before.difference(snapshot(sdxl))
    assert torch.allclose(tiny.run(sdxl), output, atol=1e-5)
    undo()
    assert before.difference(snapshot(sdxl)) == ()
    assert torch.equal(tiny.run(sdxl), output)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_transformer(name: str, tmp_path: Any) -> None:
    pipe = tiny.MAKERS[name](tmp_path)
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = ATTENTION.apply(pipe, option("math"))
    assert Registry.get_active_backend()[0] == "_native_math"
    assert torch.allclose(tiny.run(pipe), output, atol=1e-5)
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


def test_slicing_keeps_the_own_processors(sd: Any) -> None:
    attention = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    own = attention.processor
    undo = ATTENTION.apply(sd, option("sliced"))
    assert isinstance(attention.processor, SlicedAttnProcessor)
    undo()
    assert attention.processor is own


def test_custom_processors_come_back(sd: Any) -> None:
    attention = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    class Weighted(AttnProcessor, torch.nn.Module):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.gain = torch.nn.Parameter(torch.ones(1))

    attention.set_processor(Weighted())
    before, custom = snapshot(sd), attention.processor
    with pytest.raises(ApplyFailed, match="Weighted"):
        ATTENTION.apply(sd, option("sliced"))
    assert before.difference(snapshot(sd)) == ()
    undo = ATTENTION.apply(sd, option("math"))
    attention.set_processor(AttnProcessor())
    undo()
    assert attention.processor is custom
    assert "processor" in attention._modules
    assert before.difference(snapshot(sd)) == ()


def test_a_failure_leaves_no_trace(sd: Any, flux: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("xFormers would be switched on")
    for pipe, error in ((sd, (ValueError, ModuleNotFoundError)), (flux, (RuntimeError, ImportError, KeyError))):
        before = snapshot(pipe)
        with pytest.raises((*error, ApplyFailed)):
            ATTENTION.apply(pipe, option("xformers" if pipe is sd else "absent"))
        assert before.difference(snapshot(pipe)) == ()


def test_what_no_model_takes_is_refused(sd: Any) -> None:
    with pytest.raises(ApplyFailed, match="cudnn"):
        ATTENTION.apply(sd, option("cudnn"))


def unets(*kernels: Attention) -> Program:
    vae = (programs.attention(heads=1, head_size=512, value_size=512),)
    return programs.program(
        programs.text_encoder(), programs.unet(), programs.vae(),
        text_encoder=(programs.attention(mask="float", switchable=False),), unet=kernels or (programs.attention(),),
        vae=vae,
    )  # fmt: skip


def transformers(*kernels: Attention) -> Program:
    vae = (programs.attention(heads=1, head_size=512, value_size=512),)
    joint = kernels or (programs.attention(head_size=128, value_size=128),)
    return programs.program(programs.transformer(), programs.vae(), transformer=joint, vae=vae)


def offered(program: Program, capability: tuple[int, int] = (8, 9)) -> set[object]:
    options = ATTENTION.options(program, programs.device(capability), REQUEST)
    return {option.value for option in options} - {"xformers"}


def test_offered_to_unets() -> None:
    assert offered(unets()) == {"flash", "efficient", "math", "sliced"}
    assert offered(unets(), (7, 5)) == {"efficient", "math", "sliced"}
    bfloat = programs.attention(dtype="bfloat16")
    assert offered(unets(bfloat), (8, 0)) == {"flash", "efficient", "math", "sliced"}


def test_offered_to_transformers() -> None:
    assert offered(transformers()) == {"flash", "efficient", "cudnn", "math"}


def test_a_dispatcher_offers_only_what_serves_every_attention() -> None:
    masked = programs.attention(head_size=128, value_size=128, mask="bool")
    assert offered(transformers(masked)) == {"efficient", "cudnn", "math"}
    wide = programs.attention(head_size=320, value_size=320)
    assert offered(transformers(wide)) == {"efficient", "math"}


def test_nothing_to_switch_nothing_offered() -> None:
    assert (
        offered(programs.program(programs.text_encoder(), text_encoder=(programs.attention(switchable=False),)))
        == set()
    )


@pytest.mark.parametrize(("capability", "there"), [((7, 5), False), ((8, 6), True)])
def test_xformers_has_no_bfloat16_kernels_below_ampere(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], there: bool
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    plain = unets(programs.attention(dtype="bfloat16"))
    options = ATTENTION.options(plain, programs.device(capability), REQUEST)
    assert ("xformers" in {option.value for option in options}) == there


def test_xformers_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, capability, values in ((object(), (8, 9), True), (None, (8, 9), False), (object(), (12, 0), False)):
        monkeypatch.setattr("importlib.util.find_spec", lambda _, found=found: found)
        options = ATTENTION.options(unets(), programs.device(capability), REQUEST)
        assert ("xformers" in {option.value for option in options}) == values


def test_what_flash_cannot_serve_does_not_come_to_cudnn_which_is_switched_off() -> None:
    """T5's mask of 300 columns is padded on an H100, too."""
    masked = programs.attention(mask="float", mask_size=300 * 300, mask_columns=300, mask_aligned=False, keys=300)
    program = replace(unets(), kernels=tuple(masked if isinstance(k, Attention) else k for k in unets().kernels))
    kernel = ATTENTION.rewrite(program, option("flash")).kernels[0]
    assert isinstance(kernel, Attention)
    assert backend(masked, (9, 0)) == "cudnn"
    assert backend(kernel, (9, 0)) == "efficient"
    assert requests(kernel, programs.device((9, 0))) == (300 * 304 * 2,)


@pytest.mark.usefixtures("installed")
def test_xformers_pads_no_masks() -> None:
    """Those of Kandinsky's prior have 81 columns, and it says that it has no operator for them."""
    for columns, there in ((81, False), (80, True)):
        masked = programs.attention(mask="float", mask_columns=columns, mask_aligned=columns % 8 == 0, keys=columns)
        options = ATTENTION.options(unets(programs.attention(), masked), programs.device(), REQUEST)
        assert ("xformers" in {option.value for option in options}) == there


def test_rewrite_reaches_what_the_backend_serves() -> None:
    def backends(program: Program) -> list[str]:
        return [kernel.backend for kernel in program.kernels if isinstance(kernel, Attention)]

    text, unet, vae = range(3)
    flash = backends(ATTENTION.rewrite(unets(), option("flash")))
    assert (flash[text], flash[unet], flash[vae]) == ("flash", "flash", "flash")
    assert backends(ATTENTION.rewrite(unets(), option("math"))) == ["math"] * 3
    assert backends(ATTENTION.rewrite(unets(), option("sliced"))) == ["auto", "sliced", "auto"]
    assert backends(ATTENTION.rewrite(transformers(), option("efficient"))) == ["efficient", "auto"]


def test_torchs_own_switches_reach_every_component() -> None:
    """As the attention of Kandinsky's decoder, which has no processors to choose, and of text encoders."""
    plain = programs.vae(traits=frozenset({"autoencoder"}))
    kernels = (programs.attention(mask="float", switchable=False),), (programs.attention(),), (programs.attention(),)
    named = dict(zip(("text_encoder", "unet", "vae"), kernels, strict=True))
    whole = programs.program(programs.text_encoder(), programs.unet(), plain, **named)
    switched = ATTENTION.rewrite(whole, option("math")).kernels
    assert [kernel.backend for kernel in switched if isinstance(kernel, Attention)] == ["math"] * 3


@pytest.mark.parametrize(
    ("backend", "changes", "possible"),
    [
        ("flash", {}, True),
        ("flash", {"dtype": "float32"}, False),
        ("flash", {"mask": "float"}, False),
        ("flash", {"head_size": 512, "value_size": 512}, False),
        ("flash", {"value_size": 64}, False),
        ("cudnn", {"head_size": 44}, False),
        ("efficient", {"dtype": "float32", "head_size": 44}, True),
        ("efficient", {"head_size": 44}, False),
        ("math", {"dtype": "float32", "mask": "bool"}, True),
    ],
)
def test_shapes_a_backend_serves(backend: str, changes: dict[str, object], possible: bool) -> None:
    assert fits(backend, programs.attention(**changes)) == possible


def test_calls_name_public_functions() -> None:
    options = {o.value: o.calls for o in ATTENTION.options(unets(), programs.device(), REQUEST)}
    assert options["efficient"] == tuple(
        f"torch.backends.cuda.enable_{k}_sdp(False)" for k in SWITCHED_OFF["efficient"]
    )
    assert options["sliced"] == ('pipe.enable_attention_slicing("max")',)
    options = {o.value: o.calls for o in ATTENTION.options(transformers(), programs.device(), REQUEST)}
    assert options["flash"] == ('pipe.transformer.set_attention_backend("_native_flash")',)


LOSSY = Request(height=512, width=512, fidelity=Fidelity.LOSSY)


def reason(value: str, program: Program, capability: tuple[int, int] = (8, 9), **changes: Any) -> str:
    """Why a named backend cannot be had; empty where it is offered."""
    request = replace(LOSSY, use=(f"attention={value}",), **changes)
    try:
        chosen(Demand(technique="attention", value=value), ATTENTION, program, programs.device(capability), request)
    except BadRequest as error:
        return str(error)
    return ""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("value", LIBRARIES)
def test_kernels_of_packages_are_for_those_who_name_them(value: str) -> None:
    assert value not in offered(transformers())
    capability = LIBRARIES[value].most or (8, 9)
    assert reason(value, transformers(), capability) == ""


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("value", "kernel", "capability", "words"),
    [
        ("sage", {}, (7, 5), "compute capability 8.0 or higher, and .* has 7.5"),
        ("flash_3", {}, (8, 9), "compute capability 9.0, and .* has 8.9"),
        ("sage", {"dtype": "float32"}, (8, 9), "float16 or bfloat16, and 1 of 1"),
        ("sage", {"head_size": 256, "value_size": 256}, (8, 9), "at most 128 numbers, and there are heads of 256"),
        ("flash_attn", {"mask": "bool"}, (8, 9), "no masks, and 1 of 1"),
    ],
)
def test_the_reason_says_what_is_missing(
    value: str, kernel: dict[str, Any], capability: tuple[int, int], words: str
) -> None:
    plain = {"head_size": 128, "value_size": 128}
    assert re.search(words, reason(value, transformers(programs.attention(**(plain | kernel))), capability))


@pytest.mark.usefixtures("installed")
def test_unets_do_not_dispatch_and_sage_is_lossy() -> None:
    assert "diffusers dispatches" in reason("sage", unets())
    assert "attention=sage is lossy" in reason("sage", transformers(), fidelity=Fidelity.FAITHFUL)
    assert reason("flash_attn", transformers(), fidelity=Fidelity.EXACT) == ""


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "the package sageattention, not installed here" in reason("sage", transformers())
    assert "the package kernels" in reason("flash_hub", transformers())


@pytest.mark.parametrize("value", ["flash_attn", "sage"])
def test_a_package_is_dispatched_to_and_left_again(flux: Any, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def kernel(q: Any, k: Any, v: Any, **further: Any) -> Any:
        asked.append(further.get("tensor_layout", "NHD"))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    monkeypatch.setattr(dispatch, "_CAN_USE_SAGE_ATTN", True)
    monkeypatch.setattr(dispatch, "_CAN_USE_FLASH_ATTN", True)
    monkeypatch.setattr(dispatch, "sageattn", kernel)
    monkeypatch.setattr(dispatch, "flash_attn_func", kernel)
    before, output = snapshot(flux), tiny.run(flux)
    undo = ATTENTION.apply(flux, option(value))
    assert torch.allclose(tiny.run(flux), output, atol=1e-5)
    assert set(asked) == {"NHD"}
    undo()
    asked.clear()
    assert before.difference(snapshot(flux)) == ()
    assert torch.equal(tiny.run(flux), output)
    assert not asked


class Xformers:
    """xFormers' one function, computed by torch on a CPU, which it has no kernels for."""

    def __init__(self) -> None:
        self.calls = 0

    def memory_efficient_attention(
        self, q: Any, k: Any, v: Any, attn_bias: Any = None, p: float = 0.0, scale: Any = None, op: Any = None
    ) -> Any:
        assert (p, op) == (0.0, None)
        self.calls += 1
        if q.dim() == 3:  # heads among the rows
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_bias, scale=scale)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_bias, scale=scale).transpose(1, 2)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> Xformers:
    """As where the package is installed."""
    kernels = Xformers()
    for module in (dispatch, processors):
        monkeypatch.setattr(module, "is_xformers_available", lambda: True)
    monkeypatch.setattr(dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    monkeypatch.setattr(dispatch, "xops", kernels)
    monkeypatch.setattr(processors, "xformers", SimpleNamespace(ops=kernels))
    return kernels


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_xformers_on_a_unet_and_off_again(
    name: str, tmp_path: Any, xformers: Xformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, randn = tiny.MAKERS[name](tmp_path), torch.randn
    before, output = snapshot(pipe), tiny.run(pipe)

    def on_the_host(*size: Any, **given: Any) -> torch.Tensor:
        return randn(*size, **(given | {"device": "cpu"}))

    with monkeypatch.context() as pretending:  # diffusers tries the kernel on a card before it takes it
        pretending.setattr(torch.cuda, "is_available", lambda: True)
        pretending.setattr(torch, "randn", on_the_host)
        undo = ATTENTION.apply(pipe, option("xformers"))
    assert isinstance(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor, XFormersAttnProcessor)
    xformers.calls = 0
    assert torch.allclose(tiny.run(pipe), output, atol=1e-5)
    assert xformers.calls
    undo()
    xformers.calls = 0
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)
    assert not xformers.calls


@pytest.mark.parametrize("value", ["xformers", "cudnn"])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_transformer_is_dispatched_there_and_back(
    name: str, value: str, tmp_path: Any, xformers: Xformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def kernel(backend: object) -> Any:
        asked.append(backend)
        return nullcontext()

    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", kernel)  # cuDNN has none for CPUs
    pipe = tiny.MAKERS[name](tmp_path)
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = ATTENTION.apply(pipe, option(value))
    assert torch.allclose(tiny.run(pipe), output, atol=1e-5)
    assert bool(xformers.calls) == (value == "xformers")
    assert set(asked) == ({torch.nn.attention.SDPBackend.CUDNN_ATTENTION} if value == "cudnn" else set())
    undo()
    asked.clear()
    xformers.calls = 0
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)
    assert not asked
    assert not xformers.calls


@pytest.mark.parametrize("head", [40, 64, 72, 128])
def test_what_packages_hold_is_priced(head: int) -> None:
    kernel = programs.attention(head_size=head, value_size=head)
    card = programs.device((8, 9))
    flash, package, sage = (requests(replace(kernel, backend=b), card) for b in ("flash", "flash_attn", "sage"))
    assert package == flash
    item = 2 * kernel.batch * kernel.heads * head
    assert sum(sage) >= item * (kernel.queries + 2 * kernel.keys)
    assert Pace(card).kernel(replace(kernel, backend="sage")) == Pace(card).kernel(replace(kernel, backend="flash"))
