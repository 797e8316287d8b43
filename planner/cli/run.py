"""`vram-planner run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from planner.cli import output
from planner.cli.options import Asked, Sectioned, as_json, asks
from planner.errors import BadRequest

WRITTEN = "Image to write, numbered if there are several; a video becomes a .gif."


@click.command("run", cls=Sectioned)
@asks
@click.option("--prompt", default="a lighthouse at dawn", show_default=True, help="What to make.")
@click.option("--seed", type=int, help="For the same result again.")
@click.option("--output", "file", type=output.FILE, default=Path("output.png"), show_default=True, help=WRITTEN)
@as_json("the plan and what the run showed")
def command(*, asked: Asked, prompt: str, seed: int | None, file: Path, as_json: bool) -> None:
    """Plan a call, load the pipeline, apply the plan and generate.

    MODEL is a folder in hub layout with its weights, or a hub id whose files
    are here already.  Without a CUDA card it runs on the CPU: name the card to
    plan for with --gpu or --vram.
    """
    from planner import auto, explain, loading
    from planner.printed import Ran
    from planner.techniques import DEFAULT

    if not file.absolute().parent.is_dir():
        raise BadRequest(f"--output {file} lies in no folder that exists; make {file.parent} first.")
    with output.working(f"Planning {asked.model} …", hidden=as_json) as tell:
        plan = auto.plan(asked.model, **asked.how, tell=tell)
    if not as_json:
        output.show([explain.verdict(plan), explain.switched_on(plan), *plan.notes])
    with output.working(f"Loading {asked.model} …", hidden=as_json):
        output.hide_bars()
        pipe = loading.fetched(asked.model, plan, techniques=DEFAULT, components=asked.how["components"])
        plan.apply(pipe, techniques=loading.kept_nothing(DEFAULT))
    pipe.set_progress_bar_config(disable=as_json or not sys.stderr.isatty(), desc=plan.model)
    with output.silence():
        made, seen = _measured(lambda: pipe(**_words(pipe, plan.request, prompt, seed)))
    files = _written(made, file)
    if as_json:
        output.show_json(Ran(plan=plan, **seen, files=tuple(files)))
        return
    from planner import tables

    output.show(tables.ran(plan, seen, files))


def _words(pipe: Any, request: Any, prompt: str, seed: int | None) -> dict[str, Any]:
    """The arguments of the planned call, with a real prompt."""
    import torch

    from planner.arguments import call_arguments
    from planner.program import Variant

    words = call_arguments(pipe, request, Variant()) | {"output_type": "pil"}
    given = words.get("prompt")
    words["prompt"] = [prompt] * len(given) if isinstance(given, list) else prompt
    return words if seed is None else words | {"generator": torch.Generator("cpu").manual_seed(seed)}


def _measured(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What a call makes, and its seconds and peaks in bytes; peaks of torch are None where there is no card."""
    import torch

    card = torch.cuda.is_available()
    if card:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with torch.no_grad():
        made = call()
    if card:
        torch.cuda.synchronize()
    return made, {
        "seconds": time.perf_counter() - start,
        "allocated": torch.cuda.max_memory_allocated() if card else None,
        "reserved": torch.cuda.max_memory_reserved() if card else None,
    }


def _written(made: Any, file: Path) -> list[Path]:
    """The files of the images, or of the videos as animations."""
    images = getattr(made, "images", None)
    several = images if images is not None else made.frames
    names = [file if len(several) == 1 else file.with_stem(f"{file.stem}-{n}") for n in range(1, len(several) + 1)]
    if images is not None:
        for image, name in zip(images, names, strict=True):
            image.save(name)
        return names
    names = [name.with_suffix(".gif") for name in names]
    for (first, *rest), name in zip(several, names, strict=True):
        first.save(name, save_all=True, append_images=rest, duration=1000 // 16, loop=0)
    return names
