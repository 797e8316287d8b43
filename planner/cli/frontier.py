"""`vram-planner frontier`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli import output
from planner.cli.options import CARD, Asked, Sectioned, as_json, asking


@click.command("frontier", cls=Sectioned)
@asking(*CARD)
@click.option("--down-to", metavar="SIZE", default="2GB", show_default=True, help="The least budget to look at.")
@click.option("--plot", type=output.FILE, help="Draw the frontier, as .svg or .png.")
@as_json("the points")
def command(*, asked: Asked, down_to: str, plot: Path | None, as_json: bool) -> None:
    """Show what each budget buys: time against memory.

    Budgets beyond the card's own memory are shown too, at its speed.
    """
    from planner import auto

    output.check_picture(plot)
    with output.working(f"Following the frontier of {asked.model} …", hidden=as_json) as tell:
        found = auto.frontier(asked.model, down_to=down_to, **asked.how, tell=tell)
    from planner import pictures

    output.draw(plot, lambda: pictures.frontier(found))
    if as_json:
        output.show_json(found)
        return
    from planner import tables

    output.show(tables.frontier(found, output.console().width))
