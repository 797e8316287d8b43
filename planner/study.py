"""Study: one model and one request, planned for as many cards and budgets as there are.

What is expensive is done once: programs are read from disk or recorded, and what was priced on a card stays known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from planner import lessons as kept
from planner import profiles, reasons, tasks, workspace
from planner.answers import Answers
from planner.choose import Choice, NothingFits, choose
from planner.collector import SELDOM, collecting
from planner.device import Device
from planner.errors import BadRequest
from planner.lessons import NONE, Lessons
from planner.plan import DISK, HOST, Plan
from planner.pricing import EXPANDABLE, Pricer
from planner.profiles import PipelineProfile
from planner.programs import FromPipe, FromProfile, Programs, Source, Tell, silent
from planner.reasons import Shortage
from planner.request import Request
from planner.scenes import Limits
from planner.techniques import DEFAULT
from planner.techniques.base import Housed, Technique
from planner.units import FEW, MEANT, format_bytes


@dataclass(slots=True, kw_only=True)
class Study:
    """One model and one request.  `opened` makes it; `keep` writes what was recorded to disk."""

    model: str
    dtype: str
    request: Request
    programs: Programs
    techniques: Sequence[Technique] = DEFAULT
    lessons: Lessons = NONE
    """What `verify` learned on this machine."""
    answers: Answers = field(default_factory=Answers, repr=False)
    """What was worked out before."""
    workspaces: Answers = field(default_factory=Answers, repr=False)
    """What cuDNN answered before."""
    _pricers: dict[Device, Pricer] = field(default_factory=dict, repr=False)
    _recalled: dict[Device, int] = field(default_factory=dict, repr=False)
    """Answers of cuDNN that were read for a card."""
    _others: dict[Request | str, Study] = field(default_factory=dict, repr=False)

    @collecting(SELDOM)
    def plan(self, device: Device, *, budget: int | None = None, host: int | None = None) -> Plan:
        """The fastest combination within `budget` bytes, by default the request's, and `host` bytes of host memory.

        Raises BadRequest, TraceFailed or Infeasible.
        """
        order = self.order(device, budget, host)
        known = self._known(order)
        found = known if isinstance(known, Plan) else self._search(order)
        if not isinstance(found, Plan):
            nothing, pricer = found
            raise reasons.infeasible(nothing, self._missing(nothing, pricer, order), pricer, order) from nothing
        if found is not known:
            self._keep(found, order)
        return found

    def attempt(self, device: Device, *, budget: int | None = None, host: int | None = None) -> Plan | Shortage:
        """The same, with a shortage as a value; what would be the largest size that fits is not looked for."""
        order = self.order(device, budget, host)
        if (known := self._known(order)) is not None:
            return known
        found = self._search(order)
        answer = found if isinstance(found, Plan) else self._missing(*found, order)
        self._keep(answer, order)
        return answer

    def question(self, *asked: Any) -> tuple[Any, ...] | None:
        """What the answer hangs on, for `answers`; None where something has a part in it that no key tells of."""
        own = all(type(technique).__module__.startswith("planner.") for technique in self.techniques)
        if self.programs.key is None or not own:
            return None
        return (
            self.programs.key,
            self.model,
            self.dtype,
            self.request,
            self.lessons,
            *map(repr, self.techniques),
            asked,
        )

    def _known(self, order: reasons.Order) -> Plan | Shortage | None:
        question = self.question(order)
        kept = self.answers.find(*question) if question else None
        if not kept:
            return None
        return Plan.from_json(kept) if "options" in kept else Shortage(**kept)

    def _keep(self, answer: Plan | Shortage, order: reasons.Order) -> None:
        if question := self.question(order):
            self.answers.keep(answer, *question)

    def _search(self, order: reasons.Order) -> Plan | tuple[NothingFits, Pricer]:
        """The plan, with a last resort where nothing fits without; else what comes nearest, and who priced it."""
        nearest = self._tried(order)
        if isinstance(nearest, Plan):
            return nearest
        for other in self._resorts(*nearest, order):
            with suppress(BadRequest):
                found = other._tried(order)
                if isinstance(found, Plan):
                    return found
                nearest = _nearer(nearest, found, order)
        return nearest

    def _missing(self, nothing: NothingFits, pricer: Pricer, order: reasons.Order) -> Shortage:
        """What is short: disk, where host memory cannot hold the weights and more of it would do."""
        missing = reasons.shortage(nothing, pricer, order)
        program = pricer.price(()).program
        if order.host is None or order.host >= sum(sum(part.weights) for part in program.components):
            return missing
        roomy = self._spared(unlimited=True)
        limits = [each for each in self.techniques if isinstance(each, Housed)]
        free = roomy.pricer(order.device)
        offered = [option for each in limits for option in free.offered(each.name, free.price(()))]
        if not any(each.lacking(program, (option,)) for each in limits for option in offered):
            return missing
        found = roomy._tried(order)
        if not isinstance(found, Plan):
            return missing
        return replace(missing, phase=DISK, over=max(each.lacking(program, found.options) for each in limits))

    def _tried(self, order: reasons.Order) -> Plan | tuple[NothingFits, Pricer]:
        pricer = self.pricer(order.device)
        try:
            return reasons.plan_of(self.choice(order.device, order.budget, order.host), pricer, order)
        except NothingFits as nothing:
            return nothing, pricer

    def _resorts(self, nothing: NothingFits, pricer: Pricer, order: reasons.Order) -> Iterator[Study]:
        """The same with what is kept for when host memory cannot hold the weights, or with a technique named that is
        kept for when the components at work in that phase find no room.
        """
        whole = sum(sum(part.weights) for part in pricer.price(()).program.components)
        if order.host is not None and order.host < whole:
            yield self._spared()
        traits = {part.name: part.traits for part in nothing.leanest.program.components}
        over = traits.get(nothing.phase.partition(".")[0], frozenset[str]())
        decided = {*self.request.without, *(name.partition("=")[0] for name in self.request.use)}
        for technique in self.techniques:
            if technique.name not in decided and over & getattr(technique, "relieves", frozenset()):
                named = replace(self.request, use=(*self.request.use, technique.name))
                if named not in self._others:
                    self._others[named] = replace(self, request=named, _pricers={}, _recalled={}, _others={})
                yield self._others[named]

    def _spared(self, *, unlimited: bool = False) -> Study:
        """The same with techniques that need next to no host memory, or any number of bytes on disk."""
        name = DISK if unlimited else HOST
        if name not in self._others:
            spared = [getattr(technique, "spared", lambda t=technique: t)() for technique in self.techniques]
            if unlimited:
                spared = [each.housed(sys.maxsize, here=False) if isinstance(each, Housed) else each for each in spared]
            self._others[name] = replace(self, techniques=tuple(spared), _pricers={}, _recalled={}, _others={})
        return self._others[name]

    @collecting(SELDOM)
    def choice(self, device: Device, budget: int, host: int | None = None, *, spare: float = 0.0) -> Choice:
        """What the pricer found; its sums leave a share of the bytes to `spare`.  Raises NothingFits.

        Where only fragments are in the way, it is with expandable segments, which concern the whole process.
        """
        capacity = budget - device.context
        if capacity <= 0:
            raise BadRequest(
                f"A budget of {format_bytes(budget)} leaves nothing beside the CUDA context of "
                f"{format_bytes(device.context)}; {MEANT.format(budget) if budget < FEW else 'ask for more'}."
            )
        try:
            limits = Limits(capacity=capacity, host=host, spare=int(capacity * spare))
            return choose(self.pricer(device), limits)
        except NothingFits as nothing:
            growing = self._growing()
            if growing is None or not nothing.evidence.refused:
                raise
            try:
                return growing.choice(device, budget, host, spare=spare)
            except NothingFits:
                raise nothing from None

    def _growing(self) -> Study | None:
        """The same with expandable segments, unless they are ruled out or named already."""
        named = {name.partition("=")[0] for name in (*self.request.use, *self.request.without)}
        if EXPANDABLE in named or EXPANDABLE not in {technique.name for technique in self.techniques}:
            return None
        request = replace(self.request, use=(*self.request.use, EXPANDABLE))
        if request not in self._others:
            self._others[request] = replace(self, request=request, _pricers={}, _recalled={}, _others={})
        return self._others[request]

    def pricer(self, device: Device) -> Pricer:
        """Prices on that card; one for each."""
        if device not in self._pricers:
            self._recalled[device] = self._recall(device)
            self._pricers[device] = Pricer(self.programs, device, self.request, self.techniques, self.lessons)
        return self._pricers[device]

    def at(self, request: Request) -> Study:
        """The same model with another request, on the same ghost; one for each."""
        if request not in self._others:
            self._others[request] = replace(
                self, request=request, programs=self.programs.resized(request), _pricers={}, _recalled={}, _others={}
            )
        return self._others[request]

    def beside(self, other: Study) -> Study:
        """The same with what another one knows, where it records the same: fidelity and limits shape no program."""
        alike = self.programs.key is not None and self.programs.key == other.programs.key
        if not alike or self.request.calls != other.request.calls or self.lessons != other.lessons:
            return self
        pricers = {device: known.asking(self.request, self.techniques) for device, known in other._pricers.items()}
        return replace(self, programs=other.programs, _pricers=pricers, _recalled={**other._recalled})

    def keep(self) -> None:
        """Write what was recorded to disk, and what cuDNN answered."""
        self.programs.keep()
        for device, rows in self._recalled.items():
            if self.programs.key and (asked := workspace.asked(device)) > rows:
                self.workspaces.keep(workspace.known(device), self.programs.key, device)
                self._recalled[device] = asked

    def _recall(self, device: Device) -> int:
        """How many answers of cuDNN are known from before."""
        rows = self.workspaces.find(self.programs.key, device) if self.programs.key else None
        workspace.recall(device, rows or ())
        return len(rows or ())

    def order(self, device: Device, budget: int | None = None, host: int | None = None) -> reasons.Order:
        """What is asked of a card, by default within the request's budget."""
        amount = self.request.budget.resolve(device) if budget is None else budget
        return reasons.Order(
            model=self.model, dtype=self.dtype, request=self.request, device=device, budget=amount, host=host
        )


