"""`vram-planner plan`."""

from __future__ import annotations

import click

from planner.cli import output
from planner.cli.options import Asked, as_json, asks


@click.command("plan")
@asks
@as_json("the plan, or the error,")
def command(*, asked: Asked, as_json: bool) -> None:
    """Find the best plan for one call of a pipeline.

    MODEL is a name or hub id that `profiles` lists, or a folder in hub layout.
    The card is the first of this machine unless --gpu or --vram names another.
    """
    from planner import auto

    with output.working(f"Planning {asked.model} …") as tell:
        plan = auto.plan(asked.model, **asked.how, tell=tell)
    if as_json:
        output.show_json(plan.to_json())
        return
    from planner import explain

    output.show(explain.renderables(plan))
