"""Random valid combinations of all techniques on pipelines of many families, each a plan with a budget of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from planner.cards import card
from planner.device import Device
from planner.plan import Plan
from planner.pricing import PLACEMENT, Priced, Pricer
from planner.reasons import plan_as_it_is, smallest_capacity
from planner.request import Fidelity, Request
from planner.study import Study, opened
from planner.techniques import Option, Technique, packing

STEPS = 2
"""The second denoising step reuses what the first left; further ones change no peak."""
ROOM = 192 * 10**9
"""Bytes of the card, so that it is the hard cap that holds the budget."""
CARDS = ("rtx-2080-ti", "a100-sxm4-40gb", "rtx-3060-12gb", "rtx-4090", "h100-sxm", "rtx-5090")
"""One of each generation."""
UNDRAWN = frozenset({"tracing"})
"""Generated kernels are what the virtual GPU does not run."""
LOADED = frozenset(packing.BITS)
"""Values under which weights are packed while they are loaded; here pipelines are there before their plans."""
ON = 0.4
"""How likely each technique that is offered is switched on."""
STREAMED = 0.4
"""How likely weights travel by our own streaming rather than by diffusers' ways."""
SPARE = (0.0, 0.02, 0.25)
"""Of the least capacity under which the allocator runs it: what the budget allows beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A pipeline and the sizes it is drawn at: small for its kind, for what is wanted is many."""

    model: str
    sizes: tuple[tuple[int, int], ...] = ()
    frames: int | None = None
    batches: tuple[int, ...] = (1, 1, 2, 3)
    dtypes: tuple[str | None, ...] = (None, None, None, "float32")
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


SQUARES = ((512, 512), (768, 1024), (1024, 1024))
CLIPS = ((320, 512), (480, 832))
FAMILIES = (
    Family(model="sd15", sizes=((512, 512), (768, 512), (1024, 1024))),
    Family(model="sdxl", sizes=SQUARES),
    Family(model="sd3-medium", sizes=SQUARES),
    Family(model="flux1-dev", sizes=SQUARES, dtypes=(None,)),
    Family(model="wan2.1-t2v-1.3b", sizes=CLIPS, frames=17, batches=(1, 2)),
    Family(model="ltx-video-0.9.5", sizes=CLIPS, frames=25, batches=(1,)),  # its decode has a timestep a prompt
    Family(model="svd", sizes=((320, 512), (576, 1024)), frames=14, batches=(1,)),
    Family(model="pixart-sigma", sizes=SQUARES),
    Family(model="animatediff-sd15", sizes=((512, 512),), frames=16, batches=(1,)),
    Family(model="sana", sizes=SQUARES),
    Family(model="cogvideox-2b", sizes=((480, 720),), frames=17, batches=(1,)),
    Family(model="kandinsky-2.2-decoder", sizes=SQUARES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One combination: `name` is seed and number, and nothing drawn before has a part in it."""

    name: str
    plan: Plan

    @property
    def words(self) -> str:
        """The request in a few words."""
        asked = self.plan.request
        counts = (
            f"{asked.frames} frames" if asked.frames else "",
            f"{asked.images} images" if asked.images > 1 else "",
        )
        return " ".join(filter(None, (self.plan.dtype, f"{asked.width}×{asked.height}", *counts)))


def draw(seed: int, number: int, cache: Path | None = None, without: frozenset[str] = frozenset()) -> Drawn:
    """Combination `number`, each family in turn, of all techniques but some.

    Raises PlannerError where the pipeline refuses the request.
    """
    rng = Random(f"{seed}/{number}")
    study, device = _asked(rng, FAMILIES[number % len(FAMILIES)], cache)
    pricer = study.pricer(device)
    priced = _candidate(rng, pricer, device, study.request, UNDRAWN | without)
    capacity = _capacity(rng, pricer, priced)
    study.keep()
    order = study.order(device, budget=capacity + device.context)
    return Drawn(name=f"{seed}/{number}", plan=plan_as_it_is(priced, pricer, order))


def _asked(rng: Random, family: Family, cache: Path | None) -> tuple[Study, Device]:
    height, width = rng.choice(family.sizes)
    request = Request(
        height=height, width=width, frames=family.frames, images=rng.choice(family.batches), steps=STEPS,
        dtype=rng.choice(family.dtypes), fidelity=Fidelity.LOSSY,
    )  # fmt: skip
    device = replace(card(rng.choice(CARDS)), total=ROOM, free=ROOM)
    return opened(family.model, request, cache=cache), device


def _candidate(rng: Random, pricer: Pricer, device: Device, request: Request, without: frozenset[str]) -> Priced:
    """Technique by technique in order of applying: one of what is still offered, or nothing.

    Nothing, too, where the pipeline refuses the request under it, as the planner leaves it out then.
    """
    priced = pricer.price(())
    streams = rng.random() < STREAMED
    for technique in pricer.techniques.values():
        if technique.name in without:
            continue
        offered = [each for each in technique.options(priced.program, device, request) if each.value not in LOADED]
        if technique.scope == "component":
            more = tuple(_streams(rng, offered)) if streams else ()
        else:
            more = tuple(_drawn(rng, technique, offered, resting=streams))
        priced = next(pricer.able(priced.candidate + more), priced)
    return priced


def _drawn(rng: Random, technique: Technique, offered: Sequence[Option], *, resting: bool) -> Iterator[Option]:
    """Weights have to be somewhere; `resting` are those that no stream moves."""
    if technique.name == PLACEMENT:
        yield rng.choice([option for option in offered if option.neutral or not resting])
    elif offered and rng.random() < ON:
        yield rng.choice(offered)


def _streams(rng: Random, offered: Sequence[Option]) -> Iterator[Option]:
    """One way for every other component that can be streamed, and for one at least."""
    components = list(dict.fromkeys(option.component for option in offered))
    some = [name for name in components if rng.random() < 1 / 2] or components[-1:]
    for name in some:
        yield rng.choice([option for option in offered if option.component == name])


def _capacity(rng: Random, pricer: Pricer, priced: Priced) -> int:
    """Bytes torch may reserve: the least that will do, or somewhat more."""
    least = smallest_capacity(priced, pricer, priced.worst.peak.total)
    return int(least * (1 + rng.choice(SPARE)))
