"""`vram-planner verify`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from planner.cli import output
from planner.cli.options import Asked, as_json, asks


@click.command("verify")
@asks
@click.option("--twice/--once", default=True, help="Run once before measuring, so that nothing is made anew in it.")
@as_json("what was promised and measured")
def command(*, asked: Asked, twice: bool, as_json: bool) -> None:
    """Plan a call, run it on this machine's card, and hold it against its promise.

    MODEL is a folder in hub layout with its weights, or a hub id whose files are here already.
    What is learned makes later plans for this card better.
    """
    import torch

    from planner import auto
    from planner.arguments import call_arguments
    from planner.program import Variant

    with output.working(f"Planning {asked.model} …"):
        plan = auto.plan(asked.model, device=asked.device, request=asked.request, components=asked.components)
    with output.working(f"Running {asked.model} …"):
        pipe = _loaded(asked.model, plan.dtype)
        plan.apply(pipe)
        words = call_arguments(pipe, plan.request, Variant())
        with torch.no_grad():
            if twice:
                pipe(**words)
            verdict = plan.verify(lambda: pipe(**words), pipe)
    if as_json:
        output.show_json({"held": verdict.held, "rows": [asdict(row) for row in verdict.rows()]})
        return
    output.show([str(verdict), "Within its budget." if verdict.held else "Over its budget."])


def _loaded(model: str, dtype: str) -> Any:
    """The pipeline with its weights, from a folder or from hub files that are on this machine."""
    import torch
    from diffusers import DiffusionPipeline

    from planner import profiles
    from planner.errors import BadRequest

    profile = profiles.resolve(model)
    try:
        return DiffusionPipeline.from_pretrained(
            profile.hub_id or model, torch_dtype=getattr(torch, dtype), local_files_only=True
        )
    except OSError as error:
        raise BadRequest(
            f"There are no weights of {model} on this machine ({type(error).__name__}); give a folder that has them."
        ) from error
