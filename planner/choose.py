"""Choose: scenes are visited by the least time they can take, until none left can beat what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import NamedTuple

from planner import solve
from planner.pricing import PLACEMENT, Candidate, Priced, Pricer, neutral
from planner.rehearsal import Rehearsal
from planner.scenes import SLACK, Limits, Scene, Scenes


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The winner, how it was found, and what it was compared with."""

    winner: Priced
    rehearsal: Rehearsal
    scene: Scene
    solution: solve.Solution
    scenes: tuple[Scene, ...]
    explored: int
    """Combinations priced on this card so far."""
    pruned: tuple[tuple[Priced, Priced], ...]
    """Candidates that are neither faster nor leaner in any phase than the one they were compared with."""


class NothingFits(Exception):
    """No candidate is within the limits; carries the leanest, its phase that is over, and what would do."""

    def __init__(self, leanest: Priced, evidence: solve.NoSolution) -> None:
        self.leanest, self.evidence = leanest, evidence
        self.phase = leanest.phases[evidence.phase].name
        super().__init__(str(evidence))


def choose(pricer: Pricer, limits: Limits) -> Choice:
    """The best candidate within the limits.  Raises NothingFits."""
    pruned: list[tuple[Priced, Priced]] = []
    made = Scenes(pricer, limits)
    visited: list[str] = []
    hopeful: list[str] = []
    rehearsals: dict[str, Rehearsal] = {}
    refused: set[str] = set()
    best: solve.Solution | None = None

    def latest() -> float:
        return best.seconds * (1 + SLACK) if best else inf

    def runs(solution: solve.Solution) -> bool:
        name = _name_of(solution)
        if name not in rehearsals:
            whole = made.whole(made.called(solution.label), solution)
            rehearsals[name] = pricer.rehearse(whole, limits.capacity, brim=not limits.spare)
        if rehearsals[name].failed:
            refused.add(solution.label)
        return not rehearsals[name].failed

    def decided(solution: solve.Solution) -> int:
        return made.decided(made.called(solution.label), rehearsals[_name_of(solution)])

    def narrow() -> set[str]:
        scenes = map(made.called, refused)
        return {scene.problem.label for scene in scenes if scene.withheld and scene.bound <= latest()}

    def missed() -> dict[str, float]:
        """By scene the seconds that what is withheld there might reach, where these are fewer than the bound."""
        scenes = [made.called(label) for label in hopeful]
        reach = best.bound if best else inf
        labels = [s.problem.label for s in scenes if s.withheld and s.streams and s.bound < reach]
        found = ((label, solve.undercut(made.unburdened(label), reach)) for label in labels)
        return {label: least for label, least in found if least is not None}

    def begun() -> solve.Search:
        return solve.Search((), runs, made.exact, decided)

    possible, search = limits.capacity >= pricer.least, begun()
    for scenes in _by_bound(pricer, made, pruned, latest):
        visited += (scene.problem.label for scene in scenes)
        hopeful += (scene.problem.label for scene in scenes)
        search.extend(scene.problem for scene in scenes)
        while possible:
            best = solve.found(search, SLACK)
            if not (widened := narrow()):
                lower = missed()
                widened = {n for n, least in lower.items() if best is None or least * (1 + SLACK) < best.seconds}
            if not widened:
                break
            for label in sorted(widened):
                made.widen(label)
                search.change(made.called(label).problem)
        if best:
            best = replace(best, bound=min((best.bound, *lower.values())))
        if best is None:  # what they offer will not do, however often it is asked
            hopeful.clear()
            search = begun()
    if best is None:
        problems = [made.called(label).problem for label in visited]
        missing = solve.evidence(problems, sum(bool(seen.failed) for seen in rehearsals.values()), made.exact)
        raise NothingFits(made.settled(made.called(missing.choice.label), missing.choice), missing)
    scene = made.called(best.label)
    return Choice(
        winner=made.settled(scene, best), rehearsal=rehearsals[_name_of(best)], scene=scene, solution=best,
        scenes=tuple(map(made.called, visited)), explored=pricer.priced, pruned=tuple(pruned),
    )  # fmt: skip


