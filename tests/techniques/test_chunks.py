"""Fewer frames, rows or tokens at a time: decode chunks, runs of frames, forward chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoPipeline
from PIL import Image

from planner.errors import ApplyFailed
from planner.ghost import ghost_of
from planner.program import Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.settings import Settings
from planner.snapshot import snapshot
from planner.techniques.base import Option, Technique
from planner.techniques.decode_chunks import DecodeChunks
from planner.techniques.forward_chunks import ForwardChunks
from planner.techniques.vae_frames import VaeFrames
from planner.techniques.vae_slicing import VaeSlicing
from planner.trace import Tracer

from . import programs, tiny

FRAMES = 5


def video(pipe: Any) -> torch.Tensor:
    """A few frames out of a tiny pipeline."""
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    call["generator"] = torch.Generator().manual_seed(1)
    if hasattr(pipe, "image_encoder"):
        return pipe(Image.new("RGB", (32, 32), "red"), num_frames=FRAMES, **call).frames
    words = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(1, 6, dtype=torch.bool)
    prompt = {"prompt_embeds": words, "prompt_attention_mask": mask, "guidance_scale": 1.0}
    pooled = {"pooled_prompt_embeds": words[:, 0]} if isinstance(pipe, HunyuanVideoPipeline) else {}
    return pipe(num_frames=33, **prompt, **pooled, **call).frames


def decoded(pipe: Any) -> list[tuple[int, ...]]:
    """Shapes of what the decoder is handed during a call."""
    seen: list[tuple[int, ...]] = []
    hook = pipe.vae.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple((*args, *kwargs.values())[0].shape)), with_kwargs=True
    )
    video(pipe)
    hook.remove()
    return seen


def check(pipe: Any, technique: Technique, value: str | int, *, near: float) -> None:
    """Nearly the same while applied, and nothing stays."""
    before, output = snapshot(pipe), video(pipe)
    undo = technique.apply(pipe, Option(technique=technique.name, value=value))
    assert (video(pipe) - output).abs().mean() <= near
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(video(pipe), output)


def test_frames_are_decoded_a_few_at_a_time() -> None:
    pipe = tiny.stable_video()
    assert [shape[0] for shape in decoded(pipe)] == [5]
    undo = DecodeChunks().apply(pipe, Option(technique="decode_chunks", value=2))
    assert [shape[0] for shape in decoded(pipe)] == [2, 2, 1]
    undo()
    assert "decode_latents" not in vars(pipe)
    check(pipe, DecodeChunks(), 2, near=0.2)


@pytest.mark.parametrize(("make", "run"), [(tiny.ltx, 16), (tiny.hunyuan_video, 8)])
def test_a_video_is_decoded_in_runs(make: Callable[[], Any], run: int) -> None:
    pipe = make()
    longest = max(shape[2] for shape in decoded(pipe))
    undo = VaeFrames().apply(pipe, Option(technique="vae_frames", value=run))
    assert max(shape[2] for shape in decoded(pipe)) == 3 < longest
    undo()
    check(pipe, VaeFrames(), run, near=0.2)


def test_a_video_is_decoded_in_runs_of_another_length() -> None:
    pipe = tiny.ltx()
    undo = VaeFrames().apply(pipe, Option(technique="vae_frames", value=32))
    assert (pipe.vae.tile_sample_min_num_frames, pipe.vae.tile_sample_stride_num_frames) == (32, 24)
    undo()


def test_feed_forward_layers_take_frame_by_frame() -> None:
    pipe = tiny.stable_video()
    check(pipe, ForwardChunks(), "", near=1e-4)


def test_feed_forward_layers_of_an_image_take_row_by_row(tmp_path: Path) -> None:
    pipe, rows = tiny.stable_diffusion_3(tmp_path), list[int]()
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = ForwardChunks().apply(pipe, Option(technique="forward_chunks"))
    layer = pipe.transformer.transformer_blocks[0].ff
    hook = layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    assert torch.allclose(tiny.run(pipe), output, atol=1e-5)
    hook.remove()
    assert set(rows) == {1}
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)


def test_none_of_it_where_it_cannot_be(sd: Any) -> None:
    for technique in (DecodeChunks(), VaeFrames(), ForwardChunks()):
        with pytest.raises(ApplyFailed, match="leave"):
            technique.apply(sd, Option(technique=technique.name, value=1))
        bare = programs.program(programs.unet(rows=2), programs.vae(rows=2))
        assert technique.options(bare, programs.device(), Request(frames=33)) == ()


def test_offered_by_frames_and_fidelity() -> None:
    able = frozenset({"autoencoder", "decode_chunks"})

    def values(request: Request, **changes: Any) -> list[tuple[str | int, int]]:
        whole = programs.program(programs.vae(traits=able, **changes))
        return [(o.value, o.fidelity) for o in DecodeChunks().options(whole, programs.device(), request)]

    assert values(Request(), rows=8) == [(4, 0), (2, 0), (1, 0)]
    temporal = {"kind": "AutoencoderKLTemporalDecoder", "rows": 2}
    assert values(Request(), **temporal) == [(1, 1)]
    assert values(Request(fidelity=Fidelity.EXACT), **temporal) == []
    long = programs.program(programs.vae(kind="AutoencoderKLLTXVideo"))
    assert [o.value for o in VaeFrames().options(long, programs.device(), Request(frames=33))] == [16]
    assert [o.value for o in VaeFrames().options(long, programs.device(), Request(frames=97))] == [32, 16]
    assert VaeFrames().options(long, programs.device(), Request(frames=17)) == ()


def traced(pipe: Any, *settings: Setting) -> Program:
    ghost = ghost_of(pipe)
    return Tracer(ghost, Settings(ghost)).trace(
        Request(height=32, width=32, frames=FRAMES, steps=2), Variant(settings=settings)
    )


def test_a_recording_knows_how_many_rows_are_decoded() -> None:
    whole = traced(tiny.stable_video())
    assert whole.component("vae").rows == FRAMES
    assert [o.value for o in DecodeChunks().options(whole, programs.device(), Request())] == [3, 2, 1]
    assert VaeSlicing().options(whole, programs.device(), Request()) == ()
    chunks = traced(tiny.stable_video(), Setting("decode_chunks", 2, "call"))
    assert chunks.component("vae").rows == 2
    assert traced(tiny.stable_video(), Setting("forward_chunks", "", "denoiser")).variant.setting("forward_chunks")
