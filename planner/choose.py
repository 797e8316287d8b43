"""Choose: scenes are visited by the least time they can take, until none left can beat what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from heapq import heapify, heappop
from itertools import count
from math import inf

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
            rehearsals[name] = pricer.rehearse(made.whole(made.called(solution.label), solution), limits.capacity)
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

    possible = limits.capacity >= pricer.least
    for scenes in _by_bound(pricer, made, pruned, latest):
        visited += (scene.problem.label for scene in scenes)
        hopeful += (scene.problem.label for scene in scenes)
        while possible:
            problems = [made.called(label).problem for label in hopeful]
            best = solve.found(problems, accept=runs, slack=SLACK, exact=made.exact, decided=decided)
            if not (widened := narrow()):
                lower = missed()
                widened = {n for n, least in lower.items() if best is None or least * (1 + SLACK) < best.seconds}
            if not widened:
                break
            for label in sorted(widened):
                made.widen(label)
        if best:
            best = replace(best, bound=min((best.bound, *lower.values())))
        if best is None:  # what they offer will not do, however often it is asked
            hopeful.clear()
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
    waiting: list[tuple[float, int, int, Callable[[], Iterable[Scene]]]] = []
    for priced in _calls(pricer, pruned):
        stays = any(option.neutral for option in priced.candidate)  # neutral options of a program may differ in words
        plain = scenes.plain(priced.candidate if stays else neutral(priced.candidate, placements))
        bound = max(plain.bound, priced.seconds - (plain.priced.seconds - plain.bound))
        splits = ((), *((option,) for option in pricer.offered("split", priced)))
        for n, candidate in enumerate(pricer.merged(priced, split) for split in splits):
            waiting.append((bound, n, next(order), partial(_alone, scenes, candidate)))
            if plain.priced is priced:
                waiting.append((bound, n, next(order), partial(scenes.streaming, candidate)))
    heapify(waiting)
    while waiting and waiting[0][0] <= enough():
        reach = waiting[0][0] * (1 + SLACK)
        found: list[Scene] = []
        while waiting and waiting[0][0] <= reach:
            found += heappop(waiting)[-1]()
        if found:
            yield found


def _calls(pricer: Pricer, pruned: list[tuple[Priced, Priced]]) -> list[Priced]:
    """Candidates of the options that concern the whole call, less those another is at least as good as."""
    found = list(pricer.roots())
    for technique in pricer.techniques.values():
        if technique.scope != "call" or technique.name == "split":
            continue
        grown: list[Priced] = []
        for priced in found:
            options = pricer.offered(technique.name, priced)
            others = [other for option in options for other in pricer.able(pricer.merged(priced, (option,)))]
            if technique.name == PLACEMENT or any(option.neutral for option in options):
                grown += others
                continue
            worse = [other for other in others if _no_better(other, priced)]
            pruned += [(other, priced) for other in worse]
            grown += [priced, *(other for other in others if other not in worse)]
        found = grown
    return pricer.standing(found)


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
