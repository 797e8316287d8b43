"""Blueprints: real pipelines without bytes; and the stand-in beside a real tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import little
import pytest
import torch
from PIL import Image
from techniques import tiny

from planner import blueprint, profiles
from planner.errors import BadRequest, TraceFailed
from planner.profiles import PipelineProfile
from planner.standin import SeeingStandIn, TokenizerStandIn


def components(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def changed(profile: PipelineProfile, name: str, **changes: Any) -> PipelineProfile:
    """The profile with one component otherwise."""
    parts = tuple(replace(p, **changes) if p.name == name else p for p in profile.components)
    return replace(profile, components=parts)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux1-schnell"])
def test_parameters_are_as_many_as_published_and_take_no_bytes(name: str) -> None:
    profile = profiles.find(name)
    pipe = blueprint.build(profile, None)
    assert type(pipe).__name__ == profile.pipeline
    published = {part.name: part.parameters for part in profile.components if part.parameters and not part.optional}
    counted = {n: sum(p.numel() for p in module.parameters()) for n, module in components(pipe).items()}
    assert counted == published
    for part, module in components(pipe).items():
        assert all(t.is_meta for t in module.parameters()), part
        assert not module.training
        assert all(p.requires_grad for p in module.parameters())  # as loading leaves them


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_have_the_type_that_loading_gives_them(dtype: str) -> None:
    pipe = blueprint.build(profiles.find("sd15"), dtype)
    wanted = getattr(torch, dtype)
    for module in components(pipe).values():
        assert {p.dtype for p in module.parameters()} == {wanted}


@pytest.mark.parametrize(("dtype", "kept"), [("float16", True), ("bfloat16", False)])
def test_t5_keeps_its_last_projections_in_single_precision_beside_float16_alone(dtype: str, kept: bool) -> None:
    profile = profiles.find("flux1-schnell")
    (part,) = (p for p in profile.components if p.name == "text_encoder_2")
    import transformers

    config = {**part.config, "num_layers": 1}
    module = blueprint.module_of(transformers.T5EncoderModel, replace(part, config=config), getattr(torch, dtype))
    single = {name for name, p in module.named_parameters() if p.dtype == torch.float32}
    assert single == ({n for n, _ in module.named_parameters() if ".wo." in n} if kept else set())
    assert module.shared.weight is module.encoder.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "component"), little.PARTS)
def test_tensors_are_as_loading_makes_them(name: str, component: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Tables that are in no file stay in the dtype that the class gives them, and weights require gradients."""
    part = little.part(name, component)
    kind = blueprint.find(part.library, part.kind)
    of_diffusers = issubclass(kind, diffusers.ModelMixin)
    real = kind.from_config(part.config) if of_diffusers else kind(kind.config_class.from_dict(dict(part.config)))
    real.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, **{"torch_dtype" if of_diffusers else "dtype": dtype})
    assert kinds(blueprint.module_of(kind, part, dtype)) == kinds(loaded)


def kinds(module: torch.nn.Module) -> dict[str, tuple[torch.dtype, bool]]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: (tensor.dtype, tensor.requires_grad) for name, tensor in tensors}


def test_the_default_dtype_of_the_process_stays() -> None:
    before = torch.get_default_dtype()
    blueprint.build(profiles.find("sd15"), "float16")
    assert torch.get_default_dtype() is before


def test_tokenizers_are_stand_ins_of_the_real_length_and_optional_parts_are_left_out() -> None:
    pipe = blueprint.build(profiles.find("sd15"), None)
    assert isinstance(pipe.tokenizer, TokenizerStandIn)
    assert pipe.tokenizer.model_max_length == 77
    assert pipe.safety_checker is None
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"


def test_a_class_nobody_has_is_named_with_what_to_do() -> None:
    profile = changed(profiles.find("sd15"), "unet", kind="UNet9DModel")
    with pytest.raises(BadRequest, match=r"diffusers\.UNet9DModel is not in diffusers .* upgrade them"):
        blueprint.build(profile, None)
    with pytest.raises(BadRequest, match="NoPipeline"):
        blueprint.build(replace(profile, pipeline="NoPipeline"), None)


def test_a_configuration_its_class_refuses_is_named() -> None:
    profile = profiles.find("sd15")
    (unet,) = (part for part in profile.components if part.name == "unet")
    bad = changed(profile, "unet", config={**unet.config, "down_block_types": ["NoBlock"] * 4})
    with pytest.raises(BadRequest, match="unet does not make a UNet2DConditionModel"):
        blueprint.build(bad, None)


def test_a_pipeline_that_cannot_be_put_together_says_so() -> None:
    profile = profiles.find("sd15").including("safety_checker")  # and no feature extractor for it
    with pytest.raises(TraceFailed, match="StableDiffusionPipeline cannot be built from sd15"):
        blueprint.build(profile, None)


