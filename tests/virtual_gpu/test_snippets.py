"""The code a plan prints is run as it stands, and takes what the applied plan takes.

That of `tracing`, whose graphs and compilers need kernels, is run on the host (tests/techniques/test_tracing.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rig import Server, card

from planner import cards, plan
from planner.snippet import ARGUMENTS, code

PROMPT = " ".join(["word"] * 64)
"""As long as the planner takes a prompt to be that is not padded."""
SMALL = {"height": 512, "width": 512, "steps": 2}


def printed(model: str, snippet: str, prompt: str) -> dict[str, Any]:
    """Sent to the virtual GPU: the snippet, with `from_pretrained` answered from the shipped profile."""
    import diffusers
    import torch
    from inside import pipelines, smallvalues
    from PIL import Image

    from planner import profiles
    from planner.techniques import quantization

    def loaded(hub_id: str, torch_dtype: object, **without: None) -> Any:
        assert profiles.find(hub_id) == profiles.find(model)
        parts = dict.fromkeys(without, pipelines.LEFT_OUT)
        if isinstance(torch_dtype, dict):
            parts |= {name: str(dtype).partition(".")[2] for name, dtype in torch_dtype.items() if name != "default"}
            torch_dtype = torch_dtype["default"]
        return pipelines.shipped(model, str(torch_dtype).partition(".")[2], parts=parts)

    moved = diffusers.DiffusionPipeline.to

    def to(pipe: Any, device: str) -> Any:  # in the order in which a plan moves them: diffusers goes by a set
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        return moved(pipe, device)

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    diffusers.DiffusionPipeline.to = to
    getattr(diffusers, profiles.find(model).pipeline).from_pretrained = loaded
    diffusers.utils.load_image = lambda _: Image.new("RGB", (64, 64))
    quantization.is_ghost = lambda _: True  # of each shape one weight is rounded, the others are made like it
    with torch.no_grad():
        exec(snippet.replace('"…"', repr(prompt)), {})
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "cap": torch.cuda.get_per_process_memory_fraction() * torch.cuda.get_device_properties(0).total_memory,
    }


def applied(model: str, made: dict[str, Any], call: dict[str, Any]) -> int:
    """Sent to the virtual GPU: the same plan applied by the planner."""
    import torch
    from inside import arguments, pipelines, smallvalues

    from planner import Plan
    from planner.techniques import quantization

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    quantization.is_ghost = lambda _: True  # as above
    pipe = pipelines.shipped(model)
    Plan.from_json(made).apply(pipe)
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    return torch.cuda.max_memory_allocated()


@dataclass(frozen=True, slots=True)
class Case:
    """What is planned, and on which card."""

    model: str
    wanted: dict[str, Any]
    card: str = "rtx-3070"
    needs: str = ""
    """A library without which there is nothing to run."""


LARGE = "rtx-3090"
CASES = {
    "tiles": Case("sd15", {"budget": "8GB", "height": 2224, "width": 3840, "steps": 2}),
    "offload": Case("sd3-medium", {"budget": "80%", **SMALL, "height": 1024, "width": 1024}),
    "streams": Case("sd15", {"use": ["micro_batch=1"], "without": ["placement"], "budget": "1.6GB", **SMALL}),
    "groups": Case(
        "sd15",
        {"use": ["placement=group_leaf_stream", "layerwise_casting"], "budget": "80%", "fidelity": "lossy", **SMALL},
    ),
    "split images": Case("sd15", {"use": ["split=2"], "images": 4, "budget": "80%", **SMALL}),
    "split prompts": Case("sd15", {"use": ["split=2"], "prompts": 2, "images": 2, "budget": "80%", **SMALL}),
    "decode chunks": Case("animatediff-sd15", {"use": ["decode_chunks=4"], "budget": "80%", "steps": 2}),
    "from an image": Case("svd", {"use": ["decode_chunks=4", "forward_chunks"], "budget": "22GB", "steps": 2}, LARGE),
    "forward chunks": Case("sd3-medium", {"use": ["forward_chunks"], "budget": "80%", **SMALL}),
    "frames": Case(
        "ltx-video-0.9.5",
        {"use": ["vae_frames"], "budget": "22GB", "height": 512, "width": 768, "frames": 33, "steps": 2},
        LARGE,
    ),
    "8 bits": Case(
        "sd3-medium", {"use": ["quantization=float8"], "fidelity": "lossy", "budget": "80%", **SMALL}, needs="torchao"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_printed_code_does_what_the_plan_does(vgpu: Server, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    if case.needs:
        pytest.importorskip(case.needs)
    made = plan(case.model, device=cards.card(case.card), cache=tmp_path, **case.wanted)
    assert any(not option.neutral for option in made.options)
    assert all(made.option(each.partition("=")[0]) for each in case.wanted.get("use", ()))
    assert made.option("streaming") or "placement" not in case.wanted.get("without", ())
    properties = {**card(case.card), "context": made.promise.context}
    by_hand = vgpu.script(printed, {"model": case.model, "snippet": code(made), "prompt": PROMPT}, **properties)
    call = {name: value for field, name in ARGUMENTS.items() if (value := getattr(made.request, field)) is not None}
    call |= {"prompt": [PROMPT] * made.request.prompts if made.request.prompts > 1 else PROMPT}
    call |= {"num_images_per_prompt": made.request.images} if made.request.images > 1 else {}
    by_plan = vgpu.script(applied, {"model": case.model, "made": made.to_json(), "call": call}, **properties)
    assert by_hand["allocated"] == pytest.approx(by_plan, rel=1e-3)
    assert by_hand["cap"] == pytest.approx(made.capacity, rel=1e-6)
