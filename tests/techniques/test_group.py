from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planner.errors import ApplyFailed, BadRequest
from planner.group_hooks import Grouping
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.group import ALL, NAMED, ON_DISK, Choice, _remembered, offload, remove_group_offload
from planner.techniques.placement import Placement

from . import tiny

BLOCKS, LEAVES = Grouping(blocks=1), Grouping()


def hooked(module: torch.nn.Module) -> list[str]:
    """Paths of the modules that move weights."""
    registries = ((path, getattr(part, "_diffusers_hook", None)) for path, part in module.named_modules())
    return [path for path, registry in registries if registry and registry.get_hook("group_offloading")]


@pytest.mark.parametrize("grouping", [BLOCKS, Grouping(blocks=4), LEAVES], ids=["block", "four", "leaf"])
def test_exact_during_and_after(pipe: Any, grouping: Grouping) -> None:
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = offload(pipe, grouping, (), "cpu")
    assert all(hooked(part) for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    assert torch.equal(tiny.run(pipe), output)
    assert torch.equal(tiny.run(pipe), output)
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert not any("_diffusers_hook" in vars(part) for part in pipe.vae.modules())
    assert torch.equal(tiny.run(pipe), output)


def test_what_hooks_get_of_a_buffer_is_kept_by_nobody_else() -> None:
    """AnimateDiff's 20 tables of positions stayed on the card when `Module.to` had put others in their place."""
    layer = torch.nn.BatchNorm1d(3)
    own = layer.running_mean
    undo = _remembered([layer])
    copy = weakref.ref(layer.running_mean)
    layer._buffers["running_mean"] = torch.zeros(3)
    assert copy() is None
    undo()
    assert layer.running_mean is own


@pytest.mark.parametrize("grouping", [Grouping(blocks=1, disk=True), Grouping(disk=True)], ids=["block", "leaf"])
def test_from_disk_and_back(pipe: Any, grouping: Grouping, tmp_path: Path) -> None:
    before, output = snapshot(pipe), tiny.run(pipe)
    undo = offload(pipe, grouping, (), "cpu", tmp_path)
    assert len(list(tmp_path.rglob("group_*.safetensors"))) > len(pipe.components) / 2
    assert torch.allclose(tiny.run(pipe), output, atol=1e-4)  # in a file tensors lie less aligned
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)
    assert not list(tmp_path.rglob("group_*"))


def test_tied_weights_are_not_lost_on_disk(wan: Any, tmp_path: Path) -> None:
    assert wan.text_encoder.shared.weight is wan.text_encoder.encoder.embed_tokens.weight
    before, words = snapshot(wan), wan.text_encoder.shared.weight.clone()
    for grouping in (Grouping(disk=True), Grouping(blocks=1, disk=True)):
        offload(wan, grouping, (), "cpu", tmp_path)()
        assert before.difference(snapshot(wan)) == ()
        assert torch.equal(wan.text_encoder.shared.weight, words)


def test_a_full_disk_is_told_before_anything_is_written(
    sd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(sd)
    monkeypatch.setattr("planner.techniques.group.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ApplyFailed, match=r"1\.00 kB are free"):
        Placement(device="cpu", folder=str(tmp_path / "files")).apply(
            sd, Option(technique="placement", value="group_leaf_disk")
        )
    assert before.difference(snapshot(sd)) == ()
    assert not list(tmp_path.glob("files/*"))


@pytest.mark.parametrize("value", [*ON_DISK, *NAMED])
def test_what_is_named_is_applied_and_taken_back(sd: Any, tmp_path: Path, value: str) -> None:
    before, output = snapshot(sd), tiny.run(sd)
    undo = Placement(device="cpu", folder=str(tmp_path / "files")).apply(sd, Option(technique="placement", value=value))
    assert hooked(sd.unet)
    assert bool(list(tmp_path.glob("files/*"))) == ("disk" in value)
    assert torch.allclose(tiny.run(sd), output, atol=1e-4)
    undo()
    assert not list(tmp_path.glob("files/*"))
    assert before.difference(snapshot(sd)) == ()
    assert torch.equal(tiny.run(sd), output)


def test_components_that_stay_get_no_hooks(sd: Any) -> None:
    undo = offload(sd, LEAVES, ("vae",), "cpu")
    assert hooked(sd.unet)
    assert not hooked(sd.vae)
    undo()


def test_no_hook_of_another_is_lost(flux: Any) -> None:
    flux.transformer.enable_layerwise_casting(torch.bfloat16, torch.float32)
    before, output = snapshot(flux), tiny.run(flux)
    offload(flux, LEAVES, (), "cpu")()
    assert before.difference(snapshot(flux)) == ()
    assert torch.equal(tiny.run(flux), output)


def test_a_failure_leaves_no_trace(sd: Any) -> None:
    sd.vae._supports_group_offloading = False
    before = snapshot(sd)
    with pytest.raises(ValueError, match="does not support group offloading"):
        offload(sd, LEAVES, (), "cpu")
    assert before.difference(snapshot(sd)) == ()
    with pytest.raises(ApplyFailed, match="'movq'"):
        offload(sd, LEAVES, ("movq",), "cpu")
    assert before.difference(snapshot(sd)) == ()


@pytest.mark.parametrize("value", [*ALL, "group_leaf-without-vae", "group_block_stream-without-vae+unet"])
def test_values_survive_a_plan(value: str) -> None:
    assert Choice.of(value).value == value


@pytest.mark.parametrize("value", ["resident", "group_leaves", "group_leaf-without-", "group_leaf-without-vae+"])
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(BadRequest, match="group_leaf_stream"):
        Choice.of(value)


def test_the_code_says_what_stays() -> None:
    (call,) = Choice.of("group_block_stream-without-vae").calls
    assert call == (
        'pipe.enable_group_offload(torch.device("cuda"), offload_type="block_level", num_blocks_per_group=1, '
        'use_stream=True, exclude_modules=["vae"])'
    )
    assert "low_cpu_mem_usage=True" in Choice.of("group_leaf_stream_low_cpu_mem").calls[0]
    assert "record_stream=True" in Choice.of("group_leaf_stream_record").calls[0]
    assert Choice.of("group_leaf_disk").calls[1] == 'onto_disk(pipe, "group_leaf_disk", "offload")'


def test_group_offload_of_others_is_named_and_taken_off(pipe: Any) -> None:
    before, output = snapshot(pipe), tiny.run(pipe)
    pipe.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(ApplyFailed, match=r"call planner.techniques.group.remove_group_offload\(pipe\) first") as told:
        Placement(device="cpu").apply(pipe, Option(technique="placement", value="resident"))
    assert "remove_all_hooks" not in str(told.value)
    remove_group_offload(pipe)
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe), output)
