"""Programs made by hand, small enough to see through."""

from __future__ import annotations

from planner.device import Device
from planner.events import Call, Run
from planner.kernels import Attention, Kernel
from planner.program import Component, Program, Recording, Variant

SD = frozenset({"denoiser", "processors", "attention_slicing", "conv2d"})
DIT = frozenset({"denoiser", "processors", "attention_backend", "repeated_blocks"})
VAE = frozenset({"autoencoder", "tiling", "slicing", "processors", "conv2d"})


def device(capability: tuple[int, int] = (8, 9)) -> Device:
    return Device(
        name="card", total=8 * 10**9, free=8 * 10**9, compute_capability=capability, multiprocessors=40,
        half_rate=1e14, single_rate=2e13, bandwidth=4e11, l2=2**22, pinned_rate=2e10, pageable_rate=8e9,
        native_bf16=capability >= (8, 0),
    )  # fmt: skip


def unet(**changes: object) -> Component:
    facts = {"name": "unet", "kind": "UNet2DConditionModel", "dtype": "float16", "weights": (100,), "traits": SD}
    return Component(**(facts | changes))  # type: ignore[arg-type]


def transformer(**changes: object) -> Component:
    return unet(**({"name": "transformer", "kind": "FluxTransformer2DModel", "traits": DIT} | changes))


def vae(**changes: object) -> Component:
    facts = {"name": "vae", "kind": "AutoencoderKL", "dtype": "float16", "weights": (10,), "traits": VAE}
    return Component(**(facts | {"tile": 512, "factor": 8} | changes))  # type: ignore[arg-type]


def text_encoder(**changes: object) -> Component:
    facts = {"name": "text_encoder", "kind": "CLIPTextModel", "dtype": "float16", "weights": (20,)}
    return Component(**(facts | {"traits": frozenset({"text_encoder"})} | changes))  # type: ignore[arg-type]


def attention(**changes: object) -> Attention:
    facts = {"dtype": "float16", "batch": 2, "heads": 8, "queries": 64, "keys": 64, "head_size": 40, "value_size": 40}
    return Attention(**(facts | changes))  # type: ignore[arg-type]


def program(*components: Component, variant: Variant | None = None, **runs: tuple[Kernel, ...]) -> Program:
    """A program whose components run the kernels given under their names."""
    kernels = tuple(kernel for given in runs.values() for kernel in given)
    numbers = iter(range(len(kernels)))
    bodies = tuple(
        Recording(name=name, own=(), events=tuple(Run(next(numbers)) for _ in given)) for name, given in runs.items()
    )
    course = Recording(
        name="Pipeline", own=(),
        events=tuple(Call(i, f"{name}.decode" if name == "vae" else name, ()) for i, name in enumerate(runs)),
    )  # fmt: skip
    return Program(
        pipeline="StableDiffusionPipeline", variant=variant or Variant(), components=components,
        chain=("text_encoder", "unet", "transformer", "vae"), excluded=frozenset(), kernels=kernels,
        recordings=(*bodies, course), course=len(bodies),
    )  # fmt: skip
