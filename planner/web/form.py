"""Form: what is filled in on the page, as a request and a card, and as a link that opens the same page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from planner import profiles
from planner.cards import card, catalogue
from planner.device import Device
from planner.errors import BadRequest
from planner.probe import device_of_size
from planner.profiles import PipelineProfile
from planner.request import JSON, Fidelity, Request
from planner.units import format_bytes, parse_bytes

OTHER = "other"
"""Stands where a card's name would for one of which only the memory is known."""
COUNTS = ("width", "height", "frames", "batch", "steps")
"""Fields that are whole numbers."""
USUAL = ("width", "height", "frames", "steps")
"""Fields that every model has values of its own for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The page as it is filled in, in the order of its fields.  None: as the model is usually asked for."""

    model: str = "sdxl"
    card: str = "rtx-4060-8gb"
    vram: str = "8GB"
    """Memory of a card that is none of those listed."""
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    batch: int = 1
    steps: int | None = None
    budget: str = "auto"
    fidelity: str = "faithful"
    plain: bool = False

    @property
    def profile(self) -> PipelineProfile:
        """The shipped pipeline; folders are not read for a page that others may see.  Raises UnknownModel."""
        return profiles.find(self.model.strip())

    @property
    def device(self) -> Device:
        """The card.  Raises UnknownDevice or BadRequest."""
        return device_of_size(parse_bytes(self.vram)) if self.card == OTHER else card(self.card)

    @property
    def request(self) -> Request:
        """The call and its limits.  Raises BadRequest."""
        figures = {name: getattr(self, name) for name in USUAL}
        limits: dict[str, JSON] = {"budget": self.budget, "fidelity": self.fidelity, "plain": self.plain}
        return Request.from_json({**figures, "images": self.batch, **limits})


FIELDS = tuple(field.name for field in fields(Form))


def completed(form: Form) -> Form:
    """The form with what is usual for its model where it is empty.  Raises UnknownModel."""
    usual = form.profile.defaults
    return replace(form, **{name: getattr(usual, name) for name in USUAL if getattr(form, name) is None})


def query(form: Form) -> str:
    """The part of a link behind the question mark: model, card and all that is not as usual."""
    plain = completed(Form(model=form.model))
    said = {name: value for name, value in asdict(form).items() if value is not None and value != getattr(plain, name)}
    if form.card != OTHER:
        said.pop("vram", None)
    return urlencode({"model": form.model, "card": form.card} | said)


def read(parameters: Mapping[str, str], start: Form) -> Form:
    """The form of a link; `start` says what it leaves open.  Raises BadRequest.

    Parameters of others are left alone.
    """
    given: dict[str, Any] = {name: value for name, value in parameters.items() if name in FIELDS}
    for name in COUNTS:
        if name in given:
            given[name] = _count(name, given[name])
    if "plain" in given:
        given["plain"] = _flag("plain", given["plain"])
    form = completed(replace(start, **given))
    Fidelity.parse(form.fidelity)
    return form


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"{name} is {text!r} in this link; it has to be a whole number of at least 1.")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in ("True", "False"):
        raise BadRequest(f"{name} is {text!r} in this link; it has to be True or False.")
    return text == "True"


def models() -> list[tuple[str, str]]:
    """What is shown for each shipped pipeline, and its name."""
    return [(f"{name} · {profiles.find(name).hub_id}", name) for name in profiles.names()]


def cards() -> list[tuple[str, str]]:
    """What is shown for each card, and its name; the last is for all others."""
    known = [(f"{each.name} · {format_bytes(each.device.total)}", each.slug) for each in catalogue()]
    return [*known, ("another card, by its memory", OTHER)]
