"""The virtual GPU itself: memory is counted as a driver would, NVML answers, and peaks are those of physical cards."""

from __future__ import annotations

from typing import Any

import little
import pytest
import rig
from rig import GIB, Job, Server

MIB = 2**20


def on_a_card_of_eight(held: int) -> dict[str, Any]:
    import torch

    kept = torch.empty(held, dtype=torch.int8, device="cuda")
    small = torch.empty(1, dtype=torch.int8, device="cuda")
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    free, total = torch.cuda.mem_get_info()
    try:
        torch.empty(8 * held, dtype=torch.int8, device="cuda")
        refused = ""
    except torch.OutOfMemoryError as error:
        refused = str(error)
    del kept, small
    card = [torch.cuda.get_device_name(), torch.cuda.get_device_capability()]
    return {"bytes": [allocated, reserved, free, total], "refused": refused, "card": card}


def test_memory_is_counted_and_ends(vgpu: Server) -> None:
    seen = vgpu.script(on_a_card_of_eight, {"held": GIB}, vram=8 * GIB, cc="8.6", name="a card")
    assert seen["bytes"] == [GIB + 512, GIB + 2 * MIB, 7 * GIB - 2 * MIB, 8 * GIB]
    assert "Tried to allocate 8.00 GiB" in seen["refused"]
    assert seen["card"] == ["a card", [8, 6]]


def through_nvml() -> dict[str, Any]:
    import pynvml
    import torch

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)

    def free() -> list[int]:
        versions = (None, pynvml.nvmlMemory_v2)
        return [pynvml.nvmlDeviceGetMemoryInfo(card, version=version).free for version in versions]

    before = free()
    torch.cuda.mem_get_info()
    with_context = free()
    kept = torch.empty(2**30, dtype=torch.int8, device="cuda")
    return {
        "free": [before, with_context, free()],
        "held": kept.numel(),
        "same": pynvml.nvmlDeviceGetUUID(card) == f"GPU-{torch.cuda.get_device_properties(0).uuid}",
        "processes": pynvml.nvmlDeviceGetComputeRunningProcesses(card),
        "link now": [pynvml.nvmlDeviceGetCurrPcieLinkGeneration(card), pynvml.nvmlDeviceGetCurrPcieLinkWidth(card)],
    }


def test_nvml_sees_others_the_context_and_the_tensors(vgpu: Server) -> None:
    seen = vgpu.script(through_nvml, vram=8 * GIB, others=GIB, context=300 * MIB)
    before = 7 * GIB
    with_context = before - 300 * MIB
    assert seen["free"] == [[before] * 2, [with_context] * 2, [with_context - GIB] * 2]
    assert seen["same"]
    assert seen["processes"] == []
    assert seen["link now"] == [4, 16]


def probed() -> dict[str, Any]:
    from dataclasses import asdict

    import torch

    from planner.probe import probe

    (device,) = probe()
    return {**asdict(device), "woken": torch.cuda.is_initialized()}


def test_the_probe_reads_a_card(vgpu: Server) -> None:
    seen = vgpu.script(probed, **rig.card("rtx-3070"), others=2 * GIB, driver="570.86.10")
    assert (seen["name"], seen["total"], seen["free"]) == ("NVIDIA GeForce RTX 3070", 8 * GIB, 6 * GIB)
    assert (seen["compute_capability"], seen["pcie"], seen["driver"]) == ([8, 6], [4, 16], "570.86.10")
    assert seen["source"] == "NVML; rates of card profile rtx-3070"
    assert not seen["woken"]


def small_values() -> dict[str, Any]:
    import torch
    from inside import smallvalues

    mode = smallvalues.install()
    times = torch.linspace(0, 1, 5, device="cuda")
    mask = times > 0.4
    large = torch.ones(3000, 3000, device="cuda")
    known = {"counted": int(mask.sum()), "chosen": times[mask].tolist(), "rows": large[: len(times)][mask].shape[0]}
    mode.__exit__(None, None, None)
    return known


