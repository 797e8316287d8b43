"""Tasks: what pipeline classes do with pictures, and which one does a profile's work from those of a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from planner import profiles
from planner.errors import BadRequest
from planner.profiles import DENOISERS, ComponentProfile, PipelineProfile
from planner.request import PICTURES, Request
from planner.sizes import Size

STEPS = (("control",), ("mask", "image", "video"))
"""A class is looked up for the first of each that is asked for; a mask needs an image anyway."""
CONTROLS = ("controlnet", "adapter")
"""Components that a control image is for."""
MASKED = ("Inpaint", "Fill")
NEEDED: dict[str, tuple[str, ...]] = {
    "image": ("Img2Img", "ImageToVideo", "I2V", "Edit", "Upscale", "Pix2Pix", "Depth2Img", *MASKED),
    "mask": MASKED,
    "control": ("Control", "Adapter"),
    "video": ("VideoToVideo",),
}
"""Words in the names of classes that cannot do without such pictures."""
ARGUMENTS = {
    "image": "image",
    "mask": "mask_image",
    "control": "control_image",
    "reference": "ip_adapter_image",
    "last_image": "last_image",
    "video": "video",
}
"""Call arguments that pictures become in most classes."""
FIGURES = ("height", "width", "frames", "steps", "guidance", "strength")
"""Fields of a request for which a profile has usual values, beside the pictures."""
JOINED = " + "
"""Stands between the names of profiles of which the first has what it lacks from the others."""
SIZES_ONLY = ("sample_size",)
"""Keys of a denoiser's configuration that change no weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is known of a pipeline class by its name."""

    name: str
    needs: frozenset[str]
    """Fields of a request without which it does not start."""
    lacks: frozenset[str] = frozenset()
    """Among prompt, height and width, arguments its call does not have."""
    takes: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Pictures that go by another name than in most calls."""
    first: str = "prompt"
    """First argument of the call."""

    @property
    def made_to_measure(self) -> bool:
        """Whether its result is as large as its start image."""
        return "height" in self.lacks and bool(self.needs & {"image", "video"}) and "Upscale" not in self.name

    def argument(self, picture: str) -> str:
        """The call argument that a field of a request becomes."""
        return self.takes.get(picture, ARGUMENTS[picture])


def kind_of(name: str) -> Kind:
    """The facts of a pipeline class; of one nobody has looked at, what its name says."""
    known = _facts().get(name, {})
    said = {picture for picture, words in NEEDED.items() if any(word in name for word in words)}
    return Kind(
        name=name, needs=frozenset(known.get("needs", said)), lacks=frozenset(known.get("lacks", ())),
        takes=known.get("takes", {}), first=known.get("first", "prompt"),
    )  # fmt: skip


def resolve(model: str | Path) -> PipelineProfile:
    """The profile of a name or folder, or of several joined as in `sdxl + sdxl-controlnet`.

    Raises UnknownModel or BadRequest.
    """
    if Path(model).is_dir():
        return profiles.resolve(model)
    first, *others = str(model).split(JOINED)
    profile = profiles.resolve(first)
    for name in others:
        profile = filed(profile, name) if profiles.is_file(name) else joined(profile, profiles.find(name))
    return profile


def filed(profile: PipelineProfile, component: str) -> PipelineProfile:
    """The profile with a component from a file of its own, named after it.  Raises UnknownModel or BadRequest."""
    return replace(profiles.with_file(profile, component), name=f"{profile.name}{JOINED}{component}")


def prepared(profile: PipelineProfile, request: Request) -> tuple[PipelineProfile, Request]:
    """The profile that does what is asked, and the request with all that was left open.  Raises BadRequest."""
    request = _usual(request, profile, PICTURES)
    profile = turned(profile, request)
    return profile, _usual(fitted(request, profile.pipeline), profile, FIGURES)


def _usual(request: Request, profile: PipelineProfile, names: Iterable[str]) -> Request:
    """What the request leaves open among `names` and further arguments, as the profile says it is usually asked for."""
    usual = profile.defaults
    open_ = {name: getattr(usual, name) for name in names if getattr(request, name) in (None, ())}
    return replace(request, **open_, extra=tuple((dict(usual.extra) | dict(request.extra)).items()))


def turned(profile: PipelineProfile, request: Request) -> PipelineProfile:
    """The profile whose pipeline takes the pictures of `request`; itself where it takes them, or nothing does.

    Raises BadRequest where a control image lacks a model that reads it.
    """
    asked = [picture for picture in PICTURES if getattr(request, picture)]
    kind = class_for(profile.pipeline, asked, profile.settings)
    if "control" not in asked or kind == profile.pipeline or any(part.name in CONTROLS for part in profile.loaded):
        return replace(profile, pipeline=kind)
    reading = class_for(profile.pipeline, ["control"], profile.settings)
    shipped = map(profiles.find, profiles.names())
    lender = next((other for other in shipped if other.pipeline == reading and _alike(profile, other)), None)
    if lender is None:
        raise BadRequest(
            f"{profile.name} has no ControlNet for a control image and none that fits it is shipped; "
            f"plan the folder of a whole {reading}."
        )
    return replace(joined(profile, lender), pipeline=kind)


def fitted(request: Request, name: str) -> Request:
    """The request as pipeline class `name` takes it: with the pictures it needs, and the size of result they set."""
    kind = kind_of(name)
    if kind.argument("control") == "image" and not request.control:
        request = replace(request, control=request.image, image=())
    missing = {picture: (Size(),) for picture in PICTURES if picture in kind.needs and not getattr(request, picture)}
    request = replace(request, **missing)  # type: ignore[arg-type]  # sizes of pictures by field
    start = next(iter(request.image or request.video), Size())
    open_ = request.height is None and request.width is None
    if start.width and (kind.made_to_measure or (open_ and any(word in name for word in ("Img2Img", *MASKED)))):
        return replace(request, height=start.height, width=start.width)
    return request


def joined(profile: PipelineProfile, other: PipelineProfile) -> PipelineProfile:
    """The profile with the components that only `other` has, and as the pipeline that `other` is.

    Raises BadRequest where they were not made for each other.
    """
    if not _alike(profile, other):
        raise BadRequest(f"{other.name} was made for another denoiser than that of {profile.name}; join what is alike.")
    known = {part.name for part in profile.components}
    lent = tuple(part for part in other.components if part.name not in known)
    if not lent:
        raise BadRequest(f"{other.name} has no component that {profile.name} lacks; leave it out.")
    return replace(
        profile,
        name=f"{profile.name}{JOINED}{other.name}",
        pipeline=other.pipeline,
        components=(*profile.components, *lent),
    )


def class_for(name: str, asked: Iterable[str], settings: Mapping[str, Any]) -> str:
    """The class that does the work of pipeline class `name` from the pictures asked for, fields of a request."""
    asked = set(asked)
    for pictures in STEPS:
        own = _facts().get(name, {})
        inner = [table for setting, table in own.items() if isinstance(table, dict) and settings.get(setting)]
        known = {picture: other for table in (own, *inner) for picture, other in table.items()}
        name = next((known[picture] for picture in pictures if picture in asked and picture in known), name)
    return name


@cache
def _facts() -> dict[str, dict[str, Any]]:
    return profiles.read_toml(profiles.shipped() / "tasks.toml")


def _alike(profile: PipelineProfile, other: PipelineProfile) -> bool:
    """Whether the denoisers are of one make, as far as their configurations say it."""
    one, two = _denoiser(profile), _denoiser(other)
    if one is None or two is None or one.kind != two.kind:
        return False
    told = {key: value for key, value in two.config.items() if key not in SIZES_ONLY}
    return all(one.config.get(key, value) == value for key, value in told.items())


def _denoiser(profile: PipelineProfile) -> ComponentProfile | None:
    return next((part for part in profile.components if part.name in DENOISERS), None)
