"""Pipeline profiles: the shipped ones build to their recorded size, folders are read without running anything."""

from __future__ import annotations

import importlib
import importlib.util
import json
import struct
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest

from planner import profiles
from planner.errors import BadRequest, UnknownModel

NAMES = profiles.names()
PARTS = [(name, part) for name in NAMES for part in profiles.find(name).components if part.role == "model"]
MODELS = {(p.library, p.kind, json.dumps(p.config, sort_keys=True)): (f"{name}-{p.name}", p) for name, p in PARTS}
"""One component of each distinct configuration."""


def class_of(part):
    names = ("diffusers", "transformers", f"diffusers.pipelines.{part.library}")
    homes = (*names, f"diffusers.pipelines.deprecated.{part.library}")
    for home in homes if part.library not in names else (part.library,):
        if importlib.util.find_spec(home) and hasattr(importlib.import_module(home), part.kind):
            return getattr(importlib.import_module(home), part.kind)
    raise AssertionError(f"{part.library} has no {part.kind}")


def on_meta(part, config):
    import diffusers
    import torch

    cls = class_of(part)
    with torch.device("meta"):
        if issubclass(cls, diffusers.ConfigMixin):
            return cls.from_config(deepcopy(dict(config)))
        return cls(cls.config_class.from_dict(deepcopy(dict(config))))


