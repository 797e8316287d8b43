"""Scenes: what the solver is asked, made from candidates and their prices.

A scene fixes every choice that concerns the whole call (dtype, split, attention, placement).  Inside it each group has
choices of its own: the denoiser and the autoencoder, which touch only their own phases, or the components whose weights
may be streamed, which add to every phase in which they are on the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from typing import NamedTuple

from planner import solve
from planner.pricing import Candidate, Priced, Pricer, Sketch, described, fidelity, held, intervention
from planner.rehearsal import Rehearsal
from planner.techniques.base import Option, Scope

DENOISER: Scope = "denoiser"
GROUPS: tuple[Scope, ...] = (DENOISER, "autoencoder")
SLACK = 0.02
"""Least intervention: candidates this much slower than the fastest count as equally fast."""
FRAGMENTS = 0.05
"""Share of the capacity that unsplit blocks and fragments may take beyond the sums: SD 1.5 at 512² under 3 GB filled
its 2.53 GB with 2.43 allocated.  Nearer to it leaner choices are priced too, for the allocator may refuse this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes torch may reserve, and bytes of host memory for waiting weights."""

    capacity: int
    host: int | None
    spare: int = 0
    """Bytes of the capacity that choices leave by their sums: fewer are then refused for their fragments, and what runs
    near it all the same is not looked into further."""

    @property
    def sums(self) -> int:
        """What a choice may add up to in any phase."""
        return self.capacity - self.spare


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene that was priced, the solver's problem made of it, and what its offers stand for."""

    priced: Priced
    problem: solve.Problem
    options: dict[str, Candidate]
    """Options behind each offer's name."""
    streams: Mapping[str, Sequence[Option]]
    """Choices for single components."""
    withheld: bool
    """Whether choices that only save memory were left out, since others fit by their sums."""

    @property
    def bound(self) -> float:
        """Seconds below which no choice in this scene gets, whatever the limits."""
        return self.problem.seconds + sum(min(o.seconds for o in group) for group in self.problem.groups)


