"""A plan made by hand, for tests of what is said about plans: SD 1.5 at 4K on an 8 GB card."""

from __future__ import annotations

from planner.cards import card
from planner.plan import PhasePromise, Plan, Promise, Rejection
from planner.request import Budget, Fidelity, Request
from planner.techniques.base import Option

CHANNELS_LAST = Option(
    technique="channels_last_autoencoder", value="vae", calls=("pipe.vae.to(memory_format=torch.channels_last)",)
)
TILING = Option(
    technique="vae_tiling",
    value=512,
    fidelity=Fidelity.FAITHFUL,
    calls=("pipe.vae.enable_tiling()",),
)
STRIDED = Option(
    technique="vae_tiling",
    value=256,
    fidelity=Fidelity.FAITHFUL,
    calls=(
        (
            "pipe.vae.enable_tiling(tile_sample_min_height=256, tile_sample_min_width=256, "
            "tile_sample_stride_height=192, tile_sample_stride_width=192)"
        ),
    ),
)
RESIDENT = Option(technique="placement", value="resident", neutral=True, calls=('pipe.to("cuda")',))
SPLIT = Option(
    technique="split",
    value=2,
    calls=("outputs = [pipe(prompts[i:i + 2], num_images_per_prompt=1) for i in range(0, 4, 2)]",),
)


def phase(name: str, weights: int, activations: int, scratch: int, seconds: float) -> PhasePromise:
    peak = weights + activations + scratch
    return PhasePromise(
        name=name, weights=weights, activations=activations, scratch=scratch, peak=peak, seconds=seconds
    )


def promise(*phases: PhasePromise) -> Promise:
    allocated = max(each.peak for each in phases)
    return Promise(
        phases=phases,
        allocated=allocated,
        reserved=allocated + 700_000_000,
        context=471_859_200,
        host=0,
        seconds=sum(each.seconds for each in phases),
    )


TEXT = phase("text_encoder", 2_132_471_234, 8_519_680, 8_519_680, 0.0124)
UNET = phase("unet", 2_132_471_234, 2_102_345_678, 41_943_040, 193.2)
PLAN = Plan(
    model="sd15",
    pipeline="StableDiffusionPipeline",
    dtype="float16",
    request=Request(height=2224, width=3840, steps=20, guidance=7.5, budget=Budget.parse("8GB")),
    device=card("rtx-3070"),
    budget=8_000_000_000,
    options=(CHANNELS_LAST, TILING, RESIDENT),
    promise=promise(TEXT, UNET, phase("vae.decode", 2_132_471_234, 1_502_345_678, 1_103_456_789, 7.31)),
    baseline=promise(TEXT, UNET, phase("vae.decode", 2_132_471_234, 13_502_345_678, 8_503_456_789, 5.02)),
    baseline_fits=False,
    bound=198.7,
    explored=412,
    rejected=(
        Rejection(what="vae_tiling off", reason="needs 24.6 GB in vae.decode, 16.6 GB over"),
        Rejection(
            what="placement=model",
            reason="fits, but moving 2.13 GB of weights through pageable memory takes 1.07 s longer than keeping them",
        ),
    ),
    notes=("Tiles of 512 pixels blend their seams: compare one image with and without.",),
)
