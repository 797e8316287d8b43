"""Pricing: a candidate becomes a program, and that bytes and seconds in each phase."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, product
from math import floor, prod

from planner import workspace
from planner.allocator import segment_size
from planner.cost import Cost, Phase, rounded
from planner.demands import Demand, chosen, demands
from planner.device import Device
from planner.errors import BadRequest, TraceFailed, Unserved
from planner.events import Call
from planner.kernels import Conv, Matmul
from planner.lessons import NONE, Lessons, kind_of
from planner.outline import Leaves, Passes
from planner.precedents import Precedents, Terms
from planner.program import Component, Program
from planner.programs import Programs
from planner.rehearsal import Rehearsal, rehearse
from planner.request import Request
from planner.score import Scores
from planner.streaming import passes
from planner.techniques.base import Haul, Hauling, Option, Outline, Outlining, Scope, Technique

Candidate = tuple[Option, ...]
EXPANDABLE = "expandable_segments"
"""The technique that changes not what is asked of the allocator, but how it answers."""
WRITTEN = 3
"""Calls of a pipeline that are written out: hooks learn in the first, and what the second leaves the third meets."""
PLACEMENT = "placement"
"""The technique of which every candidate has an option: weights have to be somewhere."""
LASTING = ("quantization", "layerwise_casting")
"""What diffusers' and torchao's own code cannot take back, nor what is done while a pipeline is loaded for its plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A candidate with its program and phases."""

    candidate: Candidate
    program: Program
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """Of the whole request."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def worst(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.peak.total)

    def of(self, scope: Scope) -> tuple[int, ...]:
        """Positions of the phases in which components of that role work."""
        names = {c.name for c in self.program.components if scope in c.traits}
        return tuple(n for n, phase in enumerate(self.phases) if phase.name.partition(".")[0] in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """What an option for one component adds to a scene at least; bytes and seconds."""

    seconds: float
    memory: tuple[int, ...]
    """In each phase."""
    host: int
    """Exactly."""


class Pricer:
    """Prices candidates of one model, request and device; each once."""

    def __init__(
        self,
        programs: Programs,
        device: Device,
        request: Request,
        techniques: Sequence[Technique],
        lessons: Lessons = NONE,
    ) -> None:
        self._programs, self._device, self._request, self._lessons = programs, device, request, lessons
        self._demands = {demand.technique: demand for demand in demands(request, techniques)}
        self.techniques = {technique.name: technique for technique in techniques}
        self._cost = Cost(device, request.calls)
        self._known: dict[Candidate, Priced] = {}
        self._scores, self._precedents = Scores(device), Precedents()
        self._offered: dict[tuple[str, Candidate], tuple[Option, ...]] = {}
        self._cut: dict[tuple[str, str, str, tuple[Call, ...]], Passes] = {}

    @property
    def priced(self) -> int:
        """How many candidates were."""
        return len(self._known)

    def knows(self, candidate: Candidate) -> bool:
        """Whether it was priced before."""
        return candidate in self._known

    def price(self, candidate: Candidate) -> Priced:
        """The candidate's program and phases.  Raises Unserved where the card has no kernel for it."""
        if candidate not in self._known:
            program = self._programs.under(candidate, self.techniques)
            _check(program, self._device)
            phases = taught(self._cost.phases(program), program, self._device, self._lessons)
            self._known[candidate] = Priced(candidate=candidate, program=program, phases=phases)
        return self._known[candidate]

    def least_seconds(self, priced: Priced, options: Sequence[Option]) -> dict[Option, float]:
        """Seconds that placements take at least, beside what has been priced with all weights on the card.

        Those that have to be written into the program to tell are left out.
        """
        leaves = Leaves(priced.program, self._cost)
        techniques = ((option, self.techniques[option.technique]) for option in options)
        asked = ((o, each.hauls(priced.program, o)) for o, each in techniques if isinstance(each, Hauling))
        return {option: self._hauled(priced, leaves, hauls) for option, hauls in asked if hauls is not None}

    def _hauled(self, priced: Priced, leaves: Leaves, hauls: Sequence[Haul]) -> float:
        waited, beside = defaultdict[str, float](float), defaultdict[str, float](float)
        pace, splits = self._cost.pace("none"), priced.program.variant.splits
        for haul in hauls:
            for phase, chain in leaves.passes(haul.component):
                if haul.beside:
                    beside[phase] += chain.seconds
                else:
                    waited[phase] += pace.load(chain.size, 0, whole=True)
        return sum(
            max(phase.seconds, beside[phase.name] * splits * phase.slower)
            + waited[phase.name] * splits * phase.slower
            for phase in priced.phases
        )  # fmt: skip

    def sketches(self, scene: Priced, options: Sequence[Option]) -> list[Sketch | None]:
        """What options for one component add to a scene with all weights on the card, without writing them into it.

        None where that cannot be said.
        """
        by_technique = groupby(options, key=lambda option: option.technique)
        return [sketch for name, same in by_technique for sketch in self._sketches(scene, name, tuple(same))]

    def _sketches(self, scene: Priced, name: str, options: Sequence[Option]) -> list[Sketch | None]:
        technique = self.techniques[name]
        if not isinstance(technique, Outlining):
            return [None] * len(options)
        outlines = technique.outlines(scene.program, options)
        if not any(outlines):
            return [None] * len(options)
        cut = self._passes(scene.program, options[0].component)
        weights = held(scene.program.component(options[0].component))
        pairs = zip(options, outlines, strict=True)
        return [self._sketch(scene, option, o, cut, weights) if o else None for option, o in pairs]

    def _sketch(self, scene: Priced, option: Option, outline: Outline, cut: Passes, weights: int) -> Sketch:
        """At the moment of a phase's peak the weights that left are missing and nothing else is.

        Where some are fetched, a pass holds at least what its pieces do.
        """
        burdens, seconds, rows = cut.burdens(outline.away), 0.0, []
        ends = [phase.name for phase in scene.phases if owner(phase.name) == outline.until]
        aboard, arriving = sum(outline.aboard), self._arriving(outline.aboard)
        for phase in scene.phases:
            own, burden = owner(phase.name) == option.component, burdens.get(phase.name)
            gone = outline.kept + (aboard if own else 0) - weights
            rows.append(gone if phase.grown == 1 else floor(gone * phase.grown) - 2)
            if own:
                seconds += (
                    (arriving + (burden.seconds if burden else 0.0)) * phase.slower * scene.program.variant.splits
                )
                arriving = 0.0
            if burden and phase.grown == 1:
                rows[-1] = max(rows[-1], gone + burden.most + phase.peak.weights - phase.peak.total)
            if ends == [phase.name] and phase.grown == 1:  # they leave when it has begun
                rows[-1] = max(rows[-1], gone + aboard + phase.peak.weights - phase.peak.total)
        return Sketch(seconds=seconds, memory=tuple(rows), host=aboard + sum(size for _, size in outline.away))

    def _arriving(self, units: tuple[int, ...]) -> float:
        """Seconds until units have arrived before the first pass; the host waits for their setting out, too."""
        pace = self._cost.pace("none")
        return 2 * pace.set_out(len(units)) + pace.fetch(sum(units)) if units else 0.0

    def _passes(self, program: Program, name: str) -> Passes:
        """The passes of a component, known by its calls."""
        key = program.family, program.tracing, name, tuple(passes(program, name))
        if key not in self._cut:
            self._cut[key] = Passes(program, program.component(name), self._cost)
        return self._cut[key]

    def able(self, candidate: Candidate) -> Iterator[Priced]:
        """The candidate priced, unless the pipeline refuses the request under it, as casts can make it."""
        with suppress(TraceFailed):
            yield self.price(candidate)

    @property
    def least(self) -> int:
        """Bytes under which the allocator refuses every candidate: the segment that holds cuBLAS's workspace."""
        multiplies = any(isinstance(kernel, Matmul) for kernel in self.price(()).program.kernels)
        if self._lessons.ratios or not multiplies:
            return 0
        return segment_size(workspace.cublas(self._device.compute_capability))

    @property
    def combinations_offered(self) -> int:
        """How many combinations the options offered without any other make, those that clash included."""
        whole, placed, resident, shares = 1, 0, True, Counter[str]()
        for name, technique in self.techniques.items():
            options = self.offered(name, self.price(()))
            others = sum(not option.neutral for option in options)
            if technique.scope == "component":
                shares.update(option.component for option in options)
            elif name == PLACEMENT:
                placed, resident = others, others < len(options)
            else:
                whole *= 1 + others
        return whole * (placed + resident * prod(1 + count for count in shares.values()))

    def rehearse(self, priced: Priced, capacity: int | None, *, brim: bool = True) -> Rehearsal:
        """The candidate in PyTorch's allocator; where `brim` is not, a run near the capacity is not looked into."""
        grown = growth(priced.program, self._device, self._lessons)
        room = capacity if capacity is None or grown == 1.0 else int(capacity / grown)
        expandable = any(option.technique == EXPANDABLE for option in priced.candidate)
        program, terms = self._in_full(priced), Terms(room, expandable, brim)
        seen = self._precedents.find(program, terms)
        if seen is None:
            seen = rehearse(
                program, self._device, capacity=room, cost=self._cost, scores=self._scores, expandable=expandable,
                brim=brim,
            )  # fmt: skip
            self._precedents.keep(program, terms, seen)
        return seen if grown == 1.0 else seen.scaled(grown)

    def _in_full(self, priced: Priced) -> Program:
        """The candidate's program with the next call of the pipeline; of many calls those until hooks do the same."""
        calls = min(priced.program.variant.splits + 1, WRITTEN)
        return self._programs.under(priced.candidate, self.techniques, calls)

    def baseline(self) -> Priced:
        """Nothing switched on, every component on the card."""
        offered = (option for name in self.techniques for option in self._options(name, ()))
        return self.price(tuple(option for option in offered if option.neutral))

    def asking(self, request: Request, techniques: Sequence[Technique]) -> Pricer:
        """The same for a request that is recorded alike; what is known of candidates holds for it, too."""
        other = Pricer(self._programs, self._device, request, techniques, self._lessons)
        other._cost, other._scores, other._precedents = self._cost, self._scores, self._precedents
        other._known, other._cut = self._known, self._cut
        return other

    def resized(self, request: Request) -> Pricer:
        """The same for another request of the same model."""
        techniques = tuple(self.techniques.values())
        return Pricer(self._programs.resized(request), self._device, request, techniques, self._lessons)

    def settled(self, candidate: Candidate) -> Candidate:
        """What lets weights stay speaks of all of them; where some are streamed it speaks of the others."""
        bare = tuple(option for option in candidate if not option.neutral)
        if not any(option.component for option in bare):
            return candidate
        return neutral(candidate, self._options(PLACEMENT, bare))

    def roots(self) -> tuple[Priced, ...]:
        """What every candidate starts from: each way to have the techniques the request names.

        Raises BadRequest with the reason where one of them cannot be had.
        """
        found = [self.price(())]
        for demand in self._demands.values():
            technique = self.techniques[demand.technique]
            met = [(p, self._met(demand, technique, p)) for p in found]
            if demand.technique != PLACEMENT:
                found = [self.price(self.merged(priced, (option,))) for priced, options in met for option in options]
        return tuple(found)

    def _met(self, demand: Demand, technique: Technique, priced: Priced) -> tuple[Option, ...]:
        """The options that meet a demand beside those of the demands before it.  Raises BadRequest with the reason."""
        try:
            return chosen(demand, technique, priced.program, self._device, self._request)
        except BadRequest:
            alone = technique.options(self.price(()).program, self._device, self._request)
            before = next((option for option in priced.candidate if self._bars(option, demand)), None)
            if before is None or not any(map(demand.meets, alone)):
                raise
            raise _excluding(before, demand) from None

    def _bars(self, before: Option, demand: Demand) -> bool:
        """Whether what is demanded is not on offer once that is chosen."""
        return not any(map(demand.meets, self._options(demand.technique, (before,))))

    def _clash(self, found: Sequence[Candidate]) -> tuple[Option, Demand] | None:
        """A demand that something chosen before it bars, which was demanded as well; the placement counts as such."""
        for candidate in found:
            for place, option in enumerate(candidate):
                demand = self._demands.get(option.technique)
                asked = (before for before in candidate[:place] if before.technique in self._demands)
                barring = (before for before in asked if demand and self._bars(before, demand))
                if demand and (before := next(barring, None)):
                    return before, demand
        return None

    def stands(self, candidate: Candidate) -> bool:
        """Whether what the request names is still on offer after all that was chosen before it."""
        return all(
            option in self._options(option.technique, candidate[:place])
            for place, option in enumerate(candidate)
            if option.technique in self._demands and option.technique != PLACEMENT
        )

    def standing(self, found: Sequence[Candidate]) -> set[Candidate]:
        """Those that stand.  Raises BadRequest where none does."""
        kept = {candidate for candidate in found if self.stands(candidate)}
        if not kept:
            if clash := self._clash(found):
                raise _excluding(*clash)
            words = ["plain"] * self._request.plain
            asked = ", ".join((*self._request.use, *(f"without {name}" for name in self._request.without), *words))
            raise BadRequest(f"{asked}: no combination has all of it; ask for less.")
        return kept

    def offered(self, name: str, priced: Priced) -> tuple[Option, ...]:
        """What can still be chosen: what the request names is there already, and what it rules out never is."""
        options = self._options(name, priced.candidate)
        if name == PLACEMENT:
            demand, resident = self._demands.get(name), name in self._request.without
            return tuple(o for o in options if (not demand or demand.meets(o)) and (o.neutral or not resident))
        return () if name in self._demands or name in self._request.without else options

    def _options(self, name: str, candidate: Candidate) -> tuple[Option, ...]:
        if (name, candidate) not in self._offered:
            technique = self.techniques.get(name)
            program = self._programs.under(candidate, self.techniques)
            options = technique.options(program, self._device, self._request) if technique else ()
            self._offered[name, candidate] = tuple(o for o in options if o.plain or not self._request.plain)
        return self._offered[name, candidate]

    def merged(self, priced: Priced, options: Candidate) -> Candidate:
        """The candidate with these options too, in order of applying."""
        return self.ordered((*priced.candidate, *options))

    def ordered(self, options: Candidate) -> Candidate:
        """The same options in order of applying."""
        order = list(self.techniques)
        return tuple(sorted(options, key=lambda option: order.index(option.technique)))

    def combinations(self, scope: Scope, priced: Priced) -> list[Candidate]:
        """Every choice among the techniques of one scope, doing nothing included."""
        names = (name for name, technique in self.techniques.items() if technique.scope == scope)
        offered = [(None, *self.offered(name, priced)) for name in names]
        return [tuple(option for option in choice if option is not None) for choice in product(*offered)]


def _check(program: Program, device: Device) -> None:
    """Raise Unserved for convolutions that the card has no kernel for."""
    if workspace.serves_all(device):
        return
    lacking = {
        index: kernel
        for index, kernel in enumerate(program.kernels)  # those of other programs of the family, too
        if isinstance(kernel, Conv) and not workspace.served(kernel, device)
    }
    found = next((lacking[index] for index in program.runs if index in lacking), None) if lacking else None
    if found is not None:
        capability = ".".join(map(str, device.compute_capability))
        raise Unserved(
            f"{program.pipeline} convolves {found.input[1]} channels one by one in {found.dtype} with channels last, "
            f"for which cuDNN has no engine on compute capability {capability} ({device.name}); "
            "ask for dtype float16 or float32."
        )


def held(component: Component) -> int:
    """Bytes of a component's weights on the card."""
    return sum(map(rounded, component.weights))


def owner(module: str) -> str:
    """The component of which a module is called: `vae` for `vae.decode`."""
    return module.partition(".")[0]


def neutral(candidate: Candidate, options: Sequence[Option]) -> Candidate:
    """The candidate with the neutral one among these options in place of the one it has."""
    plain = {option.technique: option for option in options if option.neutral}
    return tuple(plain.get(option.technique, option) for option in candidate)


def described(candidate: Candidate) -> str:
    """The options in words: `placement=model + vae_slicing`."""
    return " + ".join(map(words, candidate)) or "nothing"


def _excluding(before: Option, demand: Demand) -> BadRequest:
    return BadRequest(f"{words(before)} and {demand} exclude each other; leave 1 of the 2 away.")


def words(option: Option) -> str:
    """One option in words; the component it concerns comes before its value."""
    return str(option)


def intervention(candidate: Candidate) -> tuple[int, int]:
    """Fidelity, in it first without what only saves memory, then changes."""
    lean = any(option.lean for option in candidate)
    return 2 * fidelity(candidate) + lean, sum(not option.neutral for option in candidate)


def fidelity(candidate: Candidate) -> int:
    """Of the least faithful option."""
    return max((int(option.fidelity) for option in candidate), default=0)


def taught(phases: tuple[Phase, ...], program: Program, device: Device, lessons: Lessons) -> tuple[Phase, ...]:
    """The phases as runs of such components turned out: seconds by their own ratio, bytes by the program's largest."""
    if not lessons.ratios:
        return phases
    names, grown = {part.name for part in program.components}, growth(program, device, lessons)

    def of(phase: Phase) -> Phase:
        owner = phase.name.partition(".")[0]
        slower = lessons.seconds(*kind_of(program, owner, device.name)) if owner in names else 1.0
        more = int(phase.peak.total * (grown - 1))
        peak = phase.peak._replace(activations=phase.peak.activations + more)
        return replace(phase, seconds=phase.seconds * slower, peak=peak, grown=grown, slower=slower)

    return tuple(map(of, phases))


def growth(program: Program, device: Device, lessons: Lessons) -> float:
    """What promised bytes are multiplied by: the largest ratio of any of the program's components."""
    if not lessons.ratios:
        return 1.0
    known = [kind_of(program, part.name, device.name) for part in program.components]
    return max((lessons.memory(*kind) for kind in known if lessons.knows(*kind)), default=1.0)
