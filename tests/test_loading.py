"""A pipeline is loaded for its plan: what is rounded is rounded as it is read, and the worst moment is known before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from techniques.tiny import PROMPT, stable_diffusion
from transformers import CLIPTextConfig, CLIPTextModel

import planner
from planner import apply, host, loading
from planner.errors import ApplyFailed, BadRequest
from planner.hub import bytes_stored_as
from planner.streamable import held

CALL = {"height": 64, "width": 64, "steps": 2, "budget": "4GB"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    stable_diffusion(place / "letters").save_pretrained(place / "pipeline")
    return place / "pipeline"


@pytest.fixture
def load(folder: Path, tmp_path: Path) -> Any:
    def loaded(**wanted: Any) -> tuple[Any, planner.Plan]:
        return planner.load(folder, device=planner.card("rtx-3070"), cache=tmp_path, **(CALL | wanted))

    return loaded


def bytes_of(module: Any) -> int:
    return sum(tensor.nbytes for tensor in held(module))


def test_planned_loaded_and_configured(load: Any) -> None:
    pipe, plan = load()
    assert type(pipe).__name__ == plan.pipeline == "StableDiffusionPipeline"
    assert apply.is_applied(pipe)
    wanted = plan.option("precision")
    assert pipe.unet.dtype == getattr(torch, str(wanted.value) if wanted else "float32")
    image = pipe(PROMPT, height=64, width=64, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    plan.revert(pipe)
    assert any(note.startswith("Loading took ") and "host RAM" in note for note in plan.notes)


def test_rounded_as_it_is_read(load: Any) -> None:
    pytest.importorskip("torchao")
    plain, _ = load(fidelity="exact")
    pipe, plan = load(fidelity="lossy", use=["quantization=float8"], without=["precision"])
    assert plan.option("quantization") is not None
    assert plan.notes[0].startswith("quantization=float8 cannot be undone where the pipeline is loaded for this plan")
    assert bytes_of(pipe.unet) < bytes_of(plain.unet)
    assert bytes_of(pipe.text_encoder) == bytes_of(plain.text_encoder)
    pipe(PROMPT, height=64, width=64, num_inference_steps=2)
    with pytest.raises(ApplyFailed, match="for good; load the pipeline anew"):
        plan.revert(pipe)


def test_packed_as_it_is_read(folder: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    plain, _ = load(fidelity="exact")
    heard: list[str] = []
    pipe, plan = load(fidelity="lossy", use=["quantization=nf4"], without=["precision"], tell=heard.append)
    assert heard[-1].endswith("; quantization=nf4 cannot be undone")
    assert plan.notes[0].startswith("quantization=nf4 is done while the pipeline is loaded and cannot be undone")
    assert "# quantization=nf4; cannot be undone\n" in plan.explain()
    assert pipe.unet.is_loaded_in_4bit
    assert plan.option("quantization").value == "nf4"
    stays = {phase.name: phase.weights for phase in plan.promise.phases}
    assert bytes_of(pipe.unet) < bytes_of(plain.unet)
    assert any(note.endswith("was read, and nothing of the card.") for note in plan.notes)
    assert "quantization_config=PipelineQuantizationConfig(" in plan.explain().replace("\n", "")
    assert stays
    with pytest.raises(ApplyFailed, match="rounded to 4 bits for good; load the pipeline anew"):
        plan.revert(pipe)


def in_eight_bits(file: Path, **beside: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rewrite a file of weights in fp8, and return them."""
    narrow = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}
    save_file(narrow | beside, file, metadata={"format": "pt"})
    return narrow


def test_a_folder_in_8_bits_is_planned_as_it_is_loaded(tmp_path: Path) -> None:
    stable_diffusion(tmp_path / "letters").save_pretrained(tmp_path / "fp8")
    files = {part: next((tmp_path / "fp8" / part).glob("*.safetensors")) for part in ("unet", "vae", "text_encoder")}
    narrow = {part: in_eight_bits(file) for part, file in files.items()}["unet"]
    wanted = CALL | {"device": planner.card("rtx-3070"), "cache": tmp_path, "without": ["precision"]}
    plan = planner.plan(tmp_path / "fp8", **wanted)
    pipe, _ = planner.load(tmp_path / "fp8", **wanted)
    assert bytes_of(pipe.unet) == 2 * sum(t.nbytes for t in narrow.values())
    assert plan.option("placement").value == "resident"
    assert plan.dtype == "bfloat16"
    weights = pipe.unet.state_dict()
    assert all(torch.equal(weights[name], tensor.to(torch.bfloat16)) for name, tensor in narrow.items())
    in_eight_bits(files["unet"], **{"conv_in.scale_weight": torch.ones(1)})
    with pytest.raises(BadRequest, match="8-bit weights with 1 scales beside them"):
        planner.plan(tmp_path / "fp8", **wanted)


def test_a_host_too_small_is_said_before_anything_is_read(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_host_ram", lambda: 100_000)
    monkeypatch.setattr(loading, "fetched", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(BadRequest, match=r"Loading takes .* of host RAM when text_encoder is read"):
        load(use=["precision"])


def test_missing_weights_and_code_are_refused(load: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="fp16 safetensors weights of 1 or more components"):
        load(variant="fp16")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": ["mine", "Mine"]}))
    with pytest.raises(BadRequest, match="code of its own"):
        planner.load(other, device=planner.card("rtx-3070"), **CALL)
    with pytest.raises(BadRequest, match=r"no weights of sd15 on this machine; .*`hf download stable"):
        loading.folder_of("sd15", planner.profiles.find("sd15"))


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0.1, 1)), min_size=1, max_size=5))
def test_the_worst_moment_of_loading(parts: list[tuple[int, float]]) -> None:
    before = {f"part{n}": size for n, (size, _) in enumerate(parts)}
    after = {f"part{n}": int(size * share) or 1 for n, (size, share) in enumerate(parts)}
    peak, worst = loading.host_peak(before, after, {})
    assert max(*before.values(), sum(after.values())) <= peak <= sum(before.values())
    assert worst in before
    if before == after:
        assert peak == sum(before.values())
    rounded = sum(after[name] for name in before if after[name] != before[name])
    assert loading.host_peak(before, after, before)[0] == rounded
    assert loading.host_peak(before, before, before) == (0, "")


def in_files(module: Any) -> int:
    """Bytes of a component's weights that lie in safetensors files which this process has mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text("utf-8").splitlines() if "safetensors" in line]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    return sum(t.nbytes for t in held(module) if any(low <= t.data_ptr() < high for low, high in spans))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped where")
@pytest.mark.parametrize("kind", [CLIPTextModel, FluxTransformer2DModel])
def test_files_as_they_are_wanted_are_mapped(tmp_path: Path, kind: Any) -> None:
    """In one library's way of loading and the other's."""
    if kind is CLIPTextModel:
        made = kind(CLIPTextConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2))
    else:
        made = kind(num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=128)
    made.to(torch.bfloat16).save_pretrained(tmp_path / "part")
    whole = sum(parameter.nbytes for parameter in made.parameters())
    assert bytes_stored_as("bfloat16", tmp_path / "part") == whole
    assert bytes_stored_as("float16", tmp_path / "part") == 0
    assert in_files(kind.from_pretrained(tmp_path / "part", dtype=torch.bfloat16)) == whole
    assert in_files(kind.from_pretrained(tmp_path / "part", dtype=torch.float32)) == 0
