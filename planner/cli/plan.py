"""`vram-planner plan`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli import output
from planner.cli.options import Asked, Sectioned, as_json, asks


@click.command("plan", cls=Sectioned)
@asks
@click.option("--plot", type=output.FILE, help="Draw memory over time, as .svg or .png.")
@click.option("--report", type=output.FILE, help="Write all of it as one HTML page.")
@as_json("the plan, or the error,")
def command(*, asked: Asked, plot: Path | None, report: Path | None, as_json: bool) -> None:
    """Find the best plan for one call of a pipeline.

    MODEL is a name or hub id that `profiles` lists, or a folder in hub layout.
    The card is the first of this machine unless --gpu or --vram names another.
    """
    from planner import auto

    output.check_picture(plot)
    with output.working(f"Planning {asked.model} …", hidden=as_json) as tell:
        if plot or report:
            anatomy = auto.anatomy(asked.model, **asked.how, tell=tell)
            plan = anatomy.plan
            from planner import pictures
            from planner import report as pages

            output.draw(plot, lambda: pictures.memory(plan, anatomy))
            output.write(report, lambda: pages.page(anatomy))
        else:
            plan = auto.plan(asked.model, **asked.how, tell=tell)
    if as_json:
        output.show_json(plan)
        return
    from planner import explain

    output.show(explain.renderables(plan))
