"""Choose: scenes and offers are made from what the techniques offer, priced, and handed to the solver.

A scene fixes every choice that concerns the whole call (dtype, split, attention, placement).  Inside it each group of
phases (the denoiser's, the autoencoder's) has its own choices, which touch no other phase.  Scenes are visited by a
lower bound on their time, and the visit ends where no scene left can beat what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop
from itertools import count, groupby, product
from math import inf

from planner import solve
from planner.cost import Cost, Phase
from planner.device import Device
from planner.program import Program, Variant
from planner.programs import Programs
from planner.rehearsal import Rehearsal, rehearse
from planner.request import Request
from planner.techniques.base import Option, Scope, Technique

GROUPS: tuple[Scope, ...] = ("denoiser", "autoencoder")
SLACK = 0.02
"""Least intervention: candidates this much slower than the fastest count as equally fast."""
FRAGMENTS = 0.05
"""Share of the capacity that unsplit blocks and fragments may take beyond the sums: SD 1.5 at 512² under 3 GB filled
its 2.53 GB with 2.43 allocated.  Nearer to it leaner choices are priced too, for the allocator may refuse this one."""

Candidate = tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes torch may reserve, and bytes of host memory for waiting weights."""

    capacity: int
    host: int | None


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
class Scene:
    """A scene that was priced, the solver's problem made of it, and what its offers stand for."""

    priced: Priced
    problem: solve.Problem
    options: dict[str, Candidate]
    """Options behind each offer's name."""

    @property
    def bound(self) -> float:
        """Seconds below which no choice in this scene gets, whatever the limits."""
        return self.problem.seconds + sum(min(o.seconds for o in group) for group in self.problem.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The winner, how it was found, and what it was compared with."""

    winner: Priced
    rehearsal: Rehearsal
    scene: Scene
    solution: solve.Solution
    scenes: tuple[Scene, ...]
    explored: int
    pruned: tuple[tuple[Priced, Priced], ...]
    """Candidates that are neither faster nor leaner in any phase than the one they were compared with."""


class NothingFits(Exception):
    """No candidate is within the limits; carries the leanest, its phase that is over, and what would do."""

    def __init__(self, leanest: Priced, evidence: solve.NoSolution) -> None:
        self.leanest, self.evidence = leanest, evidence
        self.phase = leanest.phases[evidence.phase].name
        super().__init__(str(evidence))


class Chooser:
    """Prices candidates of one model, request and device."""

    def __init__(self, programs: Programs, device: Device, request: Request, techniques: Sequence[Technique]) -> None:
        self._programs, self._device, self._request = programs, device, request
        self._techniques = {technique.name: technique for technique in techniques}
        self._cost = Cost(device, request.calls)
        self._known: dict[Candidate, Priced] = {}

    def price(self, candidate: Candidate) -> Priced:
        """The candidate's program and phases."""
        if candidate not in self._known:
            variant = Variant()
            for option in candidate:
                variant = self._techniques[option.technique].variant(variant, option)
            program = self._programs.get(variant)
            for option in candidate:
                program = self._techniques[option.technique].rewrite(program, option)
            phases = self._cost.phases(program)
            self._known[candidate] = Priced(candidate=candidate, program=program, phases=phases)
        return self._known[candidate]

    def rehearse(self, priced: Priced, capacity: int | None) -> Rehearsal:
        """The candidate in PyTorch's allocator."""
        return rehearse(priced.program, self._device, capacity=capacity, cost=self._cost)

    def baseline(self) -> Priced:
        """Nothing switched on, every component on the card."""
        bare = self.price(())
        offered = (option for name in self._techniques for option in self._offered(name, bare))
        return self.price(self._merged(bare, tuple(option for option in offered if option.neutral)))

    def resized(self, request: Request) -> Chooser:
        """The same for another request of the same model."""
        return Chooser(self._programs.resized(request), self._device, request, tuple(self._techniques.values()))

    def choose(self, limits: Limits) -> Choice:
        """The best candidate within the limits.  Raises NothingFits."""
        pruned: list[tuple[Priced, Priced]] = []
        scenes: dict[str, Scene] = {}
        rehearsals: dict[str, Rehearsal] = {}
        best: solve.Solution | None = None

        def latest() -> float:
            return best.seconds * (1 + SLACK) if best else inf

        def runs(solution: solve.Solution) -> bool:
            name = _name_of(solution)
            if name not in rehearsals:
                rehearsals[name] = self.rehearse(self._whole(scenes[solution.label], solution), limits.capacity)
            return not rehearsals[name].failed

        for scene in self._by_bound(limits, pruned, latest):
            scenes[scene.problem.label] = scene
            try:
                best = solve.solve([s.problem for s in scenes.values()], accept=runs, slack=SLACK)
            except solve.NoSolution as evidence:
                missing = evidence
        if best is None:
            raise NothingFits(self._whole(scenes[missing.choice.label], missing.choice), missing)
        scene = scenes[best.label]
        return Choice(
            winner=self._whole(scene, best), rehearsal=rehearsals[_name_of(best)], scene=scene, solution=best,
            scenes=tuple(scenes.values()), explored=len(self._known), pruned=tuple(pruned),
        )  # fmt: skip

    def _by_bound(
        self, limits: Limits, pruned: list[tuple[Priced, Priced]], enough: Callable[[], float]
    ) -> Iterator[Scene]:
        """Scenes by the least time they can take, until that exceeds `enough()`.

        Moving weights adds to the time and takes nothing from what the groups' choices can save; splitting a call never
        shortens it.  So the scene with all weights on the card bounds its siblings, which are priced only then.
        """
        order = count()
        waiting: list[tuple[float, int, int, Priced, Option | None]] = []
        made: dict[Candidate, Scene] = {}
        for priced in self._calls(pruned):
            plain = self.price(_neutral(priced.candidate, self._offered("placement", self.price(()))))
            if plain.candidate not in made:
                made[plain.candidate] = self._scene(plain, limits)
            saved = plain.seconds - made[plain.candidate].bound
            bound = max(made[plain.candidate].bound, priced.seconds - saved)
            splits = enumerate(self._offered("split", priced), start=1)
            waiting += [(bound, 0, next(order), priced, None), *((bound, n, next(order), priced, o) for n, o in splits)]
        heapify(waiting)
        while waiting and waiting[0][0] <= enough():
            _, _, _, priced, option = heappop(waiting)
            whole = priced if option is None else self.price(self._merged(priced, (option,)))
            yield made.get(whole.candidate) or self._scene(whole, limits)

    def _calls(self, pruned: list[tuple[Priced, Priced]]) -> list[Priced]:
        """Candidates of the options that concern the whole call, less those another is at least as good as."""
        found = [self.price(())]
        for technique in self._techniques.values():
            if technique.scope != "call" or technique.name == "split":
                continue
            grown: list[Priced] = []
            for priced in found:
                options = self._offered(technique.name, priced)
                others = [self.price(self._merged(priced, (option,))) for option in options]
                if any(option.neutral for option in options):
                    grown += others
                    continue
                worse = [other for other in others if _no_better(other, priced)]
                pruned += [(other, priced) for other in worse]
                grown += [priced, *(other for other in others if other not in worse)]
            found = grown
        return found

    def _scene(self, priced: Priced, limits: Limits) -> Scene:
        """The solver's problem for one scene."""
        options: dict[str, Candidate] = {}
        groups: list[tuple[solve.Offer, ...]] = [(self._offer(priced, (), range(0), priced),)]
        scopes = [(scope, rows) for scope in GROUPS if (rows := priced.of(scope))]
        mine = {row for _, rows in scopes for row in rows}
        least = sum(phase.seconds for n, phase in enumerate(priced.phases) if n not in mine)
        for scope, rows in scopes:
            offers = tuple(self._offers(priced, scope, rows, limits.capacity, least, options))
            groups.append(offers)
            least += min(offer.seconds for offer in offers)
        base = tuple(0 if n in mine else phase.peak.total for n, phase in enumerate(priced.phases))
        waiting = 0 if _stays(priced) else sum(sum(c.weights) for c in priced.program.components)
        groups[0] = (replace(groups[0][0], host=waiting),)
        problem = solve.Problem(
            label=described(priced.candidate), groups=tuple(groups), base=base,
            capacity=limits.capacity, host=limits.host,
            seconds=sum(phase.seconds for n, phase in enumerate(priced.phases) if n not in mine),
        )  # fmt: skip
        return Scene(priced=priced, problem=problem, options=options)

    def _offers(
        self,
        priced: Priced,
        scope: Scope,
        rows: Sequence[int],
        capacity: int,
        rest: float,
        options: dict[str, Candidate],
    ) -> Iterator[solve.Offer]:
        """Choices of one group, those that intervene least first, as long as more of them can matter.

        Less faithful choices and lean ones only save memory: they are priced where none before them fits, and take no
        less time than the fastest of those.  So once one fits that is within the slack of that time, where the other
        phases take `rest` seconds at least, no later choice can be preferred but by less than the slack.
        """
        per_technique = [(None, *self._offered(t.name, priced)) for t in self._techniques.values() if t.scope == scope]
        choices = [tuple(o for o in combination if o is not None) for combination in product(*per_technique)]
        fastest = fitting = enough = inf
        elsewhere = (phase.peak.total for n, phase in enumerate(priced.phases) if not _any_group(priced, n))
        hopeless = max(elsewhere, default=0) > capacity or max(priced.phases[n].peak.weights for n in rows) > capacity
        level = 0
        for (reach, _), same in groupby(sorted(choices, key=_intervention), key=_intervention):
            if reach > level:
                level, enough = reach, fastest + SLACK * (rest + fastest)
                if fitting < inf or hopeless:
                    return
            for choice in same:
                if level and fitting <= enough:
                    return
                offer = self._offer(self.price(self._merged(priced, choice)), choice, rows, priced)
                options[offer.name] = choice
                fastest = min(fastest, offer.seconds)
                if max(offer.memory) <= capacity * (1 - FRAGMENTS):
                    fitting = min(fitting, offer.seconds)
                yield offer

    def _offer(self, priced: Priced, choice: Candidate, rows: Sequence[int], scene: Priced) -> solve.Offer:
        own = choice if rows else scene.candidate
        return solve.Offer(
            name=described(own),
            seconds=sum(priced.phases[n].seconds for n in rows),
            memory=tuple(priced.phases[n].peak.total if n in rows else 0 for n in range(len(scene.phases))),
            fidelity=_fidelity(own),
            changes=sum(not option.neutral for option in own),
        )

    def _whole(self, scene: Scene, solution: solve.Solution) -> Priced:
        chosen = (option for offer in solution.choice[1:] for option in scene.options[offer.name])
        return self.price(self._merged(scene.priced, tuple(chosen)))

    def _offered(self, name: str, priced: Priced) -> tuple[Option, ...]:
        technique = self._techniques.get(name)
        return technique.options(priced.program, self._device, self._request) if technique else ()

    def _merged(self, priced: Priced, options: Candidate) -> Candidate:
        order = list(self._techniques)
        return tuple(sorted((*priced.candidate, *options), key=lambda option: order.index(option.technique)))


def _any_group(priced: Priced, row: int) -> bool:
    return any(row in priced.of(scope) for scope in GROUPS)


def _neutral(candidate: Candidate, options: Sequence[Option]) -> Candidate:
    """The candidate with the neutral one among these options in place of the one it has."""
    plain = {option.technique: option for option in options if option.neutral}
    return tuple(plain.get(option.technique, option) for option in candidate)


def described(candidate: Candidate) -> str:
    """The options in words: `placement=model + vae_slicing`."""
    words = (f"{o.technique}={o.value}" if o.value != "" else o.technique for o in candidate)
    return " + ".join(words) or "nothing"


def _name_of(solution: solve.Solution) -> str:
    return "|".join((solution.label, *(offer.name for offer in solution.choice)))


def _intervention(candidate: Candidate) -> tuple[int, int]:
    """Fidelity, in it first without what only saves memory, then changes."""
    lean = any(option.lean for option in candidate)
    return 2 * _fidelity(candidate) + lean, sum(not option.neutral for option in candidate)


def _fidelity(candidate: Candidate) -> int:
    return max((int(option.fidelity) for option in candidate), default=0)


def _no_better(other: Priced, than: Priced) -> bool:
    """Neither faster nor leaner in any phase."""
    if len(other.phases) != len(than.phases):
        return False
    leaner = any(a.peak.total < b.peak.total for a, b in zip(other.phases, than.phases, strict=True))
    return not leaner and other.seconds >= than.seconds


def _stays(priced: Priced) -> bool:
    """Whether all weights are on the card before the call."""
    return any(option.neutral for option in priced.candidate)