class Scenes:
    """Makes scenes of one request under its limits."""

    def __init__(self, pricer: Pricer, limits: Limits) -> None:
        self._pricer, self._limits = pricer, limits
        self._plain: dict[Candidate, Scene] = {}
        self._made: dict[str, Scene] = {}

    def plain(self, candidate: Candidate) -> Scene:
        """The scene in which the weights are where the candidate says."""
        if candidate not in self._plain:
            self._plain[candidate] = self._scene(self._pricer.price(candidate), {})
        return self._plain[candidate]

    def streaming(self, candidate: Candidate) -> Iterator[Scene]:
        """Scenes in which components may be streamed, one for each way the denoiser may otherwise run.

        How much of a copy the kernels hide depends on how long they take, so what is chosen for the denoiser is fixed.
        """
        priced = self._pricer.price(candidate)
        if priced.worst.peak.total <= self._limits.sums * (1 - FRAGMENTS):
            return
        streams: dict[str, list[Option]] = {}
        for name, technique in self._pricer.techniques.items():
            for option in self._pricer.offered(name, priced) if technique.scope == "component" else ():
                streams.setdefault(option.component, []).append(option)
        if not streams:
            return
        leanest = self._pricer.price(self._pricer.merged(priced, tuple(options[-1] for options in streams.values())))
        if not self._pricer.stands(leanest.candidate):
            return
        tight = any(leanest.phases[n].peak.total > self._limits.sums for n in leanest.of(DENOISER))
        for combination in self._pricer.combinations(DENOISER, leanest):
            if any(option.lean for option in combination) and not tight:
                continue  # what only saves memory is priced where streaming alone does not save enough
            yield self._scene(self._pricer.price(self._pricer.merged(priced, combination)), streams)

    def called(self, label: str) -> Scene:
        """The scene of that label, as far as it is known by now."""
        return self._made[label]

    def widen(self, label: str) -> None:
        """Offer what was withheld there, too: what fits by its sums may be refused by the allocator."""
        scene = self.called(label)
        self._scene(scene.priced, scene.streams, fragments=inf)

    def unburdened(self, label: str) -> solve.Problem:
        """That scene as if something withheld took no memory and no time beyond the quickest that is offered.

        Where components are streamed an autoencoder that takes less leaves more weights on the card, or lets less host
        memory do.
        """
        scene = self.called(label)
        rows, own = scene.priced.of(GROUPS[-1]), scene.problem.groups[-1]
        weights = (phase.peak.weights if n in rows else 0 for n, phase in enumerate(scene.priced.phases))
        least = solve.Offer(name="withheld", seconds=min(offer.seconds for offer in own), memory=tuple(weights))
        return replace(scene.problem, groups=(*scene.problem.groups[:-1], (least,)))

    def exact(self, solution: solve.Solution) -> tuple[solve.Offer, ...]:
        """The offers of a solution with sketches priced, here and in what `called` answers from now on."""
        scene = self.called(solution.label)
        offers = tuple(
            self._streamed(scene.priced, scene.options[offer.name]) if offer.sketch else offer
            for offer in solution.choice
        )
        self._made[solution.label] = replace(scene, problem=solve.filled(scene.problem, offers))
        return offers

    def decided(self, scene: Scene, seen: Rehearsal) -> int:
        """How many of a scene's groups, from the first, had a part in running out of memory.

        The denoiser's and the autoencoder's touch their own phases alone, the first call of which comes later, perhaps.
        """
        phases, groups = scene.priced.phases, list(scene.problem.groups)
        reached = next((n for n, phase in enumerate(phases) if phase.name == seen.failed), len(phases))
        if seen.calls:
            return len(groups)
        for scope in reversed(GROUPS[1:] if scene.streams else GROUPS):
            if rows := scene.priced.of(scope):
                if min(rows) <= reached:
                    break
                groups.pop()
        return len(groups)

    def whole(self, scene: Scene, solution: solve.Solution) -> Priced:
        """The candidate a solution stands for."""
        chosen = tuple(option for offer in solution.choice[1:] for option in scene.options[offer.name])
        return self._pricer.price(self._pricer.merged(scene.priced, chosen))

    def settled(self, scene: Scene, solution: solve.Solution) -> Priced:
        """The same in the words of what weights then do."""
        priced = self.whole(scene, solution)
        return replace(priced, candidate=self._pricer.settled(priced.candidate))

    def _scene(self, priced: Priced, streams: Mapping[str, Sequence[Option]], *, fragments: float = FRAGMENTS) -> Scene:
        """The solver's problem for one scene; `streams` are choices for single components, which then have groups."""
        options: dict[str, Candidate] = {}
        whole = [held(priced.program.component(name)) for name in streams]
        groups = [self._streams(priced, choices, options) for choices in streams.values()]
        room = _room(self._limits.sums + sum(whole), groups, len(priced.phases))
        open_ = GROUPS[1:] if streams else GROUPS
        scopes = [(scope, rows) for scope in open_ if (rows := priced.of(scope))]
        mine = {row for _, rows in scopes for row in rows}
        least, withheld = sum(phase.seconds for n, phase in enumerate(priced.phases) if n not in mine), False
        for scope, rows in scopes:
            choices = self._pricer.combinations(scope, priced)
            offers = tuple(self._offers(priced, choices, rows, room, least, fragments, options))
            withheld |= fragments < inf and len(offers) < len(choices)
            groups.append(offers)
            least += min(offer.seconds for offer in offers)
        problem = solve.Problem(
            label=described(priced.candidate) + (" + streaming" if streams else ""),
            groups=((self._offer(priced, (), range(0), priced),), *groups),
            base=tuple((0 if n in mine else phase.peak.total) - sum(whole) for n, phase in enumerate(priced.phases)),
            capacity=self._limits.sums, host=self._limits.host,
            seconds=sum(phase.seconds for n, phase in enumerate(priced.phases) if n not in mine),
        )  # fmt: skip
        self._made[problem.label] = Scene(
            priced=priced, problem=problem, options=options, streams=streams, withheld=withheld
        )  # fmt: skip
        return self._made[problem.label]

    def _streams(
        self, scene: Priced, choices: Sequence[Option], options: dict[str, Candidate]
    ) -> tuple[solve.Offer, ...]:
        """A component with its weights on the card throughout, or streamed in one of these ways.

        One that leaves least in some phase, as far as sketches tell, is priced: what the other groups may take.
        """
        weights = held(scene.program.component(choices[0].component))
        sketches = zip(choices, self._pricer.sketches(scene, choices), strict=True)
        resident = solve.Offer(name=described(()), seconds=0.0, memory=(weights,) * len(scene.phases))
        offers = [
            resident,
            *(
                self._streamed(scene, (option,))
                if made is None or self._pricer.knows(self._pricer.merged(scene, (option,)))
                else _sketched(option, made, weights)
                for option, made in sketches
            ),
        ]
        options |= {offer.name: choice for offer, choice in zip(offers, ((), *((o,) for o in choices)), strict=True)}
        for row in range(len(scene.phases)):
            least = min(offers, key=lambda offer: offer.memory[row])
            if least.sketch:
                offers[offers.index(least)] = self._streamed(scene, options[least.name])
        return tuple(offers)

    def _streamed(self, scene: Priced, choice: Candidate) -> solve.Offer:
        """One way to stream a component; rows count all its weights, so that none is negative."""
        weights = held(scene.program.component(choice[0].component))
        priced = self._pricer.price(self._pricer.merged(scene, choice))
        more = zip(priced.phases, scene.phases, strict=True)
        return solve.Offer(
            name=described(choice),
            seconds=priced.seconds - scene.seconds,
            memory=tuple(weights + phase.peak.total - before.peak.total for phase, before in more),
            host=priced.program.waiting - scene.program.waiting,
            fidelity=fidelity(choice),
            changes=len(choice),
        )

    def _offers(
        self,
        priced: Priced,
        choices: Sequence[Candidate],
        rows: Sequence[int],
        room: _Room,
        rest: float,
        fragments: float,
        options: dict[str, Candidate],
    ) -> Iterator[solve.Offer]:
        """Choices of one group, those that intervene least first, as long as more of them can matter.

        Less faithful choices and lean ones only save memory: they are priced where none before them fits, and take no
        less time than the fastest of those.  So once one fits that is within the slack of that time, where the other
        phases take `rest` seconds at least, no later choice can be preferred but by less than the slack.  `fragments`:
        the share of the capacity that what fits has to leave.
        """
        fastest = fitting = enough = inf
        grouped = {row for scope in GROUPS for row in priced.of(scope)}
        elsewhere = (n for n in range(len(priced.phases)) if n not in grouped)
        hopeless = any(priced.phases[n].peak.total > room.most[n] for n in elsewhere)
        hopeless |= any(priced.phases[n].peak.weights > room.most[n] for n in rows)
        level = 0
        for (reach, _), same in groupby(sorted(choices, key=intervention), key=intervention):
            if reach > level:
                level, enough = reach, fastest + SLACK * (rest + fastest)
                if fitting < inf or hopeless:
                    return
            for choice in same:
                if level and fitting <= enough:
                    return
                offer = self._offer(self._pricer.price(self._pricer.merged(priced, choice)), choice, rows, priced)
                options[offer.name] = choice
                fastest = min(fastest, offer.seconds)
                if all(offer.memory[n] <= room.sure[n] - self._limits.sums * fragments for n in rows):
                    fitting = min(fitting, offer.seconds)
                yield offer

    def _offer(self, priced: Priced, choice: Candidate, rows: Sequence[int], scene: Priced) -> solve.Offer:
        own = choice if rows else scene.candidate
        return solve.Offer(
            name=described(own),
            host=0 if rows else priced.program.waiting,
            seconds=sum(priced.phases[n].seconds for n in rows),
            memory=tuple(priced.phases[n].peak.total if n in rows else 0 for n in range(len(scene.phases))),
            fidelity=fidelity(own),
            changes=sum(not option.neutral for option in own),
        )


def _sketched(option: Option, sketch: Sketch, weights: int) -> solve.Offer:
    """One way to stream a component as far as it is known without writing it into the program."""
    return solve.Offer(
        name=described((option,)), seconds=sketch.seconds, memory=tuple(weights + more for more in sketch.memory),
        host=sketch.host, fidelity=fidelity((option,)), changes=1, sketch=True,
    )  # fmt: skip


class _Room(NamedTuple):
    """Bytes of each phase for all else when every component is at its leanest, where rows count its weights too."""

    most: list[int]
    """As far as sketches tell."""
    sure: list[int]


def _room(most: int, groups: Sequence[Sequence[solve.Offer]], phases: int) -> _Room:
    known = [[offer for offer in group if not offer.sketch] for group in groups]
    return _Room(*(
        [most - sum(min(offer.memory[n] for offer in group) for group in each) for n in range(phases)]
        for each in (groups, known)
    ))  # fmt: skip