def _by_bound(
    pricer: Pricer, scenes: Scenes, pruned: list[tuple[Priced, Priced]], enough: Callable[[], float]
) -> Iterator[list[Scene]]:
    """Scenes by the least time they can take, until that exceeds `enough()`; those together of which none can end it.

    Moving weights adds to the time and takes nothing from what the groups' choices can save; splitting a call never
    shortens it.  So the scene with all weights on the card bounds its siblings, which are priced only then.
    """
    order = count()
    placements = pricer.offered(PLACEMENT, pricer.price(()))
    waiting: list[_Visit] = []
    for prospect in _calls(pricer, pruned):
        candidate = prospect.candidate
        stays = any(option.neutral for option in candidate)  # neutral options of a program may differ in words
        plain = scenes.plain(candidate if stays else neutral(candidate, placements))
        bound = _bound(plain, prospect.seconds)
        exactly = None if prospect.priced else partial(_exactly, pricer, plain, candidate)
        splits = ((), *((option,) for option in pricer.offered("split", plain.priced)))
        for n, each in enumerate(pricer.ordered((*candidate, *split)) for split in splits):
            waiting.append(_Visit(bound, n, next(order), partial(_alone, scenes, each), exactly))
            if plain.priced is prospect.priced:
                waiting.append(_Visit(bound, n, next(order), partial(scenes.streaming, each)))
    heapify(waiting)
    while waiting and waiting[0].bound <= enough():
        reach = waiting[0].bound * (1 + SLACK)
        found: list[Scene] = []
        while waiting and waiting[0].bound <= reach:
            visit = heappop(waiting)
            if visit.exactly:
                heappush(waiting, visit._replace(bound=max(visit.bound, visit.exactly()), exactly=None))
            else:
                found += visit.scenes()
        if found:
            yield found


class _Visit(NamedTuple):
    """Scenes that wait for their turn, the least bound first, then the fewest splits."""

    bound: float
    splits: int
    order: int
    scenes: Callable[[], Iterable[Scene]]
    exactly: Callable[[], float] | None = None
    """A higher bound, which is known only once the scene is priced."""


class _Prospect(NamedTuple):
    """Options that concern the whole call, and the seconds these take at least."""

    candidate: Candidate
    seconds: float
    priced: Priced | None


def _bound(plain: Scene, seconds: float) -> float:
    """What can be saved in a scene is what can be with all weights on the card."""
    return max(plain.bound, seconds - (plain.priced.seconds - plain.bound))


def _exactly(pricer: Pricer, plain: Scene, candidate: Candidate) -> float:
    return _bound(plain, pricer.price(candidate).seconds)


def _calls(pricer: Pricer, pruned: list[tuple[Priced, Priced]]) -> list[_Prospect]:
    """Candidates of the options that concern the whole call, less those another is at least as good as.

    Placements that say how long they take at least are not priced yet.
    """
    found, later = list(pricer.roots()), list[_Prospect]()
    whole = [each for each in pricer.techniques.values() if each.scope == "call" and each.name != "split"]
    for technique in whole:
        grown: list[Priced] = []
        for priced in found:
            options = pricer.offered(technique.name, priced)
            if technique.name == PLACEMENT and technique is whole[-1]:
                least = pricer.least_seconds(priced, options)
                later += (_Prospect(pricer.merged(priced, (o,)), seconds, None) for o, seconds in least.items())
                options = tuple(option for option in options if option not in least)
            others = [other for option in options for other in pricer.able(pricer.merged(priced, (option,)))]
            if technique.name == PLACEMENT or any(option.neutral for option in options):
                grown += others
                continue
            worse = [other for other in others if _no_better(other, priced)]
            pruned += [(other, priced) for other in worse]
            grown += [priced, *(other for other in others if other not in worse)]
        found = grown
    prospects = [*(_Prospect(priced.candidate, priced.seconds, priced) for priced in found), *later]
    standing = pricer.standing([prospect.candidate for prospect in prospects])
    return [prospect for prospect in prospects if prospect.candidate in standing]


def _alone(scenes: Scenes, candidate: Candidate) -> Iterable[Scene]:
    return (scenes.plain(candidate),)


def _name_of(solution: solve.Solution) -> str:
    return "|".join((solution.label, *(offer.name for offer in solution.choice)))


def _no_better(other: Priced, than: Priced) -> bool:
    """Neither faster nor leaner in any phase, nor lighter: weights weigh only once they have been placed."""
    if len(other.phases) != len(than.phases) or _weights(other) < _weights(than):
        return False
    leaner = any(a.peak.total < b.peak.total for a, b in zip(other.phases, than.phases, strict=True))
    return not leaner and other.seconds >= than.seconds


def _weights(priced: Priced) -> int:
    return sum(sum(part.weights) for part in priced.program.components)
