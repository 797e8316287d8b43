from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.program import Variant
from planner.request import Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.vae_slicing import VaeSlicing

from . import programs, tiny

SLICING = VaeSlicing()


def test_exact_during_and_after(sd: Any) -> None:
    before, output = snapshot(sd), tiny.run(sd, num_images_per_prompt=2)
    decoded: list[int] = []
    decoder = sd.vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(len(args[0])))
    undo = SLICING.apply(sd, Option(technique="vae_slicing"))
    sliced = tiny.run(sd, num_images_per_prompt=2)
    decoder.remove()
    assert decoded == [1, 1]
    assert torch.allclose(sliced, output, atol=1e-6)
    undo()
    assert before.difference(snapshot(sd)) == ()
    assert torch.equal(tiny.run(sd, num_images_per_prompt=2), output)


def test_a_flag_set_before_stays_set(sd: Any) -> None:
    sd.vae.enable_slicing()
    SLICING.apply(sd, Option(technique="vae_slicing"))()
    assert sd.vae.use_slicing


@pytest.mark.parametrize(
    ("prompts", "images", "splits", "count"), [(1, 1, 1, 0), (1, 4, 1, 1), (2, 1, 1, 1), (1, 4, 4, 0)]
)
def test_offered_for_several_images(prompts: int, images: int, splits: int, count: int) -> None:
    whole = programs.program(programs.vae(), variant=Variant(splits=splits))
    request = Request(height=512, width=512, prompts=prompts, images=images)
    assert len(SLICING.options(whole, programs.device(), request)) == count


def test_not_offered_by_a_vae_that_cannot() -> None:
    whole = programs.program(programs.vae(traits=frozenset({"autoencoder"})))
    assert SLICING.options(whole, programs.device(), Request(height=512, width=512, images=2)) == ()


def test_variant() -> None:
    assert SLICING.variant(Variant(), Option(technique="vae_slicing")).sliced
