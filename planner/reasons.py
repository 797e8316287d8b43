"""Reasons: from what the chooser found to a plan with its promise, and what was not chosen and why, with numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

from planner.choose import Choice, NothingFits
from planner.cost import Phase
from planner.device import Device
from planner.errors import BadRequest, TraceFailed
from planner.limits import Growth, Look, last_fitting
from planner.plan import DISK, HOST, Infeasible, PhasePromise, Plan, Promise, Rejection
from planner.pricing import EXPANDABLE, LASTING, Candidate, Priced, Pricer, described, words
from planner.rehearsal import NEAR, Rehearsal
from planner.request import Request
from planner.scenes import Scene
from planner.solve import Alternative, alternatives
from planner.techniques.base import Option
from planner.techniques.packing import BITS
from planner.units import format_bytes, format_seconds

SHOWN = 12
"""Rejections a plan lists at most; nearer ones first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for, and on what."""

    model: str
    dtype: str
    request: Request
    device: Device
    budget: int
    host: int | None = None
    """Bytes of host memory; None: no limit."""

    @property
    def capacity(self) -> int:
        """Bytes torch may reserve."""
        return self.budget - self.device.context


def plan_of(choice: Choice, pricer: Pricer, order: Order) -> Plan:
    """The plan of what was chosen."""
    rejected = tuple(_rejections(choice, order))
    shown = roomy(choice.winner, choice.rehearsal, pricer, order)
    return _plan(choice.winner, shown, pricer, order, choice.solution.bound, choice.explored, rejected)


def plan_as_it_is(priced: Priced, pricer: Pricer, order: Order) -> Plan:
    """The plan of a candidate that was not compared with others.  Raises BadRequest where it does not fit."""
    rehearsal = pricer.rehearse(priced, order.capacity)
    if rehearsal.failed:
        raise BadRequest(
            f"{described(priced.candidate)} lacks {format_bytes(rehearsal.missing)} in {rehearsal.failed} within "
            f"{format_bytes(order.budget)}; allow more."
        )
    return _plan(priced, roomy(priced, rehearsal, pricer, order), pricer, order, priced.seconds, 1, ())


def roomy(winner: Priced, capped: Rehearsal, pricer: Pricer, order: Order) -> Rehearsal:
    """What the run shows: as rehearsed under the cap, but where cuDNN fell back to leaner engines, what it might take.

    Whether it must hangs on fragments of a few MiB, so the promise does not count on it.
    """
    if not capped.leaner:
        return capped
    free = pricer.rehearse(winner, None)
    most = {name: min(allocated, order.capacity) for name, allocated, _ in free.phases}
    phases = tuple((name, max(allocated, most[name]), reserved) for name, allocated, reserved in capped.phases)
    return replace(capped, allocated=max(allocated for _, allocated, _ in phases), phases=phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """No combination fits: the phase that is over, the bytes missing, and the least budget that would do."""

    phase: str
    """The one that is over, `host memory` or `disk`."""
    over: int
    """Bytes missing."""
    smallest_budget: int
    """Bytes with which it would fit, CUDA's context included."""


def shortage(nothing: NothingFits, pricer: Pricer, order: Order) -> Shortage:
    """What is missing, and the budget that would do."""
    evidence = nothing.evidence
    if evidence.over <= 0 and order.host is not None and evidence.host > order.host:
        return Shortage(phase=HOST, over=evidence.host - order.host, smallest_budget=order.budget)
    enough = smallest_capacity(nothing.leanest, pricer, evidence.capacity, max(2**20, evidence.capacity >> 10))
    over = max(evidence.over, enough - order.capacity, 0)
    return Shortage(phase=nothing.phase, over=over, smallest_budget=enough + order.device.context)


def infeasible(nothing: NothingFits, missing: Shortage, pricer: Pricer, order: Order) -> Infeasible:
    """Why nothing fits, the budget that would do, and the largest size."""
    rehearsal = pricer.rehearse(nothing.leanest, None)
    plan = _plan(nothing.leanest, rehearsal, pricer, order, nothing.evidence.choice.bound, 0, ())
    return Infeasible(
        leanest=plan, phase=missing.phase, over=missing.over, smallest_budget=missing.smallest_budget,
        largest_size="" if missing.phase in (HOST, DISK) else _largest_size(nothing.leanest, pricer, order),
    )  # fmt: skip