CALLS: list[dict[str, Any]] = [
    {"padding": "max_length", "truncation": True, "max_length": 16, "return_tensors": "pt"},
    {"padding": "max_length", "truncation": True, "return_tensors": "pt"},
    {"padding": "max_length", "max_length": 8, "truncation": True},
    {"padding": "longest", "return_tensors": "pt"},
    {"padding": True, "truncation": True, "max_length": 4, "return_tensors": "pt"},
    {"truncation": True, "max_length": 4},
    {},
]


@pytest.mark.parametrize("options", CALLS, ids=str)
@pytest.mark.parametrize("text", ["a b c", ["a b c"], ["a", "b c d"], [""]], ids=repr)
def test_the_stand_in_answers_in_the_shapes_of_a_real_tokenizer(
    text: str | list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    """The real one knows letters, and each word is one."""
    real, mine = tiny.tokenizer(tmp_path), TokenizerStandIn(16)
    expected, given = real(text, **options), mine(text, **options)
    assert shape(given.input_ids) == shape(expected.input_ids)
    assert listed(given.attention_mask) == listed(expected.attention_mask)
    assert listed(given["input_ids"]) == listed(given.input_ids)


def listed(rows: Any) -> Any:
    return rows.tolist() if isinstance(rows, torch.Tensor) else rows


def shape(rows: Any) -> Any:
    if isinstance(rows, torch.Tensor):
        return tuple(rows.shape), rows.dtype
    return [shape(row) for row in rows] if rows and isinstance(rows[0], list) else len(rows)


def test_the_stand_in_tokenizes_and_templates() -> None:
    tokenizer = TokenizerStandIn(0)
    assert tokenizer.model_max_length == 512
    assert tokenizer.tokenize("one two") == ["one", "two"]
    assert len(tokenizer.encode("one two")) == 4
    messages = [{"role": "user", "content": [{"type": "text", "text": "one two three"}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.endswith("one two three")
    ids = tokenizer.apply_chat_template([messages, messages], return_tensors="pt")
    assert ids.input_ids.shape == (2, len(text.split()) + 2)
    assert tokenizer.batch_decode([[0], [0]]) == ["", ""]


def test_the_stand_in_pads_on_the_side_it_is_told_to() -> None:
    tokenizer = TokenizerStandIn(8)
    tokenizer.padding_side = "left"
    mask = tokenizer(["a b"], padding="max_length", return_tensors="pt").attention_mask
    assert mask.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_a_class_that_lacks_a_library_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(*_: object, **__: object) -> None:
        raise ImportError("\nKolorsPipeline requires the sentencepiece library but it was not found. Install it: `x`\n")

    monkeypatch.setattr(blueprint.diffusers, "StableDiffusionPipeline", type("Hidden", (), {"__init__": hidden}))
    with pytest.raises(BadRequest, match=r"requires the sentencepiece library but it was not found; install it and"):
        blueprint.build(profiles.find("sd15"), None)


def test_a_tokenizer_stands_for_its_class() -> None:
    import transformers

    standin = TokenizerStandIn(77, transformers.CLIPTokenizer)
    assert isinstance(standin, transformers.CLIPTokenizer)
    assert not isinstance(standin, transformers.T5Tokenizer)
    assert standin("a word", return_tensors="pt").keys() == {"input_ids", "attention_mask"}
    assert "position_ids" in TokenizerStandIn(8, positions=True)(
        ["a", "b c"], padding="max_length", return_tensors="pt"
    )


@pytest.mark.parametrize("patches", [{(384, 384): (28, 28)}, {(512, 352): (26, 36), (1024, 720): (52, 74)}])
def test_pictures_become_tokens_as_qwens_processor_makes_them(
    patches: dict[tuple[int, int], tuple[int, int]],
) -> None:
    """Width and height of pictures, and the rows and columns of patches that `smart_resize` of transformers gives."""
    ids = {"image_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    vision = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_chans": 3}
    standin = SeeingStandIn(0, None, {**ids, "vision_config": vision})
    pictures = [Image.new("RGB", size) for size in patches]
    text = "look: " + "<|vision_start|><|image_pad|><|vision_end|>" * len(patches)
    seen = standin(text=[text], images=pictures, padding=True, return_tensors="pt")
    assert seen["image_grid_thw"].tolist() == [[1, *grid] for grid in patches.values()]
    assert seen["pixel_values"].shape == (sum(rows * columns for rows, columns in patches.values()), 3 * 2 * 14 * 14)
    tokens = [rows * columns // 4 for rows, columns in patches.values()]
    row = seen["input_ids"][0].tolist()
    assert [row.count(n) for n in (5, 6, 7)] == [sum(tokens), len(patches), len(patches)]
    assert len(row) == len(TokenizerStandIn(0).encode(text)) - len(patches) + sum(tokens)
    assert standin(text=["no picture"], padding=True, return_tensors="pt")["input_ids"].shape == (1, 4)
