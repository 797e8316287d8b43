"""`vram-planner max`."""

from __future__ import annotations

from typing import get_args

import click

from planner.cli import output
from planner.cli.options import Asked, Sectioned, as_json, asks
from planner.limits import Kind


@click.command("max", cls=Sectioned)
@click.option("--of", "kind", type=click.Choice(get_args(Kind)), default="size", help="What grows; size by default.")
@asks
@as_json("the largest plan, or the error,")
def command(*, asked: Asked, kind: Kind, as_json: bool) -> None:
    """Find the largest size, batch or number of frames that fits.

    The size keeps the shape of --width and --height.  The leanest combination
    decides what fits, so the fastest for a smaller size may be another.
    """
    from planner import auto

    with output.working(f"Looking for the largest {kind} of {asked.model} …", hidden=as_json) as tell:
        found = auto.largest(asked.model, of=kind, **asked.how, tell=tell)
    if as_json:
        output.show_json(found)
        return
    from planner import tables

    output.show(tables.largest(found))
