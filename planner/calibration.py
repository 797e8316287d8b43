"""Calibration: what was measured on a card of this machine, and the file that keeps it.  Measuring is `calibrate`'s."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from planner.device import Device, Excess
from planner.errors import BadRequest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


OWN = ("device_name", "made", "pinned_return_rate", "scratch")
"""What of a calibration is no figure of a device by the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """What convolutions of one kind take of the card beside input, weight and output, against what is foreseen."""

    kind: str
    """Dtype, dimensions of space, kernel and layout."""
    where: str
    """What runs the one that was farthest beyond what is foreseen, or else takes most."""
    foreseen: int
    """Bytes of scratch a plan counts for that one."""
    measured: int
    """Bytes of scratch it took."""
    maps: float
    """Bytes to add for each byte of input and output, so that none of the kind that was measured takes more."""
    weight: float
    """The same for each byte of the weight."""

    @property
    def beyond(self) -> bool:
        """Whether any of the kind took more than is foreseen."""
        return self.maps > 0 or self.weight > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Measured figures of one card in one machine; 0 where something was not measured."""

    device_name: str
    """As NVML reports it."""
    made: str
    """Day, and the versions it was made with."""
    pinned_rate: float = 0.0
    """Bytes/s to the card from pinned host memory."""
    pageable_rate: float = 0.0
    """Bytes/s from ordinary host memory."""
    return_rate: float = 0.0
    """Bytes/s from the card into new ordinary host memory."""
    pinned_return_rate: float = 0.0
    """Bytes/s from the card into pinned host memory; shown only, since nothing that is planned copies there."""
    issue: float = 0.0
    """Seconds of the host to launch one operation."""
    products: float = 0.0
    """Measured speed of matrix products in half precision ÷ the one the time model expects of this card."""
    convolutions: float = 0.0
    """The same ratio of convolutions."""
    attentions: float = 0.0
    """The same ratio of fused attention."""
    traffic: float = 0.0
    """The same ratio of elementwise kernels."""
    singles: float = 0.0
    """The same ratio of matrix products in single precision."""
    context: int = 0
    """Bytes the process holds outside torch's allocator."""
    scratch: tuple[Scratch, ...] = ()
    """Of convolutions, one of each kind."""

    def applied(self, device: Device) -> Device:
        """The card with what was measured in place of what was assumed.

        Scratch is only ever added: what one convolution does without, another of its kind may take.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OWN}
        figures = {name: value for name, value in known.items() if value}
        excess = tuple(Excess(kind=e.kind, maps=e.maps, weight=e.weight) for e in self.scratch if e.beyond)
        return replace(device, **figures, excess=excess, source=f"{device.source}, calibrated {self.made}")


def folder() -> Path:
    """Where this user's calibrations are kept."""
    import platformdirs

    return Path(platformdirs.user_config_dir("vram-planner")) / "gpus"


def write(made: Calibration, place: Path | None = None) -> Path:
    """Keep a calibration; one of the same card is replaced.  Returns its file."""
    file = (place or folder()) / f"{_slug(made.device_name)}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# Measured by `vram-planner calibrate`; delete this file to plan with published figures again."]
    figures = asdict(made)
    tables = figures.pop("scratch")
    lines += _lines(figures)
    for table in tables:
        lines += ["", "[[scratch]]", *_lines(table)]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def _lines(figures: Mapping[str, object]) -> Iterator[str]:
    for name, value in figures.items():
        text = f'"{value}"' if isinstance(value, str) else f"{value:.9g}" if isinstance(value, float) else str(value)
        yield f"{name} = {text}"


def read(device_name: str, place: Path | None = None) -> Calibration | None:
    """What was measured on a card of that name; None where nothing was.  Raises BadRequest for a broken file."""
    file = (place or folder()) / f"{_slug(device_name)}.toml"
    if not file.is_file():
        return None
    try:
        facts = tomllib.loads(file.read_text("utf-8"))
        facts["context"] = int(facts["context"])
        facts["scratch"] = tuple(Scratch(**each) for each in facts.get("scratch", ()))
        return Calibration(**facts)
    except (tomllib.TOMLDecodeError, TypeError, KeyError, ValueError) as error:
        raise BadRequest(f"{file} is no calibration ({error}); delete it, or run `vram-planner calibrate`.") from error


def calibrated(device: Device) -> Device:
    """The card as it was measured on this machine, or as it was."""
    made = read(device.name)
    return made.applied(device) if made else device


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")
