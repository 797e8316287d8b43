"""Cells of the accuracy matrix: a pipeline, a size, techniques, a card and a cap, drawn at random from all there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from planner import profiles
from planner.cards import catalogue
from planner.device import Device
from planner.errors import PlannerError
from planner.pricing import Pricer, described
from planner.program import Variant
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.tasks import prepared
from planner.techniques import DEFAULT, Option, Technique

STEPS = 2
"""The second denoising step reuses what the first left; further ones change no peak."""
CAPS = tuple(n * 10**9 for n in (8, 12, 16, 24, 48, 80))
"""Bytes of the card, CUDA's context included."""
ARCHITECTURES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
AREAS = (1 / 4, 1 / 2, 1, 1, 3 / 2, 9 / 4, 4)
"""Of the area a pipeline is usually asked for."""
ASPECTS = (1, 4 / 3, 3 / 2, 16 / 9, 21 / 9)
LENGTHS = (1 / 4, 1 / 2, 1)
"""Of the usual number of frames."""
BATCHES = (1, 1, 1, 2, 3, 4)
DTYPES = (None,) * 8 + ("float32", "float16", "bfloat16")
"""Mostly as people load it."""
GRAIN, COARSE = 32, 128
"""Multiples that edges are rounded to; the second where a pipeline refuses the first."""
CELLS = 3
"""Cells of one pipeline and size: they share a recorded program."""
TECHNIQUES = (0, 1, 1, 1, 2, 2, 2)
"""How many are switched on."""
PLACED = "placement"
UNDRAWN = ("tracing",)
"""Generated kernels are what the virtual GPU does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is generated, and by which pipeline."""

    model: str
    dtype: str = ""
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    images: int = 1

    @property
    def request(self) -> Request:
        """The call, with what the profile usually asks for."""
        asked = Request(
            height=self.height, width=self.width, frames=self.frames, images=self.images, steps=STEPS,
            fidelity=Fidelity.LOSSY,
        )  # fmt: skip
        return prepared(profiles.find(self.model), asked)[1]

    def programs(self, cache: Path) -> Programs:
        """Recorded programs of this call."""
        return Programs(FromProfile(profiles.find(self.model), self.dtype or None), self.request, cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One call under some techniques on one card of `cap` bytes."""

    name: str
    """Seed, setting and place in it: `7/12.1`."""
    setting: Setting
    card: str
    cap: int
    options: tuple[Option, ...]
    context: int = 0
    """Bytes that CUDA holds; 0 for what is usual on such a card."""

    @property
    def device(self) -> Device:
        """The card with as much memory as the cap says."""
        known = next(known.device for known in catalogue() if known.slug == self.card)
        return replace(known, total=self.cap, free=self.cap, context=self.context or known.context)

    @property
    def words(self) -> str:
        """The options as people read them."""
        return described(self.options)


def wished(seed: int, number: int, models: Sequence[str] = ()) -> Cell:
    """Setting `number` before anybody asked whether its pipeline takes it."""
    setting = _rounded(_setting(Random(f"{seed}/{number}"), models or profiles.names()), COARSE)
    return Cell(name=f"{seed}/{number}", setting=setting, card=catalogue()[0].slug, cap=CAPS[0], options=())


def draw(seed: int, number: int, cache: Path, models: Sequence[str] = ()) -> Iterator[Cell]:
    """The cells of setting `number`; each depends on nothing drawn before.  Raises PlannerError for none at all."""
    rng = Random(f"{seed}/{number}")
    draft = _setting(rng, models or profiles.names())
    setting = _rounded(draft, GRAIN)
    programs = setting.programs(cache)
    try:
        programs.get(Variant())
    except PlannerError:
        setting = _rounded(draft, COARSE)
        programs = setting.programs(cache)
    for place in range(CELLS):
        slug, cap = _card(rng), rng.choice(CAPS)
        bare = Cell(name=f"{seed}/{number}.{place}", setting=setting, card=slug, cap=cap, options=())
        yield replace(bare, options=_options(rng, bare, programs))
    programs.keep()


def _setting(rng: Random, models: Sequence[str]) -> Setting:
    """Edges not yet rounded."""
    model, dtype, images = rng.choice(models), rng.choice(DTYPES) or "", rng.choice(BATCHES)
    usual = profiles.find(model).defaults
    aspect = rng.choice(ASPECTS) ** rng.choice((1, -1))
    area, length = rng.choice(AREAS), rng.choice(LENGTHS)
    plain = Setting(model=model, dtype=dtype, images=images)
    if usual.frames:
        area, images = min(area, 1), min(images, 2)
        plain = replace(plain, images=images, frames=_frames(usual.frames, length))
    if not usual.height or not usual.width:
        return plain
    pixels = usual.height * usual.width * area
    return replace(plain, height=round(math.sqrt(pixels / aspect)), width=round(math.sqrt(pixels * aspect)))


def _frames(usual: int, share: float) -> int:
    """As many, kept in the steps in which the usual number goes: 8 k + 1, 4 k + 1 or any."""
    step = next((n for n in (8, 4) if usual % n == 1), 1)
    return max(1, round((usual - 1) * share / step)) * step + 1 if step > 1 else max(1, round(usual * share))


def _rounded(setting: Setting, grain: int) -> Setting:
    if setting.height is None or setting.width is None:
        return setting
    height, width = (max(grain, round(edge / grain) * grain) for edge in (setting.height, setting.width))
    return replace(setting, height=height, width=width)


def _card(rng: Random) -> str:
    architecture = rng.choice(ARCHITECTURES)
    return rng.choice([known.slug for known in catalogue() if known.device.compute_capability == architecture])


def _options(rng: Random, cell: Cell, programs: Programs) -> tuple[Option, ...]:
    """None, one or two techniques, placement among them every other time, and what is neutral of those that need it."""
    pricer = Pricer(programs, cell.device, cell.setting.request, DEFAULT)
    order = [technique for technique in DEFAULT if technique.name not in UNDRAWN]

    def offered(technique: Technique, chosen: tuple[Option, ...]) -> tuple[Option, ...]:
        return technique.options(pricer.price(chosen).program, cell.device, cell.setting.request)

    able = [t.name for t in order if not all(option.neutral for option in offered(t, ()))]
    favoured = [PLACED] if PLACED in able and rng.random() < 1 / 2 else []
    others = rng.sample([name for name in able if name not in favoured], len(able) - len(favoured))
    wanted = [*favoured, *others][: rng.choice(TECHNIQUES)]
    chosen: tuple[Option, ...] = ()
    for technique in order:
        able_now = offered(technique, chosen)
        plain = [option for option in able_now if option.neutral]
        fitting = [option for option in able_now if not option.neutral] if technique.name in wanted else plain
        chosen += (rng.choice(fitting or plain),) if fitting or plain else ()
    return chosen
