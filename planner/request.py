"""What is to be generated, and under which limits: plain values, checked when they are made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from enum import IntEnum
from math import isfinite
from typing import TypeAlias

from planner.device import Device
from planner.errors import BadBudget, BadRequest
from planner.sizes import Sizes, sizes, spelled
from planner.units import FORMS, format_bytes, parse_bytes, spell_bytes

JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"

_PERCENT = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%\s*", re.ASCII)
_AUTO = re.compile(r"\s*auto(?:\s*-(.+))?\s*", re.ASCII | re.IGNORECASE)
_DTYPES = {
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
}
_EXAMPLES = {"guidance": 7.5, "strength": 0.6}
PICTURES = {
    "image": "a start image",
    "mask": "a mask",
    "control": "a control image",
    "reference": "a reference image",
    "last_image": "a last image",
    "video": "a start video",
}
"""Fields that stand for pictures handed to the call, and what people call them."""


class Fidelity(IntEnum):
    """How far a plan may change the result; each level allows what is below it."""

    EXACT = 0
    """The same numbers up to kernel rounding."""
    FAITHFUL = 1
    """Adds half precision for fp32 weights, and tiled decoding."""
    LOSSY = 2
    """Adds fp8 storage, quantized weights and step caches."""

    @classmethod
    def parse(cls, name: str) -> Fidelity:
        """The level of that name in any letter case; BadRequest if there is none."""
        for level in cls:
            if level.name == name.strip().upper():
                return level
        raise BadRequest(f"{name!r} is not a fidelity; choose exact, faithful or lossy.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes of the card this process may use in all, CUDA context included.

    An `amount` of bytes, a `percent` of the card, or, with neither, what is free less a `reserve`.
    """

    amount: int | None = None
    percent: Decimal | None = None
    reserve: int = 0

    def __post_init__(self) -> None:
        if self.amount is not None and self.amount <= 0:
            raise BadBudget(f"A budget of {self.amount} bytes leaves nothing to plan with; write {FORMS}.")
        if self.percent is not None and not 0 < self.percent <= 100:
            raise BadBudget(f"A budget of {self.percent}% of the card is not between 0 and 100%; write 80%, say.")

    @classmethod
    def parse(cls, text: str | int) -> Budget:
        """A budget from `8GB`, `8GiB`, bytes, `80%`, `auto` or `auto-1GB`; BadBudget for anything else."""
        if match := _PERCENT.fullmatch(str(text)):
            return cls(percent=Decimal(match[1]))
        auto = _AUTO.fullmatch(str(text))
        try:
            amount = parse_bytes(auto[1] or 0 if auto else text)
        except BadRequest:
            raise BadBudget(f"{text!r} is not a budget; write {FORMS}, 80%, auto or auto-1GB.") from None
        return cls(reserve=amount) if auto else cls(amount=amount)

    def resolve(self, device: Device) -> int:
        """Bytes of `device` for this process in all, at most what others leave free.

        BadBudget where the card cannot give them.
        """
        if self.percent is not None:
            return min(int(device.total * self.percent / 100), device.free)
        if self.amount is None and device.free <= self.reserve:
            raise BadBudget(
                f"Budget {self} leaves nothing of the {format_bytes(device.free)} free on {device.name}; "
                "free some of the card, or reserve less."
            )
        amount = device.free - self.reserve if self.amount is None else self.amount
        if amount > device.total:
            raise BadBudget(
                f"A budget of {format_bytes(amount)} is {format_bytes(amount - device.total)} more than the "
                f"{format_bytes(device.total)} of {device.name}; write 100% for all of it or auto for what is free."
            )
        return min(amount, device.free)

    def __str__(self) -> str:
        """The text that `parse` reads back as this budget."""
        if self.amount is not None:
            return spell_bytes(self.amount)
        if self.percent is not None:
            return f"{self.percent}%"
        return f"auto-{spell_bytes(self.reserve)}" if self.reserve else "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One pipeline call to plan.  None leaves a figure to the pipeline.

    Raises BadRequest for figures no pipeline could take.
    """

    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    frames: int | None = None
    """How many, of a video."""
    images: int = 1
    """How many images or videos for each prompt."""
    prompts: int = 1
    """How many prompts one call gets."""
    steps: int | None = None
    """How many denoising steps."""
    guidance: float | None = None
    """Guidance scale, a plain factor."""
    prompt_tokens: int | None = None
    """How many tokens a prompt has where it is not padded."""
    image: Sizes = ()
    """Start images, as their sizes.  Here and below a picture, an array or a tensor may be given, or a text such as
    `1024x768`, or True for one as large as the result; only the sizes are kept."""
    mask: Sizes = ()
    """Of inpainting."""
    control: Sizes = ()
    """Control images of a ControlNet or T2I-Adapter."""
    reference: Sizes = ()
    """Images whose content or style is taken up: of an IP-Adapter, say."""
    last_image: Sizes = ()
    """The last frame of a video."""
    video: Sizes = ()
    """Frames of a video to start from; a single one stands for as many as are generated."""
    strength: float | None = None
    """Share of the denoising steps that a start image goes through, above 0 to 1."""
    extra: tuple[tuple[str, JSON], ...] = field(default=(), hash=False)
    """Further call arguments in JSON's types, by name; lists become tuples."""
    calls: int = 1
    """How many calls of this shape will be made; what is done once is spread over them."""
    budget: Budget = Budget()
    """Bytes of the card this process may use, CUDA's context included, as text: bytes, a share of the card, or `auto`
    for what is free."""
    host_ram: int | None = None
    """Bytes of host memory the plan may use; None: what is available."""
    disk: int | None = None
    """Bytes that weights may take on disk; None: what is free."""
    fidelity: Fidelity = Fidelity.FAITHFUL
    """How far a plan may change the result."""
    dtype: str | None = None
    """`float16`, `bfloat16` or `float32`, also by their short names; None: as the weights are."""
    use: tuple[str, ...] = ()
    """Techniques the plan must have, such as `micro_batch` or `vae_tiling=512`."""
    without: tuple[str, ...] = ()
    """Techniques it must not have."""
    plain: bool = False
    """Whether its code has to do without this package: nothing that diffusers lacks, such as `streaming`."""

    def __post_init__(self) -> None:
        counts = "height", "width", "frames", "images", "prompts", "steps", "prompt_tokens", "calls", "host_ram", "disk"
        for name in counts:
            if getattr(self, name) is not None or name in ("images", "prompts", "calls"):
                _check_count(name, getattr(self, name))
        for name in ("guidance", "strength"):
            _check_number(name, getattr(self, name))
        if self.strength is not None and not 0 < self.strength <= 1:
            raise BadRequest(f"strength is {self.strength}; it has to lie above 0 and be at most 1, such as 0.6.")
        if len({name for name, _ in self.extra}) < len(self.extra):
            raise BadRequest("A call argument is given twice; give each name once.")
        object.__setattr__(self, "dtype", _dtype(self.dtype))
        for name in ("use", "without"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        if not isinstance(self.plain, bool):
            raise BadRequest(f"plain is {self.plain!r}; it has to be true or false.")
        for name in PICTURES:
            object.__setattr__(self, name, sizes(name, getattr(self, name)))
        object.__setattr__(self, "extra", tuple((name, _frozen(name, value)) for name, value in self.extra))

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Request:
        """The request of which `data` holds some fields; budget, host_ram and disk may be text such as `8GB`."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise BadRequest(f"A request has no field {unknown[0]!r}; its fields are {', '.join(sorted(known))}.")
        read = ("budget", "fidelity", "host_ram", "disk", "extra")
        rest = {name: value for name, value in data.items() if name not in read}
        return cls(
            **rest,  # type: ignore[arg-type]  # __post_init__ checks them
            budget=Budget.parse(str(data.get("budget", "auto"))),
            fidelity=Fidelity.parse(str(data.get("fidelity", "faithful"))),
            host_ram=None if data.get("host_ram") is None else parse_bytes(str(data["host_ram"])),
            disk=None if data.get("disk") is None else parse_bytes(str(data["disk"])),
            extra=_pairs(data.get("extra", {})),
        )

    def to_json(self) -> dict[str, JSON]:
        """All fields in JSON's types; `from_json` gives the same request back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        pictures: dict[str, JSON] = {name: spelled(getattr(self, name)) for name in PICTURES}
        extra = {name: _thawed(value) for name, value in self.extra}
        return {**plain, **pictures, "extra": extra, "budget": str(self.budget), "fidelity": self.fidelity.name.lower()}


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{name} is {value!r}; it has to be a whole number of at least 1.")


def _check_number(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise BadRequest(f"{name} is {value!r}; it has to be a finite number such as {_EXAMPLES[name]}.")


def _dtype(name: str | None) -> str | None:
    if name is None:
        return None
    known = _DTYPES.get(str(name).lower().removeprefix("torch."))
    if known is None:
        raise BadRequest(f"{name!r} is not a dtype to plan with; choose float16, bfloat16 or float32.")
    return known


def _names(field: str, given: object) -> tuple[str, ...]:
    """Names of techniques, in a list or a single one."""
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name.strip() for name in names):
        raise BadRequest(f"{field} is {given!r}; it has to name techniques, such as micro_batch or vae_tiling=512.")
    return tuple(name.strip() for name in names)


def _pairs(arguments: JSON) -> tuple[tuple[str, JSON], ...]:
    if not isinstance(arguments, dict):
        raise BadRequest(f"extra is {arguments!r}; it has to map names of call arguments to values.")
    return tuple(arguments.items())


def _frozen(name: str, value: JSON) -> JSON:
    """`value` with its lists as tuples, for pipelines add their own tuples to them."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(name, item) for item in value)
    if isinstance(value, dict):
        return {str(key): _frozen(name, item) for key, item in value.items()}
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value)):
        return value
    raise BadRequest(f"Argument {name!r} holds {value!r}; plan with finite numbers, text, and lists and maps of them.")


def _thawed(value: JSON) -> JSON:
    if isinstance(value, tuple):
        return [_thawed(item) for item in value]
    if isinstance(value, dict):
        return {key: _thawed(item) for key, item in value.items()}
    return value
