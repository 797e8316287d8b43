"""`vram-planner verify`."""

from __future__ import annotations

import click

from planner.cli import OVER, output
from planner.cli.options import Asked, Sectioned, as_json, asks


@click.command("verify", cls=Sectioned)
@asks
@click.option("--twice/--once", default=True, help="Run once before measuring, so that nothing is made anew in it.")
@as_json("what was promised and measured")
def command(*, asked: Asked, twice: bool, as_json: bool) -> None:
    """Run a planned call and hold it against its promise.

    MODEL is a folder in hub layout with its weights, or a hub id whose files
    are here already.  What is learned makes later plans for this card better.
    """
    import torch

    from planner import auto
    from planner.arguments import call_arguments
    from planner.cli.loading import loaded
    from planner.printed import Verified
    from planner.program import Variant

    with output.working(f"Planning {asked.model} …", hidden=as_json) as tell:
        plan = auto.plan(
            asked.model, device=asked.device, request=asked.request, components=asked.components, tell=tell
        )
    with output.working(f"Running {asked.model} …", hidden=as_json):
        pipe = loaded(asked.model, plan.dtype)
        plan.apply(pipe)
        pipe.set_progress_bar_config(disable=True)
        words = call_arguments(pipe, plan.request, Variant())
        with torch.no_grad():
            if twice:
                pipe(**words)
            verdict = plan.verify(lambda: pipe(**words), pipe)
    if as_json:
        output.show_json(Verified(held=verdict.held, rows=tuple(verdict.rows())))
    else:
        output.show([str(verdict), "Within its budget." if verdict.held else "Over its budget."])
    if not verdict.held:
        click.get_current_context().exit(OVER)
