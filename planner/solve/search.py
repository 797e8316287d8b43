"""Depth first through the scenes, under the bounds, with what the replay has said about candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from planner.solve.bounds import SCALE, Bare, Scene, pack, prepare, undominated
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


View: TypeAlias = tuple[int, bool, bool]
"""Fidelity, frugality and timelessness."""


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
    timeless: bool = False
    """Whether all offers pass for equally fast, where any choice will do."""

    @property
    def view(self) -> View:
        """What of it decides which offers matter."""
        return self.fidelity, self.frugal, self.timeless


def quickest(problem: Problem) -> int:
    """Nanoseconds if there were no limits."""
    fastest = (min((nanoseconds(offer.seconds) for offer in group), default=0) for group in problem.groups)
    return nanoseconds(problem.seconds) + sum(fastest)


def bare(offer: Offer, aim: Aim) -> Bare:
    """An offer as the search looks at it; changes count for the frugal alone."""
    rows = (*offer.memory, offer.host)
    return Bare(
        0 if aim.timeless else nanoseconds(offer.seconds), offer.changes * aim.frugal, offer.name, rows, pack(rows)
    )


def as_offered(solution: Solution) -> tuple[Offer, ...]:
    """Where nobody knows more than was offered."""
    return tuple(replace(offer, sketch=False) for offer in solution.choice)


def by_all(solution: Solution) -> int:
    """Where nobody knows which offers it was."""
    return len(solution.choice)


class Least(NamedTuple):
    """The best choice of a scene, or what it does not undercut; compared before or after one like it."""

    key: Key
    above: bool
    """Whether it is beyond the key, by an unknown amount."""
    known: bool
    """Whether it is that choice."""


class Search:
    """One search over several scenes, with what `accept` has said so far."""

    def __init__(
        self,
        problems: Sequence[Problem],
        accept: Callable[[Solution], bool],
        exact: Exact = as_offered,
        decided: Decided = by_all,
    ) -> None:
        self.problems: list[Problem] = []
        self.accept, self.exact, self.decided = accept, exact, decided
        self.verdicts: dict[tuple[int, tuple[str, ...]], bool] = {}
        self.ruled_out: set[tuple[int, tuple[str, ...]]] = set()
        """Scenes and the first names of choices that were refused for these."""
        self.bares: dict[tuple[int, int, View], dict[str, tuple[Offer, Bare]]] = {}
        self.stock: dict[tuple[int, View, bool], list[list[Bare]]] = {}
        self.ready: dict[tuple[int, View, bool, int, int | None, float], Scene | None] = {}
        self.quickest: list[int] = []
        self.leasts: dict[Aim, dict[int, Least]] = {}
        """By what is looked for and by scene.  A scene only gets worse: what was its best bounds what is left."""
        self.explored = 0
        self.refusals: list[int] = []
        self.best: Key | None = None
        self.limit = math.inf
        self.extend(problems)

    def extend(self, problems: Iterable[Problem]) -> None:
        """Look through these scenes, too."""
        for problem in problems:
            self.problems.append(problem)
            self.quickest.append(quickest(problem))
            self.refusals.append(0)
            self.renew(len(self.problems) - 1)

    def change(self, problem: Problem) -> None:
        """Take this for the scene of its label, which may offer more now; what was said of its choices holds still."""
        index = next(n for n, known in enumerate(self.problems) if known.label == problem.label)
        if problem.groups is not self.problems[index].groups:
            self.forget(index)
        self.problems[index], self.quickest[index] = problem, quickest(problem)
        self.renew(index)

    def renew(self, index: int) -> None:
        """Nothing is known of what a scene has to offer within its limits."""
        for aim, leasts in self.leasts.items():
            leasts.pop(index, None)
            leasts.update(self.hopeful(index, aim))

    def forget(self, index: int) -> None:
        """A scene's offers are others now."""
        self.stock = {place: groups for place, groups in self.stock.items() if place[0] != index}
        self.ready = {place: scene for place, scene in self.ready.items() if place[0] != index}

    def hopeful(self, index: int, aim: Aim) -> dict[int, Least]:
        """What is known of a scene beforehand; nothing where it cannot be quick enough."""
        key = Key(0, self.quickest[index], index, ())
        return {index: Least(key, above=False, known=False)} if key.time <= aim.limit else {}

    @property
    def refused(self) -> int:
        """How many choices were not accepted."""
        return sum(not verdict for verdict in self.verdicts.values())

    @property
    def impatient(self) -> bool:
        """Whether choices that fit have been left out."""
        return max(self.refusals, default=0) >= PATIENCE

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
            self.doubt(key.scene)
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
        self.forget(index)
        self.doubt(index)

    def doubt(self, index: int) -> None:
        """A scene has got worse."""
        for leasts in self.leasts.values():
            if index in leasts:
                leasts[index] = leasts[index]._replace(known=False)

    def sweep(self, aim: Aim) -> Key | None:
        """The best choice not refused so far.  Only scenes that may have it are searched, and those that got worse."""
        if aim not in self.leasts:
            scenes = (self.hopeful(index, aim) for index in range(len(self.problems)))
            self.leasts[aim] = {index: least for scene in scenes for index, least in scene.items()}
        leasts = self.leasts[aim]
        while leasts:
            best, index = min((least, scene) for scene, least in leasts.items())
            if best.known:
                return best.key
            rival = min((least.key for least in leasts.values() if least.known), default=None)
            if found := self.searched(index, aim, rival):
                leasts[index] = Least(found, above=False, known=True)
            elif rival:
                leasts[index] = Least(rival, above=True, known=False)
            else:
                del leasts[index]
        return None

    def searched(self, index: int, aim: Aim, rival: Key | None) -> Key | None:
        """The best choice of a scene not refused so far, if it is better than a rival."""
        self.best, self.limit = rival, aim.limit
        if rival and not aim.frugal:
            self.limit = min(aim.limit, rival.time - 1)
        # A refused choice no longer stands in for those it dominates.
        spoilt = any(place == index and not accepted for (place, _), accepted in self.verdicts.items())
        if scene := self.prepared(index, aim, whole=spoilt):
            self.descend(scene, aim, Key(scene.changes, scene.time, index, ()), scene.price, scene.room)
        return None if self.best is rival else self.best

    def prepared(self, index: int, aim: Aim, *, whole: bool) -> Scene | None:
        """The scene made ready, once for sweeps that look for the same: after a refusal nothing else has changed."""
        problem = self.problems[index]
        capacity = problem.capacity - self.withheld(index)
        place = (index, aim.view, whole, capacity, problem.host, self.limit)
        if place not in self.ready:
            leaner = replace(problem, capacity=capacity)
            self.ready[place] = prepare(leaner, self.offers(index, aim, whole=whole), self.limit)
        return self.ready[place]

    def offers(self, index: int, aim: Aim, *, whole: bool) -> list[list[Bare]]:
        """The offers of a scene that matter; `whole` keeps the dominated ones."""
        place = (index, aim.view, whole)
        if place not in self.stock:
            groups = [self.seen(index, number, aim) for number in range(len(self.problems[index].groups))]
            self.stock[place] = groups if whole else [undominated(group) for group in groups]
        return self.stock[place]

    def seen(self, index: int, number: int, aim: Aim) -> list[Bare]:
        """The offers of one group; most are those that were looked at before another was filled in."""
        known = self.bares.setdefault((index, number, aim.view), {})
        group = [offer for offer in self.problems[index].groups[number] if offer.fidelity <= aim.fidelity]
        for offer in group:
            if offer.name not in known or known[offer.name][0] is not offer:
                known[offer.name] = offer, bare(offer, aim)
        return [known[offer.name][1] for offer in group]

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
