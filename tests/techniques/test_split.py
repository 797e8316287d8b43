from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planner.program import Variant
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.split import Split, pieces, portion

from . import programs, tiny

SPLIT = Split()


def option(calls: int) -> Option:
    return Option(technique="split", value=calls)


def counted(pipe: Any) -> list[int]:
    """Batches the denoiser sees, one entry per call of it."""
    batches: list[int] = []
    denoiser = pipe.unet if "unet" in pipe.components else pipe.transformer
    denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    return batches


@pytest.mark.parametrize("calls", [2, 4])
def test_one_generator_per_image(sdxl: Any, calls: int) -> None:
    def images() -> torch.Tensor:
        return tiny.run(sdxl, **tiny.arguments(sdxl, images=4, seeds=(1, 2, 3, 4)))

    before, output = snapshot(sdxl), images()
    undo = SPLIT.apply(sdxl, option(calls))
    batches = counted(sdxl)
    assert torch.allclose(images(), output, atol=1e-5)
    assert batches == [2 * 4 // calls] * calls * 2
    sdxl.unet._forward_pre_hooks.clear()
    sdxl.unet._forward_pre_hooks_with_kwargs.clear()
    undo()
    assert before.difference(snapshot(sdxl)) == ()
    assert torch.equal(images(), output)


def test_what_a_prior_made_is_shared_out_image_by_image() -> None:
    """As Würstchen's decoder is called: an entry per image, and one image of each."""
    asked: list[tuple[int, int]] = []

    class Decoder:
        def __call__(self, image_embeddings: Any, prompt: Any = None, num_images_per_prompt: int = 1) -> torch.Tensor:
            asked.append((len(image_embeddings), num_images_per_prompt))
            return image_embeddings

    decoder = Decoder()
    undo = SPLIT.apply(decoder, option(2))
    assert torch.equal(decoder(torch.arange(4), prompt="a", num_images_per_prompt=1), torch.arange(4))
    undo()
    assert asked == [(2, 1), (2, 1)]


@pytest.mark.parametrize("calls", [2, 3, 6])
def test_several_prompts(sd: Any, calls: int) -> None:
    def images() -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(6)]
        prompts, avoid = ["a", "b", "c"], ["d", "e", "f"]
        return tiny.run(sd, prompt=prompts, negative_prompt=avoid, num_images_per_prompt=2, generator=seeds)

    output = images()
    undo = SPLIT.apply(sd, option(calls))
    assert torch.allclose(images(), output, atol=1e-5)
    undo()
    assert torch.equal(images(), output)


def test_latents_and_embeddings(flux: Any) -> None:
    noise = torch.randn(2, 4, 16)
    call = {"latents": noise, "num_images_per_prompt": 2, "height": 32, "width": 32}
    output = tiny.run(flux, **call)
    SPLIT.apply(flux, option(2))
    assert torch.allclose(tiny.run(flux, **call), output, atol=1e-5)
    embeddings = torch.randn(2, 6, 16)
    call |= {"prompt_embeds": embeddings, "pooled_prompt_embeds": embeddings[:, 0], "num_images_per_prompt": 1}
    SPLIT.apply(flux, option(2))
    split = tiny.run(flux, **call)
    flux.__class__ = type(flux).__mro__[2]
    assert torch.allclose(split, tiny.run(flux, **call), atol=1e-5)


def test_one_generator_is_drawn_from_in_turn(sd: Any) -> None:
    def images(count: int, generator: torch.Generator) -> torch.Tensor:
        return tiny.run(sd, num_images_per_prompt=count, generator=generator)

    generator = torch.Generator().manual_seed(5)
    first, second = images(1, generator), images(1, generator)
    SPLIT.apply(sd, option(2))
    both = images(2, torch.Generator().manual_seed(5))
    assert torch.equal(both, torch.cat([first, second]))


@pytest.mark.parametrize("kind", ["np", "pt", "pil", "latent"])
def test_every_kind_of_output(sd: Any, kind: str) -> None:
    seeds = lambda: [torch.Generator().manual_seed(seed) for seed in (1, 2)]  # noqa: E731
    call = {"prompt": "a cat", "num_images_per_prompt": 2, "num_inference_steps": 1, "height": 32, "width": 32}
    whole = sd(**call, generator=seeds(), output_type=kind).images
    SPLIT.apply(sd, option(2))
    parts = sd(**call, generator=seeds(), output_type=kind)
    assert type(parts.images) is type(whole)
    assert len(parts.images) == 2
    assert parts.nsfw_content_detected is None
    assert len(sd(**call, generator=seeds(), output_type=kind, return_dict=False)[0]) == 2


def test_videos(wan: Any) -> None:
    def frames() -> torch.Tensor:
        return tiny.run(wan, num_videos_per_prompt=2, generator=[torch.Generator().manual_seed(s) for s in (1, 2)])

    output = frames()
    SPLIT.apply(wan, option(2))
    assert torch.allclose(frames(), output, atol=1e-5)


def test_the_class_looks_the_same(sd: Any) -> None:
    original = type(sd)
    undo = SPLIT.apply(sd, option(2))
    assert isinstance(sd, original)
    assert (type(sd).__name__, type(sd).__qualname__, type(sd).__module__) == (
        original.__name__,
        original.__qualname__,
        original.__module__,
    )
    assert inspect.signature(type(sd).__call__) == inspect.signature(original.__call__)
    assert list(sd.components) == ["vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", *(
        name for name in sd.components if name in ("feature_extractor", "image_encoder")
    )]  # fmt: skip
    undo()
    assert type(sd) is original


counts = st.integers(1, 6)


@given(prompts=counts, images=counts, calls=st.integers(1, 36))
def test_pieces_cover_every_image_once_in_order(prompts: int, images: int, calls: int) -> None:
    everything = list(range(prompts * images))
    taken = [row for piece in pieces(prompts, images, calls) for row in piece.rows(everything)]
    assert taken == everything
    largest = max(len(piece.rows(everything)) for piece in pieces(prompts, images, calls))
    per_call, per_prompt = portion(prompts, images, calls)
    assert largest == per_call * per_prompt


@given(prompts=counts, images=counts, calls=st.integers(1, 36))
def test_the_trace_sees_the_same_portion(prompts: int, images: int, calls: int) -> None:
    from planner.arguments import split as traced

    assert portion(prompts, images, calls) == traced(prompts, images, calls)


def test_offers_divisors() -> None:
    whole = programs.program(programs.unet())
    request = Request(height=512, width=512, images=6)
    assert [o.value for o in SPLIT.options(whole, programs.device(), request)] == [2, 3, 6]
    assert SPLIT.options(whole, programs.device(), Request(height=512, width=512)) == ()
    assert SPLIT.variant(Variant(), option(3)).splits == 3


def test_calls_are_a_plain_loop() -> None:
    whole = programs.program(programs.unet())
    one = SPLIT.options(whole, programs.device(), Request(images=4))[0]
    assert one.calls == ("outputs = [pipe(prompt, num_images_per_prompt=2) for _ in range(2)]",)
    several = SPLIT.options(whole, programs.device(), Request(prompts=4))[0]
    assert several.calls == ("outputs = [pipe(prompts[i:i + 2], num_images_per_prompt=1) for i in range(0, 4, 2)]",)
