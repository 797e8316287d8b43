"""Surveys: many plans of one study – over budgets, over cards, over sizes – as values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner.census import Count, Stretch, census, timeline
from planner.choose import NothingFits
from planner.collector import SELDOM, collecting
from planner.cost import Cost
from planner.device import Device
from planner.errors import BadRequest, Unserved
from planner.limits import MOST, Growth, Kind, Look, guess, last_fitting
from planner.plain import record
from planner.plan import Plan, option_of
from planner.pricing import Candidate, Pricer, words
from planner.programs import Tell, silent
from planner.reasons import Shortage, looked, shortage, smallest_capacity
from planner.request import Request
from planner.study import Study
from planner.techniques.base import Option
from planner.units import format_bytes

ROOMY = 2**50
"""Bytes no card has; what is chosen within them is chosen for its time alone."""
LEAST = 2 * 10**9
"""Bytes down to which a frontier is followed unless more is asked: no card in use has less."""
STEP = 0.12
TOLERANCE = 0.02
"""A frontier's budgets are each STEP below the last one needed, and known to TOLERANCE.  A combination's sums leave as
much of a budget as fragments took of the last one, from TOLERANCE to half a step: nearer to it most are refused."""

TIGHTER = 0.75
"""Each budget of the one before it, when the leanest combination is looked for."""
FAR = 4
"""Growth beyond which the leanest combination is looked for anew: what is lean for a stamp is not for a poster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The least budget at which a combination runs, and how long it takes then."""

    budget: int
    """Bytes, CUDA's context included."""
    seconds: float
    """Of the whole call."""
    options: tuple[Option, ...]
    """The combination, in order of applying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Time against budget: no combination is faster within less.  Points by budget, the least first."""

    model: str
    """As it was asked for."""
    request: Request
    """What is to be generated; its budget is no limit here."""
    device: Device
    """The card whose speed is taken; its memory is no limit here."""
    points: tuple[Point, ...]
    """By budget, the least first."""
    bare: Point
    """With nothing switched on."""

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return record(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One card under one budget: a plan, or what is missing for one."""

    device: Device
    budget: int
    """Bytes of the card for this process, CUDA's context included."""
    plan: Plan | None
    """None where nothing fits."""
    shortage: Shortage | None
    """What is missing for a plan; None where there is one, or where no memory would help."""
    price: float | None
    """Of one image or video, in the currency of the price per hour; None where no price or no plan is known."""
    refusal: str = ""
    """Why the card cannot run the pipeline as asked, however much memory it has."""

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return record(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The most that fits: the plan of the last step, and what the next one lacks."""

    kind: Kind
    """What grew."""
    plan: Plan
    """Of the last step that fits."""
    next: Request | None
    """The first request that does not fit; None where the search ended before there was one."""
    shortage: Shortage | None
    """What that one lacks."""

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return record(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is needed after one more change, as the allocator has it without a cap; the last is the plan itself."""

    what: str
    """The change."""
    budget: int
    """Bytes, CUDA's context included."""
    seconds: float
    """Of the whole call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A plan and what its memory is made of: at the peak of each phase, and over time."""

    plan: Plan
    """The plan itself."""
    counts: tuple[Count, ...]
    """Who holds the memory at the peak of each phase, in order of running."""
    timeline: tuple[Stretch, ...]
    """What is held over time, phase by phase."""
    steps: tuple[Step, ...]
    """From nothing switched on to the plan, change by change, in order of applying."""

    def count(self, phase: str | None = None) -> Count:
        """The census of a phase, by default of the one that needs most.  Raises BadRequest."""
        if phase is None:
            return max(self.counts, key=lambda count: count.peak)
        for count in self.counts:
            if count.phase == phase:
                return count
        names = ", ".join(count.phase for count in self.counts)
        raise BadRequest(f"No phase {phase!r}; the {len(self.counts)} phases of this plan are {names}.")

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return record(self)


def anatomy_of(study: Study, device: Device, *, host: int | None = None) -> Anatomy:
    """The plan with its census.  Raises BadRequest, TraceFailed or Infeasible."""
    plan = study.plan(device, host=host)
    pricer = study.pricer(device)
    program = pricer.price(plan.options).program
    cost = Cost(device, study.request.calls)
    return Anatomy(
        plan=plan, counts=census(program, cost), timeline=timeline(program, cost),
        steps=tuple(_steps(plan, pricer)),
    )  # fmt: skip


def _steps(plan: Plan, pricer: Pricer) -> Iterator[Step]:
    """The baseline, then the plan's changes one by one; what the baseline does anyway gives way to them."""
    bare, changes = pricer.baseline(), [option for option in plan.options if not option.neutral]
    for many in range(len(changes) + 1):
        made = changes[:many]
        kept = [o for o in bare.candidate if o.technique not in {option.technique for option in made}]
        priced = pricer.price(pricer.settled(pricer.merged(pricer.price(()), (*kept, *made))))
        last = many == len(changes)
        allocated = plan.promise.allocated if last else pricer.rehearse(priced, None).allocated
        what = words(made[-1]) if made else "nothing switched on"
        yield Step(what=what, budget=allocated + plan.promise.context, seconds=priced.seconds)


@collecting(SELDOM)
def frontier_of(
    study: Study, device: Device, *, down_to: int = LEAST, host: int | None = None, tell: Tell = silent
) -> Frontier:
    """What each budget buys on a card's speed, from where more memory saves no time down to `down_to` bytes.

    The last point may need less.  The card's own memory is no limit here.  Raises BadRequest or TraceFailed.
    """
    *_, found = frontiers_of(study, device, down_to=down_to, host=host, tell=tell)
    return found


def frontiers_of(
    study: Study, device: Device, *, down_to: int = LEAST, host: int | None = None, tell: Tell = silent
) -> Iterator[Frontier]:
    """The same as it is found, from the roomiest budget down; the first has no points yet."""
    question = study.question("frontier", device, down_to, host)
    if known := study.answers.find(*question) if question else None:
        points = tuple(map(_point, known["points"]))
        yield Frontier(
            model=study.model, request=study.request, device=device, points=points, bare=_point(known["bare"])
        )
        return
    pricer, seen = study.pricer(device), list[Point]()
    plain = pricer.baseline()
    needs = pricer.rehearse(plain, None).allocated + device.context
    bare = Point(budget=needs, seconds=plain.seconds, options=plain.candidate)
    found = Frontier(model=study.model, request=study.request, device=device, points=(), bare=bare)
    yield found
    for point in _points(study, device, max(down_to, device.context + 1), host):
        seen.append(point)
        tell(f"{len(seen)} combinations, down to {format_bytes(point.budget)}")
        found = replace(found, points=tuple(_undominated(seen)))
        yield found
    if question:
        study.answers.keep(found, *question)


def _point(data: Mapping[str, Any]) -> Point:
    return Point(budget=data["budget"], seconds=data["seconds"], options=tuple(map(option_of, data["options"])))


def _points(study: Study, device: Device, down_to: int, host: int | None) -> Iterator[Point]:
    """The least budget of what is fastest within each, and of what is fastest within a step less than that."""
    pricer, budget, spare = study.pricer(device), ROOMY, TOLERANCE
    while budget >= down_to:
        try:
            found = study.choice(device, budget, host, spare=spare)
        except NothingFits:
            return
        at_least = max(phase.peak.total for phase in found.winner.phases)
        held = min(at_least, found.rehearsal.reserved)
        capacity = smallest_capacity(found.winner, pricer, held, int(held * TOLERANCE), found.rehearsal)
        least = capacity + device.context
        yield Point(budget=least, seconds=found.winner.seconds, options=found.winner.candidate)
        spare = min(max(TOLERANCE, 1 - at_least / capacity), STEP / 2)
        budget = int(min(least, budget) * (1 - STEP))


def _undominated(points: Iterable[Point]) -> list[Point]:
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.budget, point.seconds)):
        if not kept or point.seconds < kept[-1].seconds:
            kept.append(point)
    return kept


