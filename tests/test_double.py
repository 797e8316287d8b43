"""Doubles of live pipelines in whatever state they are: the same code on a copy, and nothing done to the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from techniques import tiny
from test_trace import SMALL, made, phases

import planner
from planner.errors import BadRequest
from planner.ghost import ghost_of
from planner.holding import hold
from planner.offload import resident
from planner.program import Program, Setting, Variant
from planner.settings import Settings
from planner.snapshot import snapshot
from planner.techniques import group
from planner.trace import Tracer

FP8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}


def recorded(pipe: Any, variant: Variant | None = None) -> Program:
    ghost = ghost_of(pipe)
    return resident(Tracer(ghost, Settings(ghost)).trace(SMALL, variant or Variant()))


def bytes_of(program: Program) -> list[tuple[str, int]]:
    return [(name, peak) for name, peak, _ in phases(program)]


def test_weights_kept_by_sequential_offload_are_where_they_belong(tmp_path: Path) -> None:
    pipe = made("flux", tmp_path)
    plain = recorded(pipe)
    from accelerate import cpu_offload

    for name in ("transformer", "text_encoder_2"):
        cpu_offload(getattr(pipe, name), torch.device("cpu"))
    before = snapshot(pipe)
    double = recorded(pipe)
    assert phases(double) == phases(plain)
    assert [sorted(c.weights) for c in double.components] == [sorted(c.weights) for c in plain.components]
    assert before.difference(snapshot(pipe)) == ()


def test_casting_that_is_there_is_recorded_like_the_technique(tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    wanted = recorded(pipe, Variant(settings=(Setting("layerwise_casting", "float8_e4m3fn", "call"),)))
    pipe.unet.enable_layerwise_casting(**FP8)
    before = snapshot(pipe)
    assert bytes_of(recorded(pipe)) == bytes_of(wanted)
    assert before.difference(snapshot(pipe)) == ()


def test_a_copys_hooks_do_not_reach_the_original(tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    pipe.unet.enable_layerwise_casting(**FP8)
    layer = pipe.unet.conv_out
    seen = []
    layer.register_forward_pre_hook(lambda *_: seen.append(layer))
    original = layer._diffusers_hook.get_hook("layerwise_casting").fn_ref.forward
    double = ghost_of(pipe).pipe.unet.conv_out
    assert double._diffusers_hook.get_hook("layerwise_casting").fn_ref.forward.__self__ is double
    assert layer._diffusers_hook.get_hook("layerwise_casting").fn_ref.forward == original


def test_what_cannot_be_doubled_says_what_to_do(tmp_path: Path) -> None:
    pipe = made("sd", tmp_path)
    wrapped = pipe.unet
    pipe.unet = torch.compile(wrapped)
    with pytest.raises(BadRequest, match=r"pipe\.unet is wrapped by torch\.compile.*_orig_mod"):
        ghost_of(pipe)
    pipe.unet = wrapped
    pipe.unet.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(BadRequest, match=r"pipe\.unet is in diffusers' group offload.*remove_group_offload"):
        ghost_of(pipe)
    group.remove_group_offload(pipe)
    assert ghost_of(pipe).pipe.unet is not pipe.unet


def test_a_configured_pipeline_is_not_planned_with_its_plan(tmp_path: Path) -> None:
    pipe, small = made("sd", tmp_path), {"height": 32, "width": 32, "steps": 2}
    plan = planner.auto_configure(pipe, budget="8GB", device=planner.card("rtx-3070"), **small)
    with pytest.raises(BadRequest, match=r"call plan\.revert\(pipe\) first"):
        planner.plan(pipe, budget="8GB", device=planner.card("rtx-3070"), **small)
    plan.revert(pipe)


def test_a_plan_on_shared_components_is_in_the_way(tmp_path: Path) -> None:
    pipe, small = made("sd", tmp_path), {"height": 32, "width": 32, "steps": 2}
    plan = planner.auto_configure(pipe, budget="8GB", device=planner.card("rtx-3070"), **small)
    sharing = type(pipe)(**pipe.components, requires_safety_checker=False)
    for attempt in (planner.plan, planner.auto_configure):
        with pytest.raises(planner.ApplyFailed, match=r"text_encoder and unet.* of this StableDiffusionPipeline"):
            attempt(sharing, budget="8GB", device=planner.card("rtx-3070"), **small)
    plan.revert(pipe)
    state = snapshot(sharing)
    second = planner.auto_configure(sharing, budget="8GB", device=planner.card("rtx-3070"), **small)
    second.revert(sharing)
    assert state.difference(snapshot(sharing)) == ()


def test_held_layers_give_back_the_very_weights(tmp_path: Path) -> None:
    """diffusers would round them down again into new memory; the numbers are the same."""
    pipe = tiny.MAKERS["sd"](tmp_path)
    pipe.unet.enable_layerwise_casting(**FP8)
    rounded = tiny.run(pipe)
    undo = hold(pipe.unet)
    places = {name: weight.data_ptr() for name, weight in pipe.unet.named_parameters()}
    assert torch.equal(tiny.run(pipe), rounded)
    assert {name: weight.data_ptr() for name, weight in pipe.unet.named_parameters()} == places
    undo()
    assert torch.equal(tiny.run(pipe), rounded)
    moved = {name for name, weight in pipe.unet.named_parameters() if weight.data_ptr() != places[name]}
    assert moved


def test_a_call_that_breaks_off_leaves_no_weights_cast(tmp_path: Path) -> None:
    pipe = tiny.MAKERS["sd"](tmp_path)
    pipe.unet.enable_layerwise_casting(**FP8)
    rounded, small = tiny.run(pipe), pipe.unet.conv_in.weight.dtype
    hold(pipe.unet)
    failing = pipe.unet.conv_in.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.run(pipe)
    failing.remove()
    inner = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    real = inner._diffusers_hook.get_hook("layerwise_casting").fn_ref
    forward, real.forward = real.forward, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tiny.run(pipe)
    assert inner.weight.dtype == torch.float32
    real.forward = forward
    assert torch.equal(tiny.run(pipe), rounded)
    assert inner.weight.dtype == small == torch.float8_e4m3fn
