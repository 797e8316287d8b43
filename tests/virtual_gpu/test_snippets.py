"""The code a plan prints is run as it stands, and takes what the applied plan takes.

That of `tracing`, whose graphs and compilers need kernels, is run on the host (tests/techniques/test_tracing.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import headers
import pytest
from rig import Server, card

from planner import cards, plan, profiles
from planner.request import PICTURES
from planner.snippet import ARGUMENTS, code

PROMPT = " ".join(["word"] * 64)
"""As long as the planner takes a prompt to be that is not padded."""
SMALL = {"height": 512, "width": 512, "steps": 2}


def printed(model: str, kind: str, pictures: list[str], snippet: str, prompt: str, rounded: bool) -> dict[str, Any]:
    """Sent to the virtual GPU: the snippet, with what it loads made from the shipped profiles."""
    import torch
    from inside import hub, smallvalues

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    hub.in_order()
    hub.stand_in(model, kind, pictures)
    if rounded:
        hub.round_alike()
    with torch.no_grad():
        exec(snippet.replace('"…"', repr(prompt)), {})
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "cap": torch.cuda.get_per_process_memory_fraction() * torch.cuda.get_device_properties(0).total_memory,
    }


def applied(model: str, pictures: list[str], made: dict[str, Any], call: dict[str, Any], rounded: bool) -> int:
    """Sent to the virtual GPU: the same plan applied by the planner."""
    import torch
    from inside import arguments, hub, smallvalues

    from planner import Plan

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    if rounded:
        hub.round_alike()
    pipe = hub.pipeline(model, pictures=pictures)
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
    source: str = ""
    """`folder` where the model is one in hub layout, `gguf` where its transformer is in a file."""
    has: str = ""
    """A technique that the plan has though nobody names it."""


LARGE = "rtx-3090"
CASES = {
    "tiles": Case("sd15", {"budget": "8GB", "height": 2224, "width": 3840, "steps": 2}),
    "offload": Case("sd3-medium", {"budget": "80%", **SMALL, "height": 1024, "width": 1024}),
    "streams": Case("sd15", {"use": ["micro_batch=1"], "without": ["placement"], "budget": "1.6GB", **SMALL}),
    "plain": Case("sd15", {"plain": True, "budget": "1.6GB", **SMALL}),
    "groups": Case(
        "sd15",
        {"use": ["placement=group_leaf_stream", "layerwise_casting"], "budget": "80%", "fidelity": "lossy", **SMALL},
    ),
    "one by itself": Case("kolors", {"plain": True, "budget": "12GB", **SMALL}, LARGE, has="offload"),
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
    "channels last": Case("sd15", {"use": ["channels_last_denoiser", "channels_last_vae"], "budget": "80%", **SMALL}),
    "slices": Case("sd15", {"use": ["vae_slicing"], "images": 2, "budget": "80%", **SMALL}),
    "attention": Case("sd15", {"use": ["attention=math"], "budget": "80%", **SMALL}),
    "segments": Case("sd15", {"use": ["expandable_segments"], "budget": "80%", **SMALL}),
    "on the host": Case("sd15", {"use": ["vae_on_host"], "budget": "80%", "height": 64, "width": 64, "steps": 2}),
    "half precision": Case("sd15", {"use": ["precision"], "budget": "80%", **SMALL}, source="folder"),
    "steps": Case(
        "flux1-dev",
        {"use": ["step_cache=pyramid:2"], "fidelity": "lossy", "budget": "70GB", **SMALL, "steps": 4},
        "a100-sxm4-80gb",
    ),
    "from a file": Case(
        "flux1-dev", {"use": ["placement=model"], "budget": "22GB", **SMALL}, LARGE, needs="gguf", source="gguf"
    ),
    "under a mask": Case(
        "sd15", {"image": True, "mask": True, "strength": 1.0, "use": ["vae_tiling=256"], "budget": "80%", **SMALL}
    ),
    "under control": Case("sd15", {"control": True, "use": ["placement=model"], "budget": "80%", **SMALL}),
}


def of(case: Case, folder: Path) -> tuple[str, list[str]]:
    """What to plan: its name or folder, and components from files."""
    if case.source == "folder":
        profile = profiles.find(case.model)  # without dtypes it is in single precision
        profile = replace(profile, components=tuple(replace(part, dtype="") for part in profile.components))
        profiles.write_folder(profile, folder)
        return str(folder), []
    return case.model, [f"transformer={headers.flux(folder / 'q4.gguf', 'Q4_K')}"] if case.source == "gguf" else []


@pytest.mark.parametrize("name", CASES)
def test_the_printed_code_does_what_the_plan_does(vgpu: Server, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    if case.needs:
        pytest.importorskip(case.needs)
    model, components = of(case, tmp_path)
    device, cache = cards.card(case.card), tmp_path / "cache"
    made = plan(model, device=device, components=components, cache=cache, **case.wanted)
    assert any(not option.neutral for option in made.options)
    assert all(made.option(each.partition("=")[0]) for each in case.wanted.get("use", ()))
    assert not case.has or made.option(case.has)
    assert made.option("streaming") or "placement" not in case.wanted.get("without", ())
    assert "planner" not in code(made) or not made.request.plain
    properties = {**card(case.card), "context": made.promise.context}
    pictures = [name for name in PICTURES if getattr(made.request, name)]
    same = {"model": made.model, "pictures": pictures, "rounded": bool(made.option("quantization"))}
    by_hand = vgpu.script(
        printed, {**same, "kind": made.pipeline, "snippet": code(made), "prompt": PROMPT}, **properties
    )
    call = {name: value for field, name in ARGUMENTS.items() if (value := getattr(made.request, field)) is not None}
    call |= {"prompt": [PROMPT] * made.request.prompts if made.request.prompts > 1 else PROMPT}
    call |= {"num_images_per_prompt": made.request.images} if made.request.images > 1 else {}
    by_plan = vgpu.script(applied, {**same, "made": made.to_json(), "call": call}, **properties)
    assert by_hand["allocated"] == pytest.approx(by_plan, rel=1e-3)
    assert by_hand["cap"] == pytest.approx(made.capacity, rel=1e-6)
