from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.cost import Cost
from planner.demands import Demand, chosen
from planner.errors import ApplyFailed, BadRequest
from planner.events import Call, Run
from planner.kernels import Attention
from planner.offload import resident
from planner.program import Program, Setting, Variant
from planner.programs import FromPipe, Programs
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.caches import KINDS, Cache
from planner.techniques.micro_batch import MicroBatch
from planner.techniques.placement import Placement
from planner.techniques.step_cache import StepCache
from planner.techniques.streaming import Streaming
from planner.techniques.tracing import Tracing

from . import programs, tiny

CACHE = StepCache()
VALUES = ("first_block:0.08", "pyramid:2", "pyramid:2/4/6")
CASES = (
    *(("flux", value) for value in (*VALUES, "faster:2", "taylorseer:5", "taylorseer:3/2", "mag:0.06-6")),
    *(("wan", value) for value in VALUES),
    *(("cogvideox", value) for value in ("faster:2/5", "faster:3", "pyramid:2")),
    *((name, "taylorseer_lite:5") for name in ("flux", "wan", "cogvideox")),
)
MAKERS = {**tiny.MAKERS, "cogvideox": tiny.cogvideox}
STEPS = 6


def option(value: str) -> Option:
    return Option(technique="step_cache", value=value)


def marked(module: torch.nn.Module) -> list[str]:
    """Modules on which diffusers' hooks left something; the pipelines themselves do so on the denoiser."""
    names = {"_diffusers_hook", "forward", "_cache_config"}
    return [f"{path}.{name}" for path, part in module.named_modules() for name in sorted(names & vars(part).keys())]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_gone_after(name: str, value: str, tmp_path: Path) -> None:
    pipe = MAKERS[name](tmp_path)
    output = tiny.run(pipe, num_inference_steps=STEPS)
    before, marks = snapshot(pipe), marked(pipe.transformer)
    undo = CACHE.apply(pipe, option(value))
    assert pipe.transformer.is_cache_enabled
    changed = tiny.run(pipe, num_inference_steps=STEPS)
    assert changed.shape == output.shape
    assert torch.equal(tiny.run(pipe, num_inference_steps=STEPS), changed), "a call leaves nothing to the next"
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert marked(pipe.transformer) == marks
    assert not pipe.transformer.is_cache_enabled
    assert torch.equal(tiny.run(pipe, num_inference_steps=STEPS), output)


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


def test_halves_of_other_denoisers_stay(flux: Any) -> None:
    before = snapshot(flux)
    with pytest.raises(ApplyFailed, match="FluxTransformer2DModel does not take it"):
        CACHE.apply(flux, option("faster:2/5"))
    assert before.difference(snapshot(flux)) == ()


def dit(*traits: str, variant: Variant | None = None, rows: int = 4, kind: str = "MochiTransformer3DModel") -> Program:
    component = programs.transformer(traits=programs.DIT | {"rows_apart", *traits}, rows=rows, kind=kind)
    return programs.program(component, variant=variant, transformer=(programs.attention(),))


def asked(*use: str, fidelity: Fidelity = Fidelity.LOSSY) -> Request:
    return Request(use=use, fidelity=fidelity, calls=4)


def test_offered_to_those_who_name_it() -> None:
    able, card = dit("first_block", "pyramid"), programs.device()

    def offered(program: Program, request: Request) -> list[object]:
        return [option.value for option in CACHE.options(program, card, request)]

    assert offered(able, asked("step_cache=first_block:0.12")) == ["first_block:0.12"]
    assert offered(able, asked("step_cache")) == ["first_block:0.05", "pyramid:2"]
    everything = dit(*KINDS, "faster_halves", "once_a_step", rows=2)
    usual = ["first_block:0.05", "pyramid:2", "faster:2/5", "taylorseer:5", "mag:0.06-1"]
    assert offered(everything, asked("step_cache")) == usual, "the lite one has to be named"
    assert offered(everything, asked("step_cache=taylorseer_lite:4/2")) == ["taylorseer_lite:4/2"]
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


STEP = "current_timestep_callback=lambda: pipe.current_timestep"
HALVES = "unconditional_batch_skip_range=5, tensor_format='BCFHW'"


@pytest.mark.parametrize(
    ("value", "config", "given"),
    [
        ("faster:2", "FasterCache", f"spatial_attention_block_skip_range=2, is_guidance_distilled=True, {STEP}"),
        ("faster:2/5", "FasterCache", f"spatial_attention_block_skip_range=2, {HALVES}, {STEP}"),
        ("taylorseer:5", "TaylorSeerCache", "cache_interval=5"),
        ("taylorseer_lite:5/2", "TaylorSeerCache", "cache_interval=5, max_order=2, use_lite_mode=True"),
        ("mag:0.06", "MagCache", "threshold=0.06, num_inference_steps=1, mag_ratios=FLUX_MAG_RATIOS"),
    ],
)
def test_the_plain_code(value: str, config: str, given: str) -> None:
    everything = dit(*KINDS, "faster_halves", "once_a_step", rows=2)
    (option,) = CACHE.options(everything, programs.device(), asked(f"step_cache={value}"))
    first, *ratios, last = option.calls
    assert first == f"from diffusers import {config}Config"
    assert ratios == (["from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS"] if config == "MagCache" else [])
    assert last == f"pipe.transformer.enable_cache({config}Config({given}))"


