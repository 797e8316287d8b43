"""`vram-planner explain`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli import output
from planner.cli.options import Asked, Sectioned, as_json, asks


@click.command("explain", cls=Sectioned)
@click.option("--phase", metavar="NAME", help="The peak of this phase, such as vae.decode; by default the highest.")
@asks
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw what each change does, as .svg or .png."
)
@as_json("the census of every phase and the timeline")
def command(*, asked: Asked, phase: str | None, plot: Path | None, as_json: bool) -> None:
    """Show where the memory is: by component, block and operation.

    What is shown is the moment at which the planned call holds most.
    """
    from planner import auto

    output.check_picture(plot)
    with output.working(f"Planning {asked.model} …", hidden=as_json) as tell:
        found = auto.anatomy(asked.model, **asked.how, tell=tell)
    from planner import pictures

    output.draw(plot, lambda: pictures.techniques(found))
    if as_json:
        output.show_json(found)
        return
    from planner import tables

    output.show(tables.anatomy(found, phase, output.console().width))
