"""Tasks: which class works from which pictures, held against diffusers itself, and profiles that lend components."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import profiles, tasks
from planner.errors import BadRequest
from planner.request import PICTURES, Request
from planner.sizes import Size
from planner.tasks import CONTROLS, class_for, fitted, joined, kind_of, prepared, turned

FACTS = tasks._facts()
TURNS = [
    (kind, picture, other)
    for kind, facts in FACTS.items()
    for table in (facts, *(inner for inner in facts.values() if isinstance(inner, dict)))
    for picture, other in table.items()
    if picture in PICTURES and isinstance(other, str) and other.endswith("Pipeline")
]
KINDS = sorted(
    {*FACTS, *(other for _, _, other in TURNS), *(profiles.find(name).pipeline for name in profiles.names())}
)


def call_of(kind: str) -> Any:
    return inspect.signature(getattr(diffusers, kind).__call__).parameters


def made_of(kind: str) -> dict[str, bool]:
    """Arguments of the class, and whether each may be left out."""
    signature = inspect.signature(getattr(diffusers, kind).__init__).parameters.values()
    return {p.name: p.default is not p.empty for p in signature if p.name not in ("self", "args", "kwargs")}


@pytest.mark.parametrize(("kind", "picture", "other"), TURNS)
def test_a_class_for_a_picture_takes_it_and_is_made_of_the_same_components(kind: str, picture: str, other: str) -> None:
    assert kind_of(other).argument(picture) in call_of(other)
    missing = {name for name, spare in made_of(other).items() if not spare} - set(made_of(kind))
    assert missing <= set(CONTROLS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_of_a_class_is_so(kind: str) -> None:
    call, known = call_of(kind), kind_of(kind)
    names = ("prompt", "height", "width")
    assert {name for name in names if name not in call} == known.lacks
    assert {known.argument(picture) for picture in known.needs} <= set(call)
    first = list(call)[1]
    assert known.first == first or known.needs or first in ("image_embeds", "image_embeddings", "conditions")


@given(st.sets(st.sampled_from(sorted(PICTURES))), st.sampled_from(KINDS))
def test_turning_again_changes_nothing(asked: set[str], kind: str) -> None:
    turned_once = class_for(kind, asked, {})
    assert hasattr(diffusers, turned_once)
    assert class_for(turned_once, asked, {}) == turned_once


@pytest.mark.parametrize(
    ("model", "asked", "kind"),
    [
        ("sdxl", {}, "StableDiffusionXLPipeline"),
        ("sdxl", {"image": True}, "StableDiffusionXLImg2ImgPipeline"),
        ("sdxl", {"mask": True}, "StableDiffusionXLInpaintPipeline"),
        ("sdxl", {"mask": True, "image": True}, "StableDiffusionXLInpaintPipeline"),
        ("sdxl", {"control": True}, "StableDiffusionXLControlNetPipeline"),
        ("sdxl", {"control": True, "image": True}, "StableDiffusionXLControlNetImg2ImgPipeline"),
        ("sdxl", {"control": True, "mask": True}, "StableDiffusionXLControlNetInpaintPipeline"),
        ("sdxl-controlnet", {"image": True}, "StableDiffusionXLControlNetImg2ImgPipeline"),
        ("sdxl-refiner", {"mask": True}, "StableDiffusionXLInpaintPipeline"),
        ("flux1-dev", {"image": True}, "FluxImg2ImgPipeline"),
        ("qwen-image-edit", {"image": True}, "QwenImageEditPipeline"),
        ("wan2.2-ti2v-5b", {"image": True}, "WanImageToVideoPipeline"),
        ("wan2.1-t2v-1.3b", {"image": True}, "WanPipeline"),
        ("wan2.1-t2v-1.3b", {"video": True}, "WanVideoToVideoPipeline"),
    ],
)
def test_the_same_profile_gives_the_pipeline_that_takes_the_pictures(
    model: str, asked: dict[str, Any], kind: str
) -> None:
    assert turned(profiles.find(model), Request(**asked)).pipeline == kind


def test_pictures_that_a_class_needs_are_part_of_the_request() -> None:
    assert fitted(Request(), "StableVideoDiffusionPipeline").image == (Size(),)
    masked = fitted(Request(), "FluxInpaintPipeline")
    assert (masked.image, masked.mask, masked.control) == ((Size(),), (Size(),), ())
    assert fitted(Request(), "StableDiffusionXLPipeline") == Request()


def test_a_control_image_may_be_called_image_where_the_pipeline_calls_it_so() -> None:
    request = fitted(Request(image="64x48"), "StableDiffusionControlNetPipeline")  # type: ignore[arg-type]
    assert (request.image, request.control) == ((), (Size(width=64, height=48),))


@pytest.mark.parametrize(
    ("model", "asked", "size"),
    [
        ("sdxl", {}, (1024, 1024)),
        ("sdxl", {"image": True}, (1024, 1024)),
        ("sdxl", {"image": "640x512"}, (640, 512)),
        ("sdxl", {"image": "640x512", "height": 768, "width": 768}, (640, 512)),  # it makes what it is given
        ("flux1-dev", {"image": "640x512"}, (640, 512)),
        ("flux1-dev", {"image": "640x512", "height": 768, "width": 768}, (768, 768)),
        ("wan2.1-i2v-14b-480p", {"image": "1920x1080"}, (832, 480)),
    ],
)
def test_a_start_image_sets_the_size_where_the_pipeline_lets_it(
    model: str, asked: dict[str, Any], size: tuple[int, int]
) -> None:
    _, request = prepared(profiles.find(model), Request(**asked))
    assert (request.width, request.height) == size


def test_a_profile_lends_what_another_lacks() -> None:
    whole = joined(profiles.find("playground-v2.5"), profiles.find("sdxl-controlnet"))
    assert whole.name == "playground-v2.5 + sdxl-controlnet"
    assert [part.name for part in whole.components if part.name == "controlnet"] == ["controlnet"]
    assert tasks.resolve(whole.name) == whole
    for base, other, words in (
        ("sd15", "sdxl-controlnet", "sdxl-controlnet was made for another denoiser than that of sd15"),
        ("sdxl", "playground-v2.5", "playground-v2.5 has no component that sdxl lacks"),
    ):
        with pytest.raises(BadRequest, match=words):
            joined(profiles.find(base), profiles.find(other))


def test_a_control_image_brings_the_shipped_controlnet_of_that_make() -> None:
    assert turned(profiles.find("sd15"), Request(control=True)).name == "sd15 + sd15-controlnet"  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"sd21 has no ControlNet .* the folder of a whole StableDiffusionControlNetP"):
        turned(profiles.find("sd21"), Request(control=True))  # type: ignore[arg-type]


def test_a_folder_is_turned_like_a_profile(tmp_path: Path) -> None:
    profiles.write_folder("sdxl", tmp_path)
    folder = profiles.read_folder(tmp_path)
    assert turned(folder, Request(image=True)).pipeline == "StableDiffusionXLImg2ImgPipeline"  # type: ignore[arg-type]
    whole = turned(folder, Request(control=True))  # type: ignore[arg-type]
    assert whole.pipeline == "StableDiffusionXLControlNetPipeline"
    assert "controlnet" in {part.name for part in whole.loaded}
    lent = {part.name: part for part in profiles.find("sdxl-controlnet").components}
    assert next(part for part in whole.loaded if part.name == "controlnet") == lent["controlnet"]


def test_a_profile_with_a_base_has_its_components(tmp_path: Path) -> None:
    base, adapted = profiles.find("sd15"), profiles.find("sd15-t2i-adapter")
    assert (adapted.base, adapted.pipeline) == ("sd15", "StableDiffusionAdapterPipeline")
    assert adapted.components[: len(base.components)] == base.components
    assert [part.name for part in adapted.components[len(base.components) :]] == ["adapter"]
    assert adapted.defaults == base.defaults
    profiles.write_folder(adapted, tmp_path)
    assert {part.name for part in profiles.read_folder(tmp_path).loaded} == {part.name for part in adapted.loaded}
