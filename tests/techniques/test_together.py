"""Techniques on one pipeline, applied in order and taken back in reverse: nothing of them stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.snapshot import snapshot
from planner.techniques.attention import AttentionBackend
from planner.techniques.base import Option, Technique
from planner.techniques.channels_last import ChannelsLast
from planner.techniques.live import in_reverse
from planner.techniques.placement import Placement
from planner.techniques.precision import Precision
from planner.techniques.split import Split
from planner.techniques.tracing import Tracing
from planner.techniques.vae_slicing import VaeSlicing
from planner.techniques.vae_tiling import VaeTiling

from . import tiny

Choice = tuple[Technique, str | int]
HALF: Choice = (Precision(), "bfloat16")
UNET_LAST: Choice = (ChannelsLast("denoiser"), "unet")
VAE_LAST: Choice = (ChannelsLast("autoencoder"), "vae")
MATH: Choice = (AttentionBackend(), "math")
SLICED: Choice = (AttentionBackend(), "sliced")
ONE_BY_ONE: Choice = (VaeSlicing(), "")
TILED: Choice = (VaeTiling(), 64)
RESIDENT: Choice = (Placement(device="cpu"), "resident")
MODEL: Choice = (Placement(device="cpu"), "model")
SEQUENTIAL: Choice = (Placement(device="cpu"), "sequential")
GROUPS: Choice = (Placement(device="cpu"), "group_leaf_stream")
JIT: Choice = (Tracing(), "jit")
COMPILE: Choice = (Tracing(backend="eager"), "compile")
TWICE: Choice = (Split(), 2)

EXACT = {
    "sd": [
        (UNET_LAST, VAE_LAST, SLICED, ONE_BY_ONE, MODEL, TWICE),
        (VAE_LAST, MATH, ONE_BY_ONE, SEQUENTIAL),
        (UNET_LAST, RESIDENT, JIT, TWICE),
    ],
    "sdxl": [
        (UNET_LAST, VAE_LAST, MODEL, COMPILE, TWICE),
        (SLICED, SEQUENTIAL, TWICE),
        (UNET_LAST, VAE_LAST, GROUPS, TWICE),
    ],
    "flux": [(VAE_LAST, MATH, ONE_BY_ONE, MODEL, COMPILE, TWICE), (MATH, SEQUENTIAL), (MATH, ONE_BY_ONE, GROUPS)],
    "wan": [(MATH, ONE_BY_ONE, MODEL, COMPILE), (SEQUENTIAL,)],
}
FAITHFUL = {
    "sd": (HALF, UNET_LAST, VAE_LAST, MATH, ONE_BY_ONE, TILED, MODEL, TWICE),
    "sdxl": (HALF, UNET_LAST, VAE_LAST, SLICED, TILED, SEQUENTIAL),
    "flux": (HALF, VAE_LAST, MATH, TILED, SEQUENTIAL, TWICE),
    "wan": (HALF, MATH, TILED, MODEL, COMPILE),
}


def apply(pipe: Any, choices: tuple[Choice, ...]) -> Any:
    return in_reverse([t.apply(pipe, Option(technique=t.name, value=value)) for t, value in choices])


def images(pipe: Any) -> torch.Tensor:
    count = {} if "num_frames" in tiny.arguments(pipe) else {"num_images_per_prompt": 2}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2 if count else 1)]
    return tiny.run(pipe, **count, generator=seeds, height=96, width=96)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "choices"), [(name, one) for name, several in EXACT.items() for one in several])
def test_exact_ones(name: str, choices: tuple[Choice, ...], tmp_path: Any) -> None:
    pipe = tiny.MAKERS[name](tmp_path)
    before, output = snapshot(pipe), images(pipe)
    undo = apply(pipe, choices)
    assert torch.allclose(images(pipe), output, atol=1e-4)
    undo()
    torch.compiler.reset()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(images(pipe), output)


@pytest.mark.parametrize("name", sorted(FAITHFUL))
def test_faithful_ones(name: str, tmp_path: Any) -> None:
    pipe = tiny.MAKERS[name](tmp_path)
    before, output = snapshot(pipe), images(pipe)
    undo = apply(pipe, FAITHFUL[name])
    assert (images(pipe) - output).abs().mean() < 0.1
    undo()
    torch.compiler.reset()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(images(pipe), output)
