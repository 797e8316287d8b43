"""`vram-planner profiles`."""

from __future__ import annotations

import click

from planner.cli import output
from planner.cli.options import as_json


@click.command("profiles")
@click.option("--gpus", is_flag=True, help="List the cards instead.")
@as_json("the list")
def command(*, gpus: bool, as_json: bool) -> None:
    """List the pipelines, or the cards, that can be planned by name."""
    from planner import printed, tables

    if as_json:
        output.show_json(printed.cards() if gpus else printed.pipelines())
    else:
        output.show([tables.cards_table()] if gpus else tables.pipelines(output.console().width))
