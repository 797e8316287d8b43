"""`vram-planner calibrate`."""

from __future__ import annotations

import click

from planner.cli import output
from planner.cli.options import as_json


@click.command("calibrate")
@click.option("--card", "place", type=int, default=0, metavar="N", help="Which card of this machine, as CUDA counts.")
@as_json("the figures")
def command(*, place: int, as_json: bool) -> None:
    """Measure a card of this machine, so that plans are timed by it.

    Takes under two minutes and some 2.5 GB of the card, which should have nothing else to do.  Where convolutions take
    more scratch memory than is foreseen, plans count it from then on.  The figures are kept for cards of that name in
    your configuration folder; deleting the file takes them back.
    """
    from planner import calibration
    from planner.calibrate import Bench, calibrate
    from planner.printed import Calibrated
    from planner.probe import probe_one

    device = probe_one(place)
    with output.working(f"Measuring {device.name} …", hidden=as_json):
        made = calibrate(device, Bench(place=f"cuda:{place}"), free=device.free)
    file = calibration.write(made)
    if as_json:
        output.show_json(Calibrated(calibration=made, file=file))
        return
    from planner import tables

    output.show([tables.calibration_table(made), f"Kept in {file}."])
