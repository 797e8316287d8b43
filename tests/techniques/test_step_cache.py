from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.cost import Cost
from planner.errors import ApplyFailed, BadRequest
from planner.offload import resident
from planner.program import Attention, Call, Program, Run, Setting, Variant
from planner.programs import FromPipe, Programs
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.micro_batch import MicroBatch
from planner.techniques.placement import Placement
from planner.techniques.step_cache import Cache, StepCache
from planner.techniques.tracing import Tracing

from . import programs, tiny

CACHE = StepCache()
VALUES = ("first_block:0.08", "pyramid:2", "pyramid:2/4/6")


def option(value: str) -> Option:
    return Option(technique="step_cache", value=value)


def marked(module: torch.nn.Module) -> list[str]:
    """Modules on which diffusers' hooks left something; the pipelines themselves do so on the denoiser."""
    names = {"_diffusers_hook", "forward", "_cache_config"}
    return [f"{path}.{name}" for path, part in module.named_modules() for name in sorted(names & vars(part).keys())]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_gone_after(name: str, value: str, tmp_path: Path) -> None:
    pipe = tiny.MAKERS[name](tmp_path)
    output = tiny.run(pipe)
    before, marks = snapshot(pipe), marked(pipe.transformer)
    undo = CACHE.apply(pipe, option(value))
    assert pipe.transformer.is_cache_enabled
    assert tiny.run(pipe).shape == output.shape
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert marked(pipe.transformer) == marks
    assert not pipe.transformer.is_cache_enabled
    assert torch.equal(tiny.run(pipe), output)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_threshold_of_zero_changes_nothing(name: str, tmp_path: Path) -> None:
    pipe = tiny.MAKERS[name](tmp_path)
    output = tiny.run(pipe)
    undo = CACHE.apply(pipe, option("first_block:0"))
    assert torch.equal(tiny.run(pipe), output)
    undo()


def test_under_group_offload(flux: Any) -> None:
    before, output = snapshot(flux), tiny.run(flux)
    undos = [CACHE.apply(flux, option("first_block:0"))]
    undos.append(Placement(device="cpu").apply(flux, Option(technique="placement", value="group_block")))
    assert torch.equal(tiny.run(flux), output)
    for undo in reversed(undos):
        undo()
    assert before.difference(snapshot(flux)) == ()


def test_a_cache_of_others_stays(flux: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    flux.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    before = snapshot(flux)
    with pytest.raises(ApplyFailed, match="already been enabled"):
        CACHE.apply(flux, option("pyramid:2"))
    assert before.difference(snapshot(flux)) == ()
    assert flux.transformer.is_cache_enabled


def dit(*traits: str, variant: Variant | None = None) -> Program:
    component = programs.transformer(traits=programs.DIT | {"rows_apart", *traits}, rows=4)
    return programs.program(component, variant=variant, transformer=(programs.attention(),))


def asked(*use: str, fidelity: Fidelity = Fidelity.LOSSY) -> Request:
    return Request(use=use, fidelity=fidelity, calls=4)


def test_offered_to_those_who_name_it() -> None:
    able, card = dit("first_block", "pyramid"), programs.device()

    def offered(program: Program, request: Request) -> list[object]:
        return [option.value for option in CACHE.options(program, card, request)]

    assert offered(able, asked("step_cache=first_block:0.12")) == ["first_block:0.12"]
    assert offered(able, asked("step_cache")) == ["first_block:0.05", "pyramid:2"]
    assert offered(able, asked()) == []
    assert offered(able, asked("step_cache", fidelity=Fidelity.FAITHFUL)) == []
    assert offered(dit("pyramid"), asked("step_cache")) == ["pyramid:2"]
    (option,) = CACHE.options(able, card, asked("step_cache=pyramid:2/4"))
    first, second = option.calls
    assert first == "from diffusers import PyramidAttentionBroadcastConfig"
    assert second == (
        "pipe.transformer.enable_cache(PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, "
        "temporal_attention_block_skip_range=4, current_timestep_callback=lambda: pipe.current_timestep))"
    )


@pytest.mark.parametrize("value", ["first_block", "first_block:-1", "first_block:1.5.2", "pyramid:0", "teacache:1"])
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(BadRequest, match=r"first_block:0\.08 or pyramid:2/4/6"):
        Cache.of(value)


def test_what_remembers_is_neither_cut_nor_traced() -> None:
    cached = dit(variant=Variant().under(Setting("step_cache", "pyramid:2", "call")))
    card = programs.device()
    for technique in (MicroBatch(), Tracing()):
        assert technique.options(dit(), card, asked())
        assert not technique.options(cached, card, asked())


def recorded(pipe: Any, *settings: Setting) -> Program:
    variant = Variant()
    for setting in settings:
        variant = variant.under(setting)
    return Programs(FromPipe(pipe), Request(height=64, width=64, steps=4, prompt_tokens=16), None).get(variant)


def test_steps_are_recorded_one_by_one_and_what_they_keep_is_held(flux: Any) -> None:
    device, flux.tokenizer_2 = programs.device(), flux.tokenizer
    plain, first, pyramid = (
        recorded(flux, *(Setting("step_cache", value, "call") for value in values))
        for values in ((), (VALUES[0],), (VALUES[1],))
    )

    def attentions(program: Program) -> int:
        return sum(isinstance(program.kernels[run], Attention) for run in runs(program, program.course))

    def decoding(program: Program) -> int:
        (phase,) = (p for p in Cost(device).phases(resident(program)) if p.name == "vae.decode")
        return phase.peak.total

    assert attentions(first) == attentions(plain), "every block is computed"
    assert attentions(pyramid) < attentions(plain), "what is left out does not run"
    assert min(decoding(first), decoding(pyramid)) > decoding(plain), "caches are there until the call ends"
    again = recorded(flux)
    assert again.kernels == plain.kernels, "nothing stays on the ghost"


def runs(program: Program, recording: int) -> Iterator[int]:
    """Kernels in order, bodies written out."""
    for event in program.body(recording):
        if isinstance(event, Call):
            yield from runs(program, event.recording)
        elif isinstance(event, Run):
            yield event.kernel