@pytest.mark.parametrize("value", [*VALUES, "faster:2", "taylorseer:5", "taylorseer_lite:5/2", "mag:0.06-1"])
def test_the_plain_code_does_the_same(value: str, flux: Any) -> None:
    def told() -> dict[str, Any]:
        config = flux.transformer._cache_config
        facts = {name: fact for name, fact in vars(config).items() if not callable(fact)}
        return {name: fact.tolist() if isinstance(fact, torch.Tensor) else fact for name, fact in facts.items()}

    undo = CACHE.apply(flux, option(value))
    ours = told()
    undo()
    (offered,) = CACHE.options(dit(*KINDS, "once_a_step"), programs.device(), asked(f"step_cache={value}"))
    exec("\n".join(offered.calls), {"pipe": flux})
    assert told() == ours


@pytest.mark.parametrize(
    "value",
    [
        *("first_block", "first_block:-1", "first_block:1.5.2", "pyramid:0", "teacache:1", "faster:2/5/6", "faster:0"),
        *("taylorseer:5/9", "taylorseer", "mag:0.06-", "mag:0.06-few", "mag:5/6", "pyramid:2-5"),
    ],
)
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(BadRequest, match=r"6 step caches; write first_block:0\.08, pyramid:2/4/6, .* or mag:0\.06"):
        Cache.of(value)


@pytest.mark.parametrize(("value", "reason"), [("sea", "Cosmos 3"), ("text_kv", "Nucleus-Image"), ("sea:0.2", "noise")])
def test_caches_for_no_pipeline_are_refused_with_the_reason(value: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        Cache.of(value)


@pytest.mark.parametrize(
    ("value", "program", "reason"),
    [
        ("mag:0.06", dit("pyramid"), "diffusers ships those of 1, FLUX.1"),
        ("taylorseer:5", dit("taylorseer_lite"), "taylorseer_lite looks for blocks"),
        ("taylorseer_lite:5", dit("taylorseer"), "1 projection"),
        ("faster:2", dit("faster"), "1 times, which is not once a step"),
        ("faster:2/5", dit("faster", "once_a_step"), "none of the 4 denoisers"),
        ("faster:2/5", dit("faster", "faster_halves", "once_a_step", rows=1), "no guidance"),
        ("pyramid:2", dit(), "which no UNet is"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(value: str, program: Program, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        chosen(
            Demand(technique=CACHE.name, value=value), CACHE, program, programs.device(), asked(f"step_cache={value}")
        )


def test_halves_are_those_of_all_images_of_a_call() -> None:
    able = dit("faster", "faster_halves", "once_a_step", rows=4)
    request = replace(asked("step_cache=faster:2/5"), images=2)
    assert CACHE.options(able, programs.device(), request)
    assert not CACHE.options(able, programs.device(), replace(request, images=4))


def test_what_remembers_is_neither_cut_nor_traced() -> None:
    cached = dit(variant=Variant().under(Setting("step_cache", "pyramid:2", "call")))
    card = programs.device()
    for technique in (MicroBatch(), Tracing()):
        assert technique.options(dit(), card, asked())
        assert not technique.options(cached, card, asked())


def recorded(pipe: Any, *settings: Setting, steps: int = 4) -> Program:
    variant = Variant()
    for setting in settings:
        variant = variant.under(setting)
    return Programs(FromPipe(pipe), Request(height=64, width=64, steps=steps, prompt_tokens=16), None).get(variant)


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


@pytest.mark.parametrize(("name", "value"), [case for case in CASES if "first_block" not in case[1]])
def test_what_is_left_out_is_what_a_run_leaves_out(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, calls, real = MAKERS[name](tmp_path), [0], torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls[0] += 1
        return real(*args, **kwargs)

    def seen() -> int:
        before = calls[0]
        tiny.run(pipe, num_inference_steps=STEPS, height=64, width=64)
        return calls[0] - before

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    plain = seen()
    undo = CACHE.apply(pipe, option(value))
    left_out = plain - seen()
    undo()
    monkeypatch.undo()
    assert left_out > 0
    pipe.tokenizer = pipe.tokenizer_2 = tiny.tokenizer(tmp_path / "words")
    without, under = (
        sum(isinstance(program.kernels[run], Attention) for run in runs(program, program.course))
        for program in (
            recorded(pipe, *settings, steps=STEPS)
            for settings in ((), (Setting("step_cache", value, "call"),))
        )
    )  # fmt: skip
    assert without - under == left_out


@pytest.mark.parametrize(
    ("name", "value", "groups"),
    [
        ("flux", "mag:0.06-4", {"group_leaf", "group_leaf_stream"}),
        ("flux", "taylorseer_lite:5", {"group_leaf", "group_leaf_stream"}),
        ("flux", "taylorseer:5", {"group_block", "group_block_stream", "group_leaf", "group_leaf_stream"}),
        ("wan", "taylorseer_lite:5", set()),
    ],
)
def test_what_a_block_that_is_passed_over_holds_does_not_travel(
    name: str, value: str, groups: set[str], tmp_path: Path
) -> None:
    pipe, card, request = tiny.MAKERS[name](tmp_path), programs.device(), asked()
    pipe.tokenizer = pipe.tokenizer_2 = tiny.tokenizer(tmp_path / "words")
    program = recorded(pipe, Setting("step_cache", value, "call"))
    placements = {str(option.value) for option in Placement(device="cpu").options(program, card, request)}
    assert "model" in placements
    assert {value.partition("-")[0] for value in placements if value.startswith("group")} == groups
    assert any(option.component == "transformer" for option in Streaming().options(program, card, request))


def runs(program: Program, recording: int) -> Iterator[int]:
    """Kernels in order, bodies written out."""
    for event in program.body(recording):
        if isinstance(event, Call):
            yield from runs(program, event.recording)
        elif isinstance(event, Run):
            yield event.kernel