@collecting(SELDOM)
def comparison(
    study: Study,
    cells: Sequence[tuple[Device, int, float | None]],
    *,
    host: int | None = None,
    tell: Tell = silent,
) -> tuple[Row, ...]:
    """One row for each card, budget in bytes, and price per hour.  Raises BadRequest or TraceFailed."""
    rows = []
    for place, (device, budget, hourly) in enumerate(cells, start=1):
        tell(f"{place} of {len(cells)}: {device.name}")
        try:
            found = study.attempt(device, budget=budget, host=host)
        except Unserved as refused:
            said = str(refused)
            rows.append(Row(device=device, budget=budget, plan=None, shortage=None, price=None, refusal=said))
            continue
        plan, missing = (found, None) if isinstance(found, Plan) else (None, found)
        price = None if plan is None or hourly is None else _each(plan, hourly)
        rows.append(Row(device=device, budget=budget, plan=plan, shortage=missing, price=price))
    return tuple(rows)


def _each(plan: Plan, hourly: float) -> float:
    return hourly * plan.promise.seconds / 3600 / (plan.request.images * plan.request.prompts)


@collecting(SELDOM)
def largest_of(study: Study, kind: Kind, device: Device, *, host: int | None = None, tell: Tell = silent) -> Largest:
    """The largest size of the request's shape, the largest batch in one call, or the most frames within the budget.

    The leanest combination leads the search; the step it ends at is planned, and the next is shown not to fit by the
    whole choice.  Raises BadRequest, TraceFailed, or Infeasible where not even the first step fits.
    """
    if kind == "batch":
        study = replace(study, techniques=tuple(t for t in study.techniques if t.name != "split"), _pricers={})
    growth, budget = Growth(kind=kind, request=study.request), study.request.budget.resolve(device)
    capacity = budget - device.context
    start, proven, lean = growth.now, 0, _leanest(study.at(growth.at(growth.now)), device, budget, host, tell)
    while True:

        def look(step: int, lean: Candidate = lean) -> Look:
            tell(f"looking at {_said(growth, step)}")
            return looked(lean, study.at(growth.at(step)).pricer(device), capacity)

        known = {start: look(start)}
        further = guess(growth, capacity, known, 0, MOST[kind] + 1)
        if start == growth.now and growth.load(further) > FAR * growth.load(start):
            start, lean = further, _leanest(study.at(growth.at(further)), device, budget, host, tell)
            continue
        best = max(last_fitting(look, growth, capacity, known, start), proven)
        if best == MOST[kind]:
            return Largest(kind=kind, plan=study.at(growth.at(best)).plan(device, host=host), next=None, shortage=None)
        beyond = study.at(growth.at(best + 1))
        tell(f"proving that {_said(growth, best + 1)} is too much")
        found = _attempted(beyond, device, budget, host)
        if isinstance(found, Shortage):
            tell(f"planning {_said(growth, max(best, 1))}")
            plan = study.at(growth.at(max(best, 1))).plan(device, host=host)
            return Largest(kind=kind, plan=plan, next=beyond.request, shortage=found)
        start = proven = best + 1
        lean = found


def _leanest(study: Study, device: Device, budget: int, host: int | None, tell: Tell) -> Candidate:
    """What is chosen under the tightest budget that still does, to a factor of TIGHTER; slowest of all, perhaps."""
    lean: Candidate | None = None
    while budget > device.context:
        tell(f"tightening to {format_bytes(budget)}")
        try:
            lean = study.choice(device, budget, host).winner.candidate
        except NothingFits as nothing:
            return lean or nothing.leanest.candidate
        budget = int(budget * TIGHTER)
    return lean or ()


def _attempted(study: Study, device: Device, budget: int, host: int | None) -> Candidate | Shortage:
    """What is chosen, or what is missing."""
    try:
        return study.choice(device, budget, host).winner.candidate
    except NothingFits as nothing:
        return shortage(nothing, study.pricer(device), study.order(device, budget, host))


def _said(growth: Growth, step: int) -> str:
    request = growth.at(step)
    if growth.kind == "size":
        return f"{request.width}×{request.height}"
    return f"{request.images} images" if growth.kind == "batch" else f"{request.frames} frames"