def test_numbers_python_reads_back_are_true(vgpu: Server) -> None:
    assert vgpu.script(small_values) == {"counted": 3, "chosen": [0.5, 0.75, 1.0], "rows": 3}


def loaded(library: str, kind: str, config: dict[str, Any], dtype: str) -> list[dict[str, str]]:
    """Dtypes of tensors, and whether they require gradients, as the rig makes a component and as files are loaded."""
    import tempfile

    import diffusers
    import torch
    from inside import parts

    found, wanted = parts.find(library, kind), getattr(torch, dtype)
    of_diffusers = issubclass(found, diffusers.ModelMixin)
    real = found.from_config(config) if of_diffusers else found(found.config_class.from_dict(dict(config)))
    with tempfile.TemporaryDirectory() as folder:
        real.save_pretrained(folder)
        real = found.from_pretrained(folder, **{"torch_dtype" if of_diffusers else "dtype": wanted})
    made = parts.build(found, config, wanted)
    both = ((*module.named_parameters(), *module.named_buffers()) for module in (real, made))
    return [{name: f"{tensor.dtype} {tensor.requires_grad}" for name, tensor in tensors} for tensors in both]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "component"), little.PARTS)
def test_tensors_are_as_loading_makes_them(vgpu: Server, name: str, component: str, dtype: str) -> None:
    part = little.part(name, component)
    sent = {"library": part.library, "kind": part.kind, "config": dict(part.config), "dtype": dtype}
    real, made = vgpu.script(loaded, sent)
    assert made == real


def test_a_failing_script_tells_where(vgpu: Server) -> None:
    with pytest.raises(rig.Failed, match=r"line 2(.|\n)*ZeroDivisionError"):
        vgpu.script("x = 1\nx / 0")
    with pytest.raises(rig.Failed, match="over 1 s"):
        vgpu.script("import time\ntime.sleep(5)", limit=1)
    assert vgpu.script("answer = arguments['x'] + 1", {"x": 1}) == 2


@pytest.mark.parametrize(
    ("model", "side", "cc", "published", "within"),
    [
        # alike on RTX 3090, RTX 4090 and A800: siliconflow/onediff@98898c49, onediff_diffusers_extensions, READMEs
        pytest.param("sd15", 512, "8.6", 2.62, 3e-3, id="sd15"),
        pytest.param("sdxl", 1024, "8.6", 10.47, 2e-3, id="sdxl"),
        # H100: sayakpaul/diffusers-torchao@9b9f2383dccb, README
        pytest.param("flux1-dev", 1024, "9.0", 33.851, 1e-4, id="flux1-dev"),
    ],
)
def test_peaks_of_physical_cards(vgpu: Server, model: str, side: int, cc: str, published: float, within: float) -> None:
    seen = vgpu.run({"model": model, "call": {"height": side, "width": side}, "cc": cc})
    assert seen["allocated"] == pytest.approx(published * GIB, rel=within)


def test_what_offloading_leaves_on_the_card(vgpu: Server) -> None:
    sd15: Job = {"model": "sd15", "call": {"height": 512, "width": 512}}
    resident = vgpu.run(sd15)
    by_model = vgpu.run({**sd15, "do": ["model_cpu_offload"]})
    by_layer = vgpu.run({**sd15, "do": ["sequential_cpu_offload"]})
    assert resident["allocated"] > by_model["allocated"] > by_layer["allocated"]
    assert max(by_model["weights"], by_layer["weights"]) < MIB
    assert list(resident["phases"]) == ["text_encoder", "unet", "vae.decode"]
    assert resident["phases"]["vae.decode"]["allocated"] == resident["allocated"]


def test_a_card_too_small(vgpu: Server) -> None:
    call = {"height": 512, "width": 512}
    small = vgpu.run({"model": "sd15", "call": call, "vram": 2 * GIB})
    capped = vgpu.run({"model": "sd15", "call": call, "fraction": 2 / 80})
    for result in (small, capped):
        assert "out of memory" in result["oom"]
        assert result["reserved"] <= 2 * GIB
