from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.errors import ApplyFailed
from planner.events import Drop, Load
from planner.offload import sequential_offload
from planner.program import Program
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.tracing import Tracing

from . import programs, tiny

TRACING = Tracing(backend="eager")
REQUEST = Request(height=512, width=512, calls=100)


def option(value: str) -> Option:
    return Option(technique="tracing", value=value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_jit(name: str, tmp_path: Any) -> None:
    pipe = tiny.MAKERS[name](tmp_path)
    before, output, larger = snapshot(pipe), tiny.run(pipe), tiny.run(pipe, height=48, width=48)
    undo = TRACING.apply(pipe, option("jit"))
    assert torch.allclose(tiny.run(pipe), output, atol=1e-5)
    assert isinstance(pipe.unet.forward.graph, torch.jit.ScriptModule)
    assert torch.allclose(tiny.run(pipe), output, atol=1e-5)
    assert torch.equal(tiny.run(pipe, height=48, width=48), larger)
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_graph_answers_in_the_form_asked_for(sd: Any) -> None:
    undo = TRACING.apply(sd, option("jit"))
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 6, 16))
    with torch.no_grad():
        named, plain = sd.unet(*inputs), sd.unet(*inputs, return_dict=False)
        expected = type(sd.unet).forward(sd.unet, *inputs, return_dict=False)
    assert torch.allclose(named.sample, expected[0], atol=1e-5)
    assert torch.allclose(plain[0], expected[0], atol=1e-5)
    undo()


def test_compile_blocks(flux: Any) -> None:
    before, output = snapshot(flux), tiny.run(flux)
    undo = TRACING.apply(flux, option("compile"))
    block, whole = flux.transformer.transformer_blocks[0], flux.transformer
    assert block._compiled_call_impl is not None
    assert whole._compiled_call_impl is None
    assert torch.allclose(tiny.run(flux), output, atol=1e-5)
    undo()
    torch.compiler.reset()
    assert before.difference(snapshot(flux)) == ()
    assert torch.equal(tiny.run(flux), output)


def test_a_pipeline_without_denoiser_is_refused(sd: Any) -> None:
    sd.register_modules(unet=None)
    with pytest.raises(ApplyFailed, match="0 denoisers"):
        TRACING.apply(sd, option("compile"))


def offered(program: Program) -> list[object]:
    return [option.value for option in TRACING.options(program, programs.device(), REQUEST)]


def offloaded(program: Program) -> Program:
    load = Load("unet", (100,))
    return program.with_course((load, *program.recordings[program.course].events, Drop("unet", True)))


def streamed(program: Program) -> Program:
    return sequential_offload(program)


def test_a_single_call_is_not_worth_a_graph() -> None:
    unet = programs.program(programs.unet(), unet=(programs.attention(),))
    assert TRACING.options(unet, programs.device(), Request(height=512, width=512)) == ()


def test_offered_as_far_as_weights_stay() -> None:
    unet = programs.program(programs.unet(), unet=(programs.attention(),))
    blocks = programs.program(programs.transformer(), transformer=(programs.attention(),))
    assert offered(unet) == ["jit", "compile"]
    assert offered(blocks) == ["compile"]
    assert offered(offloaded(unet)) == []
    assert offered(offloaded(blocks)) == ["compile"]
    assert offered(streamed(unet)) == offered(streamed(blocks)) == []


def test_weights_that_only_arrive_are_resident() -> None:
    unet = programs.program(programs.unet(), unet=(programs.attention(),))
    resident = unet.with_course((Load("unet", (100,)), *unet.recordings[unet.course].events))
    assert offered(resident) == ["jit", "compile"]


def test_calls() -> None:
    blocks = programs.program(programs.transformer(), transformer=(programs.attention(),))
    (compiled,) = TRACING.options(blocks, programs.device(), REQUEST)
    assert compiled.calls == ("pipe.transformer.compile_repeated_blocks()",)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_printed_code_does_what_the_plan_does(sd: Any, flux: Any) -> None:
    unet = programs.program(programs.unet(), unet=(programs.attention(),))
    blocks = programs.program(programs.transformer(), transformer=(programs.attention(),))
    jit, whole = (printed.calls for printed in TRACING.options(unet, programs.device(), REQUEST))
    (regional,) = (printed.calls for printed in TRACING.options(blocks, programs.device(), REQUEST))
    output = tiny.run(sd)
    exec("\n".join(whole), {"pipe": sd})
    assert sd.unet._compiled_call_impl is not None
    sd.unet._compiled_call_impl = None  # no time for a compiler here
    exec("\n".join(jit), {"pipe": sd})
    assert torch.allclose(tiny.run(sd), output, atol=1e-5)
    assert isinstance(sd.unet.forward.graph, torch.jit.ScriptModule)
    exec("\n".join(regional), {"pipe": flux})
    assert flux.transformer.transformer_blocks[0]._compiled_call_impl is not None