def _largest_size(leanest: Priced, pricer: Pricer, order: Order) -> str:
    """The largest image of the same shape that the leanest candidate makes within the limits; empty where none does."""
    request = order.request
    if request.height is None or request.width is None:
        return ""
    growth = Growth(kind="size", request=request)

    def look(step: int) -> Look:
        return looked(leanest.candidate, pricer.resized(growth.at(step)), order.capacity)

    try:
        here = Look(fits=False, needs=pricer.rehearse(leanest, None).allocated)
        best = last_fitting(look, growth, order.capacity, {growth.now: here})
    except TraceFailed:  # sizes between are not all sizes the pipeline takes
        return ""
    return f"{growth.at(best).width}×{growth.at(best).height}" if best else ""


def looked(candidate: Candidate, pricer: Pricer, capacity: int) -> Look:
    """Whether one candidate runs within the capacity, and what it takes with room to spare."""
    priced = pricer.price(candidate)
    needs = pricer.rehearse(priced, None).allocated
    return Look(fits=not pricer.rehearse(priced, capacity).failed, needs=needs)


def smallest_capacity(
    priced: Priced, pricer: Pricer, least: int, step: int = 2**20, seen: Rehearsal | None = None
) -> int:
    """The least bytes under which the allocator runs the candidate, to `step` bytes, from a lower bound on.

    `seen`: a rehearsal in which it ran.  Where steps are longer than `NEAR` that is left beside instead of looking into
    what runs near its cap.
    """
    brim = step <= NEAR * least
    low, high = least, max(least, (seen or pricer.rehearse(priced, None)).enough)
    reach = step  # what was just enough mostly ran short once, and else what is held nearly does: steps from there grow
    short = seen is not None and bool(seen.retries)
    sure = seen is not None  # with room for all the call is not made again
    while high - low > step:
        middle = max(high - reach, (low + high) // 2) if short else min(low + reach, (low + high) // 2)
        tried = pricer.rehearse(priced, middle, brim=brim)
        low, high = (middle, high) if tried.failed else (low, max(low, min(middle, tried.enough)))
        reach, sure = reach * 4, sure or not tried.failed
    while not sure and pricer.rehearse(priced, high, brim=brim).failed:
        high += step
    return high if brim else ceil(high * (1 + NEAR))


def promise_of(priced: Priced, rehearsal: Rehearsal, device: Device) -> Promise:
    """What a run of the candidate will show."""
    seen = {name: allocated for name, allocated, _ in rehearsal.phases}
    phases = tuple(_phase(phase, seen.get(phase.name, phase.peak.total)) for phase in priced.phases)
    return Promise(
        phases=phases, allocated=rehearsal.allocated, reserved=rehearsal.reserved, context=device.context,
        host=priced.program.waiting, seconds=priced.seconds,
    )  # fmt: skip


def _phase(phase: Phase, peak: int) -> PhasePromise:
    """Under a tight cap cuDNN takes leaner engines, so the allocator may see less scratch than was priced."""
    scratch = max(min(phase.peak.scratch, peak - phase.peak.weights - phase.peak.activations), 0)
    return PhasePromise(
        name=phase.name, weights=phase.peak.weights, activations=peak - phase.peak.weights - scratch, scratch=scratch,
        peak=peak, seconds=phase.seconds, grown=phase.grown, slower=phase.slower,
    )  # fmt: skip


def _plan(
    winner: Priced,
    rehearsal: Rehearsal,
    pricer: Pricer,
    order: Order,
    bound: float,
    explored: int,
    rejected: tuple[Rejection, ...],
) -> Plan:
    plain = pricer.baseline()
    unbounded = pricer.rehearse(plain, None)
    fits = unbounded.reserved <= order.capacity or (
        unbounded.allocated <= order.capacity and not pricer.rehearse(plain, order.capacity).failed
    )
    return Plan(
        model=order.model, pipeline=winner.program.pipeline, dtype=order.dtype or _dtype(winner), request=order.request,
        device=order.device, budget=order.budget, options=winner.candidate,
        promise=promise_of(winner, rehearsal, order.device), baseline=promise_of(plain, unbounded, order.device),
        baseline_fits=fits, bound=bound, explored=explored, rejected=rejected, notes=tuple(_notes(order, winner)),
        combinations=pricer.combinations_offered,
    )  # fmt: skip


def _dtype(priced: Priced) -> str:
    return next((c.dtype for c in priced.program.components if "denoiser" in c.traits), "float32")


def _notes(order: Order, winner: Priced) -> Iterator[str]:
    if EXPANDABLE in {option.technique for option in winner.candidate} - set(order.request.use):
        yield (
            "Nothing fits in segments of fixed size, for want of room between fragments; expandable segments change "
            "torch's allocator for the whole process until the plan is reverted, and need Linux."
        )
    yield from map(_lasting, (o for o in winner.candidate if o.technique in LASTING and _is_unread(winner)))
    if order.budget - order.device.free > 0:
        yield (
            f"The budget is {format_bytes(order.budget)}, but only {format_bytes(order.device.free)} of "
            f"{order.device.name} are free now; free the rest before the run."
        )


def _is_unread(priced: Priced) -> bool:
    """Whether the pipeline is still to be loaded."""
    return all("unread" in part.traits for part in priced.program.components)


def _lasting(option: Option) -> str:
    if option.value in BITS:
        return (
            f"{words(option)} is done while the pipeline is loaded and cannot be undone; for the weights as they were, "
            "load it anew."
        )
    return (
        f"{words(option)} cannot be undone where the pipeline is loaded for this plan (by planner.load or vram-planner "
        "run): nothing is kept of the weights as they were, as it is by plan.apply on a pipeline that is there."
    )


def _rejections(choice: Choice, order: Order) -> Iterator[Rejection]:
    """Offers of the chosen scene, then other scenes, then what was no better than leaving it out."""
    found: dict[str, str] = {}
    if len(choice.scene.problem.groups) > 1:
        for other in nearest(alternatives(choice.scene.problem, choice.solution), choice.scene.options):
            found.setdefault(_named(other, choice), _why(other, choice))
    for scene in choice.scenes:
        if scene is not choice.scene:
            found.setdefault(described(scene.priced.candidate), _why_scene(scene, choice, order))
    for worse, than in choice.pruned:
        option = next(option for option in worse.candidate if option not in than.candidate)
        found.setdefault(described((option,)), _why_pruned(worse, than))
    yield from (Rejection(what=what, reason=reason) for what, reason in list(found.items())[:SHOWN])


def nearest(others: Iterable[Alternative], options: Mapping[str, Candidate]) -> Iterator[Alternative]:
    """Of settings of the same techniques with the same thing against them, the one that comes nearest to being chosen.

    A component may be streamed in dozens of shares; that each is over the budget is one reason, not dozens.
    """
    families: dict[tuple[object, ...], Alternative] = {}
    for other in others:
        settings = frozenset((option.technique, option.component) for option in options[other.offer.name])
        family = (other.group, settings, other.reason)
        if family not in families or other.amount < families[family].amount:
            families[family] = other
    yield from families.values()


def _named(other: Alternative, choice: Choice) -> str:
    if other.offer.name != "nothing":
        return other.offer.name
    chosen = choice.solution.choice[other.group].name
    return f"without {chosen}"


def _why(other: Alternative, choice: Choice) -> str:
    match other.reason:
        case "over":
            phase = choice.winner.phases[other.phase or 0].name
            needs = choice.scene.problem.capacity + int(other.amount)
            least = "at least " if other.offer.sketch else ""
            return f"needs {least}{format_bytes(needs)} in {phase}, {format_bytes(int(other.amount))} over"
        case "host":
            return f"needs {format_bytes(int(other.amount))} more host memory than there is"
        case "slower":
            return f"{format_seconds(other.amount)} slower"
        case "within slack":
            if other.amount < 0:
                return f"only {format_seconds(-other.amount)} faster, not worth another change"
            return "no faster, and another change"
    return "fits by its sums, but not in the allocator"


def _why_scene(scene: Scene, choice: Choice, order: Order) -> str:
    """The scene by itself: what its leanest choice lacks, or how much slower its fastest is."""
    rows = range(len(scene.problem.base))
    least = [
        scene.problem.base[n] + sum(min(offer.memory[n] for offer in group) for group in scene.problem.groups)
        for n in rows
    ]
    worst = max(rows, key=least.__getitem__)
    if least[worst] > order.capacity:
        over = format_bytes(least[worst] - order.capacity)
        return f"needs at least {format_bytes(least[worst])} in {scene.priced.phases[worst].name}, {over} over"
    slower = scene.bound - choice.solution.seconds
    if slower > 0:
        return f"at least {format_seconds(slower)} slower"
    return "no faster, or more changes for the same time"


def _why_pruned(worse: Priced, than: Priced) -> str:
    slower = worse.seconds - than.seconds
    more = worse.worst.peak.total - than.worst.peak.total
    if more > 0:
        return f"needs {format_bytes(more)} more in {worse.worst.name}, {format_seconds(slower)} slower"
    return f"saves no memory, {format_seconds(slower)} slower" if slower > 0 else "saves neither memory nor time"
