"""`vram-planner frontier`."""

from __future__ import annotations

import click

from planner.cli import output
from planner.cli.options import CARD, Asked, as_json, asking


@click.command("frontier")
@asking(*CARD)
@as_json("the points")
def command(*, asked: Asked, as_json: bool) -> None:
    """Show what each budget buys: time against memory.

    Budgets beyond the card's own memory are shown too, at its speed.
    """
    from planner import auto

    with output.working(f"Following the frontier of {asked.model} …") as tell:
        found = auto.frontier(asked.model, **asked.how, tell=tell)
    if as_json:
        output.show_json(found.to_json())
        return
    from planner import tables

    output.show(tables.frontier(found, output.console().width))