def _nearer(
    one: tuple[NothingFits, Pricer], other: tuple[NothingFits, Pricer], order: reasons.Order
) -> tuple[NothingFits, Pricer]:
    """The one that a smaller budget would do for; the other's own is only looked for where it runs within that."""
    likely, rival = sorted((one, other), key=lambda found: found[0].evidence.capacity)
    budget = _least(likely, order)
    if budget < inf and not _runs(rival, int(budget) - order.device.context):
        return likely
    return min(likely, rival, key=lambda found: _least(found, order))


def _runs(found: tuple[NothingFits, Pricer], capacity: int) -> bool:
    nothing, pricer = found
    return nothing.evidence.capacity <= capacity and not pricer.rehearse(nothing.leanest, capacity).failed


def _least(found: tuple[NothingFits, Pricer], order: reasons.Order) -> float:
    """The budget that would do; none does where host memory is short."""
    missing = reasons.shortage(*found, order)
    return inf if missing.phase == HOST else missing.smallest_budget


def opened(
    model: Any,
    request: Request,
    *,
    components: Sequence[str] = (),
    techniques: Sequence[Technique] = DEFAULT,
    cache: Path | None = None,
    tell: Tell = silent,
    here: bool = False,
) -> Study:
    """The study of a shipped profile's name or hub id, a folder in hub layout, or a live pipeline.

    `components`: optional ones to load, or profiles that lend theirs.  `cache`: folder of recorded programs, by default
    the user's cache.  `tell` hears what is being recorded, which takes seconds.  `here`: whether it is for this
    machine, whose disk is what there is unless the request says.  Raises BadRequest.
    """
    techniques = [each.housed(request.disk, here=here) if isinstance(each, Housed) else each for each in techniques]
    name, source, asked, dtype = _source(model, request, components)
    folder = cache or cache_folder()
    return Study(
        model=name, dtype=dtype, request=asked, programs=Programs(source, asked, folder, techniques, tell),
        techniques=techniques, lessons=kept.read(),
        answers=Answers(folder / "answers"), workspaces=Answers(folder / "workspaces"),
    )  # fmt: skip


def cache_folder() -> Path:
    """Where recorded programs are kept for this user."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("vram-planner")) / "programs"


def _source(model: Any, request: Request, components: Sequence[str]) -> tuple[str, Source, Request, str]:
    if not isinstance(model, (str, Path, PipelineProfile)):
        name = type(model).__name__
        return name, FromPipe(model), tasks.fitted(request, name), ""
    profile = model if isinstance(model, PipelineProfile) else tasks.resolve(model)
    named = profile if profile.hub_id else replace(profile, name=str(model))  # a folder goes by its path
    profile, request = tasks.prepared(_including(named, components), request)
    return profile.name, FromProfile(profile, request.dtype), request, request.dtype or profile.dtype


def _including(profile: PipelineProfile, components: Sequence[str]) -> PipelineProfile:
    """The profile with optional components of its own, and with what other profiles lend."""
    own = {part.name for part in profile.components}
    for name in filter(profiles.is_file, components):
        profile = tasks.filed(profile, name)
    components = [name for name in components if not profiles.is_file(name)]
    lenders = [name for name in components if name not in own and name.casefold() in profiles.names()]
    profile = profile.including(*(name for name in components if name not in lenders))
    for name in lenders:
        profile = tasks.joined(profile, profiles.find(name))
    return profile
