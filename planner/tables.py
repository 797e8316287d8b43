"""Tables: cards and shipped pipelines, for a terminal of any width and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from planner import profiles
from planner.cards import catalogue
from planner.device import Device
from planner.explain import rate
from planner.profiles import PipelineProfile
from planner.program import ITEM_SIZE
from planner.units import format_bytes

SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
WIDE, NARROW = 100, 80
"""Columns from which a hub id needs no second line, and below which sizes and dtypes are left out."""


def devices_table(devices: Iterable[Device]) -> Table:
    """The cards of a machine."""
    table = _table(("card", ""), ("memory", "r"), ("free", "r"), ("capability", "r"), fold="card")
    for place, device in enumerate(devices):
        link = f"PCIe {device.pcie[0]}.0, {device.pcie[1]} lanes" if all(device.pcie) else ""
        more = ", ".join(filter(None, (link, "MIG slice" * device.mig, f"driver {device.driver}")))
        table.add_row(
            Text(f"{place}: {device.name}\n   {device.uuid}\n   {more}"),
            format_bytes(device.total),
            format_bytes(device.free),
            _capability(device),
        )
    return table


def cards_table() -> Table:
    """The cards that can be planned for by name."""
    table = _table(("--gpu", ""), ("memory", "r"), ("capability", "r"), ("bandwidth", "r"), ("half precision", "r"))
    for known in catalogue():
        device = known.device
        half = f"{device.half_rate / 1e12:.3g} TFLOP/s"
        table.add_row(known.slug, format_bytes(device.total), _capability(device), rate(device.bandwidth), half)
    return table


def cards_json() -> list[dict[str, Any]]:
    """The same as plain values."""
    return [{"slug": known.slug, "label": known.name, **asdict(known.device)} for known in catalogue()]


def pipelines_table(width: int) -> Table:
    """The shipped pipelines by family, on a terminal of `width` columns."""
    figures = (("size", ""), ("dtype", "")) if width >= NARROW else ()
    table = _table(("name", ""), *figures, ("weights", "r"), ("hub id", ""), fold="hub id")
    for family, members in groupby(_by_family(), key=lambda profile: profile.family):
        table.add_section()
        table.add_row(Text(family, style="bold"))
        for profile in members:
            hub_id = profile.hub_id if width >= WIDE else profile.hub_id.replace("/", "/\n")
            shown = (_size(profile), SHORT[profile.dtype]) if figures else ()
            table.add_row(profile.name, *shown, format_bytes(weights(profile)), Text(hub_id))
    return table


def _by_family() -> list[PipelineProfile]:
    found = map(profiles.find, profiles.names())
    return sorted(found, key=lambda profile: (profile.family.casefold(), profile.name))


def pipelines_json() -> list[dict[str, Any]]:
    """The same as plain values; `weights` in bytes."""
    return [_facts(profile) for profile in _by_family()]


def weights(profile: PipelineProfile) -> int:
    """Bytes of the parameters of all components that are loaded, each in its dtype."""
    return sum(part.parameters * ITEM_SIZE[part.dtype] for part in profile.loaded if part.parameters)


def _facts(profile: PipelineProfile) -> dict[str, Any]:
    plain = ("name", "family", "hub_id", "aliases", "pipeline", "dtype", "license")
    defaults = asdict(profile.defaults)
    request = defaults | {"extra": dict(defaults["extra"])}
    optional = [part.name for part in profile.components if part.optional]
    return {name: getattr(profile, name) for name in plain} | {
        "weights": weights(profile),
        "request": request,
        "optional": optional,
    }


def _size(profile: PipelineProfile) -> str:
    wanted = profile.defaults
    return "×".join(str(figure) for figure in (wanted.width, wanted.height, wanted.frames) if figure)


def _capability(device: Device) -> str:
    major, minor = device.compute_capability
    return f"{major}.{minor}" if major else "–"


def _table(*columns: tuple[str, str], fold: str = "") -> Table:
    """An empty table; the column `fold` gives way on narrow terminals."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, side in columns:
        table.add_column(name, justify="right" if side else "left", no_wrap=name != fold, overflow="fold")
    return table
