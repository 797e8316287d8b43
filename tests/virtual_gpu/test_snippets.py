"""The code a plan prints is run as it stands, and takes what the applied plan takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rig import Server, card

from planner import cards, plan
from planner.snippet import code

PROMPT = " ".join(["word"] * 64)
"""As long as the planner takes a prompt to be that is not padded."""
SMALL = {"height": 512, "width": 512, "steps": 2}


def printed(model: str, snippet: str, prompt: str) -> dict[str, Any]:
    """Sent to the virtual GPU: the snippet, with `from_pretrained` answered from the shipped profile."""
    import diffusers
    import torch
    from inside import pipelines, smallvalues

    from planner import profiles

    def loaded(hub_id: str, torch_dtype: object, **without: None) -> Any:
        assert profiles.find(hub_id) == profiles.find(model)
        parts = dict.fromkeys(without, pipelines.LEFT_OUT)
        if isinstance(torch_dtype, dict):
            parts |= {name: str(dtype).partition(".")[2] for name, dtype in torch_dtype.items() if name != "default"}
            torch_dtype = torch_dtype["default"]
        return pipelines.shipped(model, str(torch_dtype).partition(".")[2], parts=parts)

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    getattr(diffusers, profiles.find(model).pipeline).from_pretrained = loaded
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

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    pipe = pipelines.shipped(model)
    Plan.from_json(made).apply(pipe)
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("sd15", {"budget": "8GB", "height": 2224, "width": 3840, "steps": 2}),
        ("sd3-medium", {"budget": "80%", "height": 1024, "width": 1024, "steps": 2}),
        (
            "sd15",
            {
                "use": ["micro_batch=1"],
                "without": ["placement"],
                "budget": "1.6GB",
                "height": 512,
                "width": 512,
                "steps": 2,
            },
        ),
        (
            "sd15",
            {
                "use": ["placement=group_leaf_stream", "layerwise_casting"],
                "budget": "80%",
                "fidelity": "lossy",
                "height": 512,
                "width": 512,
                "steps": 2,
            },
        ),
    ],
)
def test_the_printed_code_does_what_the_plan_does(
    vgpu: Server, tmp_path: Path, model: str, wanted: dict[str, Any]
) -> None:
    made = plan(model, device=cards.card("rtx-3070"), cache=tmp_path, **wanted)
    assert any(not option.neutral for option in made.options)
    assert all(made.option(each.partition("=")[0]) for each in wanted.get("use", ()))
    assert made.option("streaming") or "placement" not in wanted.get("without", ())
    properties = {**card("rtx-3070"), "context": made.promise.context}
    by_hand = vgpu.script(printed, {"model": model, "snippet": code(made), "prompt": PROMPT}, **properties)
    call = {"height": wanted["height"], "width": wanted["width"], "num_inference_steps": 2, "prompt": PROMPT}
    if made.request.guidance is not None:
        call["guidance_scale"] = made.request.guidance
    by_plan = vgpu.script(applied, {"model": model, "made": made.to_json(), "call": call}, **properties)
    assert by_hand["allocated"] == pytest.approx(by_plan, rel=1e-3)
    assert by_hand["cap"] == pytest.approx(made.capacity, rel=1e-6)