@pytest.fixture
def folder(tmp_path):
    profiles.write_folder("sd15", tmp_path / "mine")
    return tmp_path / "mine"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_safetensors(path, **sizes):
    """A header that promises `sizes` bytes of each dtype, and no bytes."""
    tensors, start = {}, 0
    for dtype, size in sizes.items():
        tensors[f"weight_{dtype}"] = {"dtype": dtype, "shape": [size], "data_offsets": [start, start + size]}
        start += size
    header = json.dumps({"__metadata__": {"format": "pt"}} | tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


# Shipped profiles


def test_the_shipped_pipelines():
    assert len(NAMES) == 76
    assert len({profiles.find(name).pipeline for name in NAMES}) == 55


@pytest.mark.parametrize("part", [part for _, part in MODELS.values()], ids=[name for name, _ in MODELS.values()])
def test_a_component_has_as_many_parameters_as_recorded(part):
    module = on_meta(part, part.config)
    assert sum(weight.numel() for weight in module.parameters()) == part.parameters > 0


def test_equal_configurations_have_equal_counts():
    for _, part in PARTS:
        _, twin = MODELS[part.library, part.kind, json.dumps(part.config, sort_keys=True)]
        assert part.parameters == twin.parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_differs_from_its_default(name):
    import inspect

    import diffusers

    def plain(value):
        return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

    for part in profiles.find(name).components:
        if part.config and issubclass(class_of(part), diffusers.ConfigMixin):
            parameters = inspect.signature(class_of(part).__init__).parameters
            for key, value in part.config.items():
                needed = (part.kind, key) == ("AutoencoderKLQwenImage", "dim_mult")  # diffusers 0.36 fails without
                assert needed or plain(parameters[key].default) != value, f"{part.name}.{key}"


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_names_real_classes_and_arguments(name):
    import inspect

    import diffusers

    profile = profiles.find(name)
    pipeline = getattr(diffusers, profile.pipeline)
    arguments = inspect.signature(pipeline.__init__).parameters
    assert {part.name for part in profile.components} | set(profile.settings) <= set(arguments)
    for part in profile.components:
        assert class_of(part)
    call = inspect.signature(pipeline.__call__).parameters
    assert {key for key, _ in profile.defaults.extra} <= set(call)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_complete(name):
    profile = profiles.find(name)
    assert (profile.defaults.height is None) == (profile.defaults.width is None)
    assert profile.defaults.steps
    assert profile.family
    assert profile.license
    assert profile.sources
    assert (profile.max_prompt_tokens >= 77) == any("text_encoder" in part.name for part in profile.loaded)
    assert "scheduler" in [part.role for part in profile.loaded]
    for part in profile.components:
        assert (part.dtype in ("float16", "bfloat16", "float32")) == (part.role == "model")
        assert (part.stored in ("float16", "bfloat16", "float32")) == (part.role == "model")


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_takes_its_facts(name):
    for part in profiles.find(name).loaded:
        if part.role == "scheduler" and part.kind != "CosineDPMSolverMultistepScheduler":  # needs torchsde
            scheduler = class_of(part).from_config(dict(part.config))
            assert {key: scheduler.config[key] for key in part.config} == part.config


def test_wan_decodes_in_full_precision():
    dtypes = {part.name: part.dtype for part in profiles.find("wan2.1-t2v-1.3b").components if part.dtype}
    assert dtypes == {"text_encoder": "bfloat16", "transformer": "bfloat16", "vae": "float32"}


@pytest.mark.parametrize(
    ("spoken", "name"),
    [
        ("sd15", "sd15"),
        ("SDXL", "sdxl"),
        ("sdxl-base", "sdxl"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("runwayml/stable-diffusion-v1-5", "sd15"),
        ("black-forest-labs/flux.1-DEV", "flux1-dev"),
        ("flux", "flux1-dev"),
        ("wan2.1", "wan2.1-t2v-1.3b"),
        ("Lightricks/LTX-Video", "ltx-video-0.9.0"),
        ("runwayml/stable-diffusion-inpainting", "sd15-inpainting"),
        ("mochi-1", "mochi"),
    ],
)
def test_a_profile_is_found_by_all_its_names(spoken, name):
    assert profiles.find(spoken).name == name


def test_no_two_profiles_share_a_name():
    spoken = [each.casefold() for p in map(profiles.find, NAMES) for each in (p.name, p.hub_id, *p.aliases)]
    assert len(spoken) == len(set(spoken))


def test_an_unknown_name_gets_the_closest_and_the_list():
    with pytest.raises(UnknownModel, match=r"closest are sdxl.*`vram-planner profiles` lists all"):
        profiles.find("sdlx")
    with pytest.raises(UnknownModel, match=r"No pipeline 'zzzzzz': `vram-planner profiles`"):
        profiles.find("zzzzzz")


def test_an_optional_component_is_loaded_when_asked_for():
    profile = profiles.find("sd15")
    assert "safety_checker" not in [part.name for part in profile.loaded]
    fuller = profile.including("safety_checker", "feature_extractor")
    assert {part.name for part in fuller.loaded} - {part.name for part in profile.loaded} == {
        "safety_checker",
        "feature_extractor",
    }
    assert profiles.content_key(fuller) != profiles.content_key(profile)
    with pytest.raises(BadRequest, match="no optional component 'unet', only safety_checker, feature_extractor"):
        profile.including("unet")


def test_profiles_are_read_without_the_libraries():
    code = (
        "import sys; from planner import profiles; profiles.find('flux'); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Folders


@pytest.mark.parametrize("name", NAMES)
def test_a_written_folder_reads_back_the_same(name, tmp_path):
    profile = profiles.find(name)
    profiles.write_folder(name, tmp_path)
    mine = profiles.read_folder(tmp_path)
    for theirs, ours in zip(profile.loaded, mine.loaded, strict=True):
        assert replace(ours, stored=theirs.stored, parameters=theirs.parameters) == theirs
    assert profiles.content_key(mine) == profiles.content_key(profile)
    assert mine.dtype == profile.dtype
    assert profiles.resolve(tmp_path) == profiles.resolve(str(tmp_path)) == mine


def test_a_written_folder_has_no_weights_and_no_vocabulary(folder):
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ]


def test_both_libraries_build_from_a_written_folder(folder):
    for part in profiles.read_folder(folder).loaded:
        if part.role == "model":
            config = json.loads((folder / part.name / "config.json").read_text())
            size = sum(weight.numel() for weight in on_meta(part, config).parameters())
            assert size == next(p.parameters for p in profiles.find("sd15").components if p.name == part.name)


def test_the_dtype_on_disk_is_read_from_the_weights(folder):
    write_safetensors(folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors", F16=10, F32=400)
    write_safetensors(folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors", BF16=500)
    write_safetensors(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", F16=9000)
    write_safetensors(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors", F16=9000)
    stored = {part.name: part.stored for part in profiles.read_folder(folder).components}
    assert stored["unet"] == "bfloat16"
    assert stored["vae"] == "float16"


@pytest.mark.parametrize(
    ("key", "value", "dtype"),
    [("torch_dtype", "bfloat16", "bfloat16"), ("dtype", "torch.float16", "float16"), ("torch_dtype", None, "float32")],
)
def test_without_weights_the_configuration_tells_the_dtype(folder, key, value, dtype):
    (folder / "text_encoder" / "config.json").write_text(json.dumps({key: value}))
    (folder / "vae" / "config.json").write_text("{}")
    stored = {part.name: part.stored for part in profiles.read_folder(folder).components}
    assert stored["text_encoder"] == dtype
    assert stored["vae"] == "float32"


def test_a_tokenizer_says_how_long_a_prompt_may_be(folder):
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 120}')
    assert profiles.read_folder(folder).max_prompt_tokens == 120
    (folder / "tokenizer" / "tokenizer_config.json").write_text(f'{{"model_max_length": {10**30}}}')
    assert profiles.read_folder(folder).max_prompt_tokens == 77


def test_settings_of_the_pipeline_are_kept(folder):
    edit(folder / "model_index.json", requires_safety_checker=False, boundaries=[0.1, 0.9])
    profile = profiles.read_folder(folder)
    assert profile.settings == {"requires_safety_checker": False, "boundaries": [0.1, 0.9]}
    assert profiles.content_key(profile) != profiles.content_key(profiles.find("sd15"))


def test_a_safety_checker_is_optional_in_a_folder_too(tmp_path):
    profiles.write_folder(profiles.find("sd15").including("safety_checker", "feature_extractor"), tmp_path)
    assert [part.name for part in profiles.read_folder(tmp_path).components if part.optional] == [
        "safety_checker",
        "feature_extractor",
    ]


def test_a_folder_without_an_index_is_unknown(tmp_path):
    with pytest.raises(UnknownModel, match=r"holds no model_index.json: name the folder of a whole pipeline"):
        profiles.read_folder(tmp_path)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_broken_files_are_named(folder, file):
    whole = (folder / file).read_text()
    (folder / file).write_text(whole[: len(whole) // 2])
    with pytest.raises(UnknownModel, match=rf"{file} is cut short or no JSON at line \d+: fetch the file again"):
        profiles.read_folder(folder)
    (folder / file).write_text("[1]")
    with pytest.raises(UnknownModel, match="holds a list where an object is due"):
        profiles.read_folder(folder)


def test_a_missing_configuration_is_named(folder):
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(UnknownModel, match=r"unet/config.json cannot be read \(FileNotFoundError\)"):
        profiles.read_folder(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x05", struct.pack("<Q", 2**60), struct.pack("<Q", 9) + b'{"a": 1}', struct.pack("<Q", 2) + b"[]"],
)
def test_broken_weights_are_named(folder, content):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(UnknownModel, match="has no readable safetensors header"):
        profiles.read_folder(folder)


def test_a_link_to_weights_that_were_never_fetched_is_named(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").symlink_to(folder / "nowhere")
    with pytest.raises(UnknownModel, match="fetch the file again"):
        profiles.read_folder(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"_class_name": ["pipeline", "MyPipeline"]}, "_class_name is"),
        ({"unet": ["my_unet", "MyUNet"]}, "unet comes from 'my_unet'"),
        ({"unet": ["../evil", "MyUNet"]}, "unet comes from"),
    ],
)
def test_code_in_the_folder_is_never_run(folder, changes, why):
    edit(folder / "model_index.json", **changes)
    with pytest.raises(BadRequest, match=rf"needs code of its own \({why}.*never run"):
        profiles.read_folder(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"_class_name": None}, "names no pipeline class"), ({"../unet": ["diffusers", "X"]}, "a component called")],
)
def test_a_nonsensical_index_is_refused(folder, changes, why):
    edit(folder / "model_index.json", **changes)
    with pytest.raises(UnknownModel, match=why):
        profiles.read_folder(folder)


def test_a_folder_that_happens_to_be_called_like_a_pipeline_hides_it_only_with_an_index(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flux1-dev").mkdir()
    assert profiles.resolve("flux1-dev") == profiles.find("flux1-dev")
    profiles.write_folder("sd15", tmp_path / "flux1-dev")
    assert profiles.resolve("flux1-dev").pipeline == "StableDiffusionPipeline"
    (tmp_path / "other").mkdir()
    with pytest.raises(UnknownModel, match=r"holds no model_index.json"):
        profiles.resolve("other")


@pytest.mark.parametrize("where", [".", "unet"])
def test_a_script_is_refused_unread(folder, where):
    (folder / where / "pipeline.py").write_text("raise SystemExit('executed')")
    with pytest.raises(BadRequest, match=r"it brings pipeline.py"):
        profiles.read_folder(folder)


def test_an_auto_map_is_refused_unless_diffusers_has_the_class(folder):
    edit(folder / "unet" / "config.json", auto_map={"AutoModel": "x.Y"})
    assert profiles.read_folder(folder)
    edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "x.Y"})
    with pytest.raises(BadRequest, match=r"text_encoder/config.json has an auto_map"):
        profiles.read_folder(folder)


def test_weights_of_8_bits_are_sized_as_they_are_loaded(folder):
    write_safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors", F8_E4M3=900, F32=8)
    assert profiles.read_folder(folder).dtype == "bfloat16"


def test_quantized_folders_are_refused(folder):
    write_safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors", I8=900, F32=8)
    with pytest.raises(BadRequest, match="stores weights as I8"):
        profiles.read_folder(folder)
    edit(folder / "unet" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(BadRequest, match="stored quantized by bitsandbytes, of which only"):
        profiles.read_folder(folder)
