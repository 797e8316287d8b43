"""Depth first through the scenes, under the bounds, with what the replay has said about candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from planner.solve.bounds import SCALE, Bare, Scene, prepare, undominated
from planner.solve.problem import Offer, Problem, Solution, filled, nanoseconds

PATIENCE = 24
"""Refusals in one scene after which only leaner choices are asked about.  Where fragments decide, choices by the
thousand differ in a few bytes: a pipeline of 0.6 MB had 1,356 refused under a budget that nothing could meet."""
STEP = 1 / 32
"""What the first of these steps leaves free of the capacity; after the n-th (1 - STEP)^(n²) of it is left, so that the
ninth leaves less than a tenth."""

Exact: TypeAlias = Callable[[Solution], tuple[Offer, ...]]
"""The offers of a choice, sketches in full."""
Decided: TypeAlias = Callable[[Solution], int]
"""How many of the first offers of a refused choice suffice for the refusal, whatever the others are."""


class Key(NamedTuple):
    """The order in which choices are preferred; `scene` is the place of the problem."""

    changes: int
    time: int
    scene: int
    names: tuple[str, ...]


class Aim(NamedTuple):
    """What to look for within `fidelity` and `limit` ns: the least time, or when `frugal` the least `Key`."""

    fidelity: int
    limit: float = math.inf
    frugal: bool = False
    enough: int = -1
    """Nanoseconds that need not be undercut."""


def quickest(problem: Problem) -> float:
    """Seconds if there were no limits."""
    return problem.seconds + sum(min((offer.seconds for offer in group), default=0.0) for group in problem.groups)


def as_offered(solution: Solution) -> tuple[Offer, ...]:
    """Where nobody knows more than was offered."""
    return tuple(replace(offer, sketch=False) for offer in solution.choice)


def by_all(solution: Solution) -> int:
    """Where nobody knows which offers it was."""
    return len(solution.choice)


class Search:
    """One search over several scenes, with what `accept` has said so far."""

    def __init__(
        self,
        problems: Sequence[Problem],
        accept: Callable[[Solution], bool],
        exact: Exact = as_offered,
        decided: Decided = by_all,
    ) -> None:
        self.problems, self.accept, self.exact, self.decided = list(problems), accept, exact, decided
        self.verdicts: dict[tuple[int, tuple[str, ...]], bool] = {}
        self.ruled_out: set[tuple[int, tuple[str, ...]]] = set()
        """Scenes and the first names of choices that were refused for these."""
        self.stock: dict[tuple[int, int, bool, bool], list[list[Bare]]] = {}
        self.ready: dict[tuple[int, int, bool, bool, int, int | None, float], Scene | None] = {}
        # Scenes that may be fast come first: what they reach dismisses the others.
        self.order = sorted(range(len(problems)), key=lambda scene: quickest(problems[scene]))
        self.explored = 0
        self.refusals = [0] * len(problems)
        self.best: Key | None = None
        self.limit = math.inf

    @property
    def refused(self) -> int:
        """How many choices were not accepted."""
        return sum(not verdict for verdict in self.verdicts.values())

    @property
    def impatient(self) -> bool:
        """Whether choices that fit have been left out."""
        return max(self.refusals) >= PATIENCE

    def hunt(self, aim: Aim) -> Key | None:
        """The best choice that is accepted; each candidate is asked about once."""
        while key := self.reach(aim):
            place, solution = (key.scene, key.names), self.solution(key, key.time)
            if place not in self.verdicts:
                self.verdicts[place] = self.accept(solution)
            if self.verdicts[place]:
                return key
            self.ruled_out.add((key.scene, key.names[: self.decided(solution)]))
            self.refusals[key.scene] += 1
        return None

    def reach(self, aim: Aim) -> Key | None:
        """The best choice not refused so far, known in full: it is no faster and no leaner than its sketch."""
        while key := self.sweep(aim):
            solution = self.solution(key, key.time)
            if not any(offer.sketch for offer in solution.choice):
                return key
            self.fill(key.scene, self.exact(solution))
        return None

    def withheld(self, index: int) -> int:
        """Bytes of a scene's capacity that choices have to leave free by now, after so many were refused."""
        steps = self.refusals[index] // PATIENCE
        return round(self.problems[index].capacity * (1 - (1 - STEP) ** steps**2))

    def fill(self, index: int, offers: tuple[Offer, ...]) -> None:
        """Put offers, one for each group, in the place of their sketches."""
        self.problems[index] = filled(self.problems[index], offers)
        self.stock = {place: groups for place, groups in self.stock.items() if place[0] != index}
        self.ready = {place: scene for place, scene in self.ready.items() if place[0] != index}

    def sweep(self, aim: Aim) -> Key | None:
        """The best choice not refused so far."""
        self.best, self.limit = None, aim.limit
        spoilt = {scene for (scene, _), accepted in self.verdicts.items() if not accepted}
        for index in self.order:
            # A refused choice no longer stands in for those it dominates.
            if scene := self.prepared(index, aim, whole=index in spoilt):
                self.descend(scene, aim, Key(scene.changes, scene.time, index, ()), scene.price, scene.room)
        return self.best

    def prepared(self, index: int, aim: Aim, *, whole: bool) -> Scene | None:
        """The scene made ready, once for sweeps that look for the same: after a refusal nothing else has changed."""
        problem = self.problems[index]
        capacity = problem.capacity - self.withheld(index)
        place = (index, aim.fidelity, aim.frugal, whole, capacity, problem.host, self.limit)
        if place not in self.ready:
            leaner = replace(problem, capacity=capacity)
            self.ready[place] = prepare(leaner, self.offers(index, aim, whole=whole), self.limit)
        return self.ready[place]

    def offers(self, index: int, aim: Aim, *, whole: bool) -> list[list[Bare]]:
        """The offers of a scene that matter; `whole` keeps the dominated ones."""
        place = (index, aim.fidelity, aim.frugal, whole)
        if place not in self.stock:
            groups = [
                [
                    Bare(nanoseconds(o.seconds), o.changes * aim.frugal, o.name, (*o.memory, o.host))
                    for o in group
                    if o.fidelity <= aim.fidelity
                ]
                for group in self.problems[index].groups
            ]
            self.stock[place] = groups if whole else [undominated(group) for group in groups]
        return self.stock[place]

    def descend(self, scene: Scene, aim: Aim, key: Key, price: int, room: int) -> None:
        """Everything below a partial choice, cheapest first; all sums already hold the least of the groups to come."""
        if (key.scene, key.names) in self.ruled_out:
            return
        if len(key.names) == len(scene.groups):
            if self.best is None or key < self.best:
                self.best = key
                if not aim.frugal:
                    self.limit = key.time - 1 if key.time > aim.enough else -math.inf
            return
        for item in scene.groups[len(key.names)]:
            self.explored += 1
            cost, time, left = price + item.price, key.time + item.time, room - item.load
            if cost > self.limit * 2**SCALE:
                break
            if time > self.limit or left & scene.guard != scene.guard:
                continue
            changes, names = key.changes + item.changes, (*key.names, item.name)
            if self.best is None or (changes, max(time, -(-cost >> SCALE)), key.scene, names) <= self.best:
                self.descend(scene, aim, Key(changes, time, key.scene, names), cost, left)

    def solution(self, key: Key, bound: int) -> Solution:
        """The choice with its totals."""
        problem = self.problems[key.scene]
        choice = tuple(
            next(o for o in group if o.name == name) for group, name in zip(problem.groups, key.names, strict=True)
        )
        return Solution(
            label=problem.label,
            choice=choice,
            seconds=key.time / 1e9,
            memory=tuple(map(sum, zip(problem.base, *(o.memory for o in choice), strict=True))),
            host=sum(o.host for o in choice),
            bound=bound / 1e9,
            explored=self.explored,
        )
