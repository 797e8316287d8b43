"""`vram-planner probe`."""

from __future__ import annotations

import click

from planner.cli import output
from planner.cli.options import as_json


@click.command("probe")
@as_json("the cards")
def command(*, as_json: bool) -> None:
    """Show the cards of this machine."""
    from planner.probe import probe

    devices = probe()
    if as_json:
        output.show_json(devices)
        return
    from planner import tables

    output.show([tables.devices_table(devices)])
