"""Arguments of a call: what a request's pictures become, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from PIL import Image

from planner.arguments import call_arguments
from planner.errors import BadRequest
from planner.program import Variant
from planner.request import Request


def taking(kind: str, *names: str, **parts: Any) -> Any:
    """A pipeline of that class name whose call takes `names`; those that end in `!` have no default."""
    marks = [(name.rstrip("!"), inspect.Parameter.empty if name.endswith("!") else None) for name in names]
    call = lambda self: None  # noqa: E731
    kinds = inspect.Parameter
    ordered = sorted(marks, key=lambda mark: mark[1] is None)
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [kinds("self", kinds.POSITIONAL_OR_KEYWORD)]
        + [kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=default) for name, default in ordered]
    )
    return type(kind, (), {"__call__": call, "_execution_device": torch.device("cpu"), **parts})()


def arguments(pipe: Any, **asked: Any) -> dict[str, Any]:
    return call_arguments(pipe, Request(**asked), Variant())


def described(arguments: dict[str, Any]) -> dict[str, Any]:
    """Pictures as mode and size."""

    def plain(value: Any) -> Any:
        if isinstance(value, Image.Image):
            return value.mode, *value.size
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {name: plain(value) for name, value in arguments.items() if not isinstance(value, (int, float, str))}


RGB = ("RGB", 64, 48)
SIZED = {"height": 48, "width": 64}


@pytest.mark.parametrize(
    ("kind", "names", "asked", "expected"),
    [
        ("APipeline", ("image",), {}, {}),
        ("APipeline", ("image",), {"image": True}, {"image": RGB}),
        ("APipeline", ("image",), {"image": "32x16*2"}, {"image": [("RGB", 32, 16)] * 2}),
        ("APipeline", ("image!",), {}, {"image": RGB}),
        ("AImg2ImgPipeline", ("image",), {}, {"image": RGB}),
        ("AInpaintPipeline", ("image", "mask_image"), {}, {"image": RGB, "mask_image": ("L", 64, 48)}),
        ("AInpaintPipeline", ("image", "mask_image"), {"mask": "8x8"}, {"image": RGB, "mask_image": ("L", 8, 8)}),
        ("AControlNetPipeline", ("image",), {}, {"image": RGB}),
        ("AControlNetPipeline", ("image",), {"control": "8x8"}, {"image": ("RGB", 8, 8)}),
        ("StableDiffusionControlNetPipeline", ("image",), {"image": "8x8"}, {"image": ("RGB", 8, 8)}),
        ("AControlNetPipeline", ("control_image",), {}, {"control_image": RGB}),
        (
            "AControlNetImg2ImgPipeline",
            ("image", "control_image"),
            {"control": "8x8"},
            {"image": RGB, "control_image": ("RGB", 8, 8)},
        ),
        ("AEditPlusPipeline", ("image",), {}, {"image": [RGB]}),
        ("APipeline", ("images",), {"image": True}, {"images": [RGB]}),
        ("APipeline", ("ip_adapter_image",), {"reference": True}, {"ip_adapter_image": RGB}),
        ("AVideoToVideoPipeline", ("video",), {"frames": 3}, {"video": [RGB] * 3}),
        ("APipeline", ("video", "num_frames"), {"video": "64x48*2", "frames": 3}, {"video": [RGB] * 2}),
        ("AVACEPipeline", ("video", "mask", "num_frames"), {"mask": True, "frames": 2}, {"mask": [("L", 64, 48)] * 2}),
        ("AImageToVideoPipeline", ("image", "last_image"), {"last_image": True}, {"image": RGB, "last_image": RGB}),
    ],
)
def test_pictures_become_the_arguments_that_the_pipeline_takes(
    kind: str, names: tuple[str, ...], asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert described(arguments(taking(kind, *names), **SIZED, **asked)) == expected


def test_what_the_pipeline_does_not_take_is_refused_in_words() -> None:
    for asked, words in (
        ({"image": "64x48"}, "^APipeline takes no start image; leave it out"),
        ({"video": True}, "takes no start video"),
        ({"strength": 0.5}, r"takes no strength \(asked: 0.5\)"),
        ({"frames": 5}, "takes no num_frames"),
    ):
        with pytest.raises(BadRequest, match=words):
            arguments(taking("APipeline", "height", "width"), **asked)
    with pytest.raises(BadRequest, match=r"make it a FluxInpaintPipeline with FluxInpaintPipeline\.from_pipe\(pipe\)"):
        arguments(taking("FluxPipeline", "height"), mask=True)


def test_both_a_start_and_a_control_image_need_two_arguments() -> None:
    with pytest.raises(BadRequest, match="takes no control image"):
        arguments(taking("AControlNetPipeline", "image"), image=True, control=True)


def test_several_control_models_get_an_image_each() -> None:
    several = type("Several", (), {"nets": [1, 2]})()
    pipe = taking("AControlNetPipeline", "image", controlnet=several)
    assert described(arguments(pipe, **SIZED)) == {"image": [RGB, RGB]}


def test_pictures_are_as_large_as_the_pipelines_own_result() -> None:
    unet = type("UNet", (), {"config": {"sample_size": 8}})()
    assert arguments(taking("AImg2ImgPipeline", "image", unet=unet, vae_scale_factor=4))["image"].size == (32, 32)
    assert arguments(taking("AImg2ImgPipeline", "image"), width=40, height=24)["image"].size == (40, 24)


def test_embeddings_stand_in_for_a_prior() -> None:
    config = {"encoder_hid_dim": 12, "latent_dim_scale": 10.67}
    unet = type("UNet", (), {"config": config})()
    decoder = taking("APipeline", "image_embeds!", "negative_image_embeds!", unet=unet, dtype=torch.float16)
    made = arguments(decoder, prompts=2)
    assert {name: tuple(value.shape) for name, value in made.items() if isinstance(value, torch.Tensor)} == {
        "image_embeds": (2, 12),
        "negative_image_embeds": (2, 12),
    }
    cascade = taking("APipeline", "image_embeddings!", config=config, dtype=torch.float16)
    assert arguments(cascade, height=1024, width=1536)["image_embeddings"].shape == (1, 16, 24, 36)
    several = taking("APipeline", "image_embeddings!", "num_images_per_prompt", config=config, dtype=torch.float16)
    made = arguments(several, height=1024, width=1024, images=3)
    assert (len(made["image_embeddings"]), made["num_images_per_prompt"]) == (3, 1)
    away = taking("APipeline", "image_embeddings!", dtype=torch.float16, _execution_device=torch.device("meta"))
    assert arguments(away)["image_embeddings"].device.type == "meta"
