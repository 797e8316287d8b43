"""`vram-planner compare`."""

from __future__ import annotations

from fnmatch import fnmatchcase

import click

from planner.cli import output
from planner.cli.options import Asked, Sectioned, as_json, asking
from planner.device import Device
from planner.errors import BadRequest

USUAL = (
    *("rtx-3060-12gb", "rtx-3070", "rtx-3080-10gb", "rtx-3090", "rtx-4060-8gb", "rtx-4060-ti-16gb", "rtx-4070"),
    *("rtx-4080", "rtx-4090", "rtx-5070", "rtx-5080", "rtx-5090", "t4", "l4", "a10g", "l40s", "rtx-a6000"),
    *("a100-pcie-40gb", "a100-sxm4-80gb", "h100-sxm"),
)
"""Compared when no card is named: what people have at home and rent."""


@click.command("compare", cls=Sectioned)
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="A card, or several as rtx-40*; may be repeated.")
@click.option(
    "--budget", "budgets", multiple=True, metavar="SIZE", help="May be repeated; all of each card if left out."
)
@click.option("--price", "prices", multiple=True, metavar="[NAME=]PER_HOUR", help="Of every card, or of one.")
@asking()
@as_json("the rows")
def command(
    *, asked: Asked, gpus: tuple[str, ...], budgets: tuple[str, ...], prices: tuple[str, ...], as_json: bool
) -> None:
    """Compare one model over cards and budgets.

    It shows what fits, how fast, and at what price.  Without --gpu the usual
    cards are compared.
    """
    from planner import auto

    cards = _named(gpus)
    with output.working(f"Comparing {asked.model} …", hidden=as_json) as tell:
        rows = auto.compare(
            asked.model, list(cards.values()), budgets=budgets or ("auto",), prices=_prices(prices, cards),
            request=asked.request, components=asked.components, tell=tell,
        )  # fmt: skip
    if as_json:
        output.show_json(rows)
        return
    from planner import tables

    output.show(tables.comparison(rows, output.console().width))


def _named(patterns: tuple[str, ...]) -> dict[str, Device]:
    """Cards by slug, in the order asked for."""
    from planner.cards import card, catalogue

    known = {each.slug: each.device for each in catalogue()}
    found: dict[str, Device] = {}
    for pattern in patterns or tuple(slug for slug in USUAL if slug in known):
        matching = {slug: device for slug, device in known.items() if fnmatchcase(slug, pattern)}
        found |= matching or {pattern: card(pattern)}
    return found


def _prices(given: tuple[str, ...], cards: dict[str, Device]) -> dict[str, float]:
    """Prices per hour by the name of the device."""
    hourly: dict[str, float] = {}
    for text in given:
        name, equals, amount = text.rpartition("=")
        named = _named((name,)) if equals else cards
        try:
            price = float(amount)
        except ValueError:
            raise BadRequest(f"--price {text!r} is no price per hour; write --price 0.35 or rtx-4090=0.35.") from None
        hourly |= {device.name: price for device in named.values()}
    return hourly
