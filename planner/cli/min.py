"""`vram-planner min`."""

from __future__ import annotations

import click

from planner.cli import output
from planner.cli.options import CARD, Asked, as_json, asking


@click.command("min")
@asking(*CARD)
@as_json("the plan for it, or the error,")
def command(*, asked: Asked, as_json: bool) -> None:
    """Find the smallest budget that fits.

    It is known to 2 %.  The card's own memory is no limit.  So little leaves room only for the leanest combination:
    `frontier` shows what more memory buys.
    """
    from planner import auto

    with output.working(f"Looking for the smallest budget of {asked.model} …", hidden=as_json) as tell:
        found = auto.smallest(asked.model, **asked.how, tell=tell)
    if as_json:
        output.show_json(found)
        return
    from planner import tables

    output.show(tables.smallest(found))
