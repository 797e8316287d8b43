"""Card profiles: the devices that can be planned for without being there.  Facts are in `profiles/gpus/`."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from planner.calibration import calibrated
from planner.device import Device
from planner.errors import UnknownDevice
from planner.profiles import read_toml, shipped
from planner.units import parse_bytes

PINNED = 12e9
"""Bytes/s from pinned host memory over PCIe generation 4 × 16 lanes, as diffusers' streamed offload reaches it:
12.7 GB/s for FLUX.1-dev and 10 GB/s for LTX-Video 13B on an L40S (huggingface/diffusers benchmarks/, group offload)."""
PINNED_LINK = (4, 16)
"""Generation and lanes of that link; a generation doubles the rate of a lane (PCI-SIG)."""
PAGEABLE = 5e9
"""Bytes/s from ordinary host memory: the middle of what sequential offload reaches, 2.9 GB/s for SDXL on an A100
(huggingface/blog simple_sdxl_optimizations) and 10.8 for FLUX.1-dev (huggingface/diffusers#11682).  Hosts differ more
than links do: `vram-planner calibrate` measures this one."""
SAME_SIZE = 1 / 8
"""Share of a card's nominal memory that its driver may report missing: ECC takes 1/16 on a T4, firmware some more."""

_BRAND = re.compile(r"^(nvidia|geforce|tesla|rtx|gtx|amd|radeon|instinct|rx)\b[\s-]*", re.IGNORECASE)
_COMMON = re.compile(r"[\s-]*\b(gpu|generation)$", re.IGNORECASE)
_MEMORY = re.compile(r"[\s-]*\b\d+ ?gb$", re.IGNORECASE)
_TERA = re.compile(r"([\d.]+) TFLOP/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A device and the names it goes by."""

    slug: str
    """Name of its file: `rtx-3070`."""
    name: str
    """As people write it: `RTX 3070`."""
    device: Device
    notes: str = ""


def cards() -> tuple[str, ...]:
    """Slugs of all cards that can be planned for."""
    return tuple(known.slug for known in catalogue())


def card(name: str) -> Device:
    """The card of that slug, name or NVML device name; case, spaces, dashes and brand words do not count.

    What `vram-planner calibrate` measured on such a card of this machine takes the place of published figures.  Raises
    UnknownDevice where no card, or more than one, goes by that name.
    """
    file = shipped() / "gpus" / f"{Path(name).name}.toml"
    if file.stem == name and file.is_file() and "vram" in (facts := read_toml(file)):
        return calibrated(_card(file, facts).device)  # what it calls itself needs no look at the others
    tiers = (({_plain(name)}, _own_names), ({_plain(name)}, _device_names), (_names(name), _short_names))
    found = ([known for known in catalogue() if not names_of(known).isdisjoint(wanted)] for wanted, names_of in tiers)
    named = next(filter(None, found), [])
    if len(named) == 1:
        return calibrated(named[0].device)
    if named:
        raise UnknownDevice(f"{name!r} may be any of {_listed(named)}: name one of them.")
    if any(_plain(name) == _plain(file.stem) for file in _files()):
        raise UnknownDevice(f"{name} shares the machine's memory, so there is none to plan: name a card with its own.")
    raise UnknownDevice(f"No card profile {name!r}{_closest(name)}: `vram-planner profiles --gpus` lists all.")


def nearest(device_name: str, compute_capability: tuple[int, int], total: int) -> tuple[Device, bool]:
    """The card profile that stands in for a device NVML reports, and whether it is that very card.

    Else the nearest by compute capability, then by bytes of memory, then by name.
    """
    same = [
        known.device
        for known in catalogue()
        if _plain(device_name) == _plain(known.device.name) and _size_gap(known.device, total) <= SAME_SIZE
    ]
    if same:
        return min(same, key=lambda device: _size_gap(device, total)), len(same) == 1

    def distance(device: Device) -> tuple[int, float, float]:
        generations = abs(_generation(device.compute_capability) - _generation(compute_capability))
        likeness = difflib.SequenceMatcher(None, _plain(device_name), _plain(device.name)).ratio()
        return generations, abs(math.log(device.total / max(total, 1))), -likeness

    return min((known.device for known in catalogue()), key=distance), False


@cache
def catalogue() -> tuple[Card, ...]:
    """Every card with memory of its own, by slug.  Unified memory is the machine's and no figure of the card."""
    return tuple(_card(file, facts) for file in _files() if "vram" in (facts := read_toml(file)))


def _files() -> list[Path]:
    return sorted((shipped() / "gpus").glob("*.toml"), key=lambda file: file.stem)


def _card(file: Path, facts: dict[str, Any]) -> Card:
    major, _, minor = facts.get("compute_capability", "0.0").partition(".")
    total = parse_bytes(facts["vram"])
    link = (facts["pcie_generation"], facts["pcie_lanes"])
    device = Device(
        name=facts["device_name"],
        total=total,
        free=total,
        compute_capability=(int(major), int(minor)),
        multiprocessors=facts.get("multiprocessors", 0),
        half_rate=_flops(facts["fp16"]),
        single_rate=_flops(facts["fp32"]),
        bandwidth=float(parse_bytes(facts["bandwidth"].removesuffix("/s"))),
        l2=parse_bytes(facts["l2"]),
        pinned_rate=pinned_rate(*link),
        pageable_rate=min(PAGEABLE, pinned_rate(*link)),
        native_bf16=facts["native_bf16"],
        power=float(facts.get("power", "0 W").removesuffix(" W")),
        server=facts.get("server", False),
        pcie=link,
        source=f"card profile {file.stem}",
    )
    return Card(slug=file.stem, name=facts["name"], device=device, notes=facts.get("notes", ""))


def pinned_rate(generation: int, lanes: int) -> float:
    """Bytes/s from pinned host memory over a PCIe link."""
    return PINNED * 2.0 ** (generation - PINNED_LINK[0]) * lanes / PINNED_LINK[1]


def _flops(text: str) -> float:
    match = _TERA.fullmatch(text)
    assert match, f"{text!r} is no rate"
    return float(match[1]) * 1e12


def _generation(compute_capability: tuple[int, int]) -> int:
    major, minor = compute_capability
    return 10 * major + minor


def _size_gap(device: Device, total: int) -> float:
    return abs(device.total - total) / device.total


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _names(name: str) -> set[str]:
    """A name, and what is left of it without brand words before and common words behind."""
    spoken = {name.strip(), _COMMON.sub("", name.strip())}
    for short in tuple(spoken):
        while (shorter := _BRAND.sub("", short)) != short:
            short = shorter  # noqa: PLW2901
            spoken.add(short)
    return {_plain(each) for each in spoken} - {""}


def _own_names(known: Card) -> frozenset[str]:
    return frozenset((_plain(known.slug), _plain(known.name)))


def _device_names(known: Card) -> frozenset[str]:
    """The name NVML reports; a laptop's card is never meant by one that it shares with the desktop's."""
    shared = "Laptop" in known.name and "Laptop" not in known.device.name
    return frozenset(() if shared else (_plain(known.device.name),))


@cache
def _short_names(known: Card) -> frozenset[str]:
    """All names without brand words, with and without the size of the memory."""
    full = {known.name, *((known.device.name,) if _device_names(known) else ())}
    bare = {_MEMORY.sub("", name) for name in full}
    sized = {f"{name} {known.device.total // 2**30}GB" for name in bare}
    return frozenset().union(*map(_names, full | bare | sized))


def _closest(name: str) -> str:
    """Cards that begin alike, or else are spelled alike, as a clause of a message."""
    spoken = {short: known for known in catalogue() for short in _short_names(known)}
    alike = [spoken[short] for short in sorted(spoken) if any(short.startswith(wanted) for wanted in _names(name))]
    matches = alike or [spoken[short] for short in difflib.get_close_matches(_plain(name), spoken, n=4, cutoff=0.6)]
    return f"; closest are {_listed(list(dict.fromkeys(matches))[:4])}" if matches else ""


def _listed(known: list[Card]) -> str:
    return ", ".join(each.slug for each in known)
