"""The search against brute force, and its figures against sums done by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import scenes

from planner.solve import (
    Alternative,
    NoSolution,
    Offer,
    Problem,
    Search,
    Solution,
    alternatives,
    found,
    smallest_capacity,
    solve,
)
from planner.solve.search import PATIENCE

SLACKS = st.sampled_from([0.0, 1 / 64, 1 / 8, 1 / 2, 4.0])
GB = 10**9


@dataclass(frozen=True)
class Choice:
    """What brute force looks at."""

    scene: int
    problem: Problem
    offers: tuple[Offer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(offer.name for offer in self.offers)

    @property
    def seconds(self) -> float:
        return self.problem.seconds + sum(offer.seconds for offer in self.offers)

    @property
    def memory(self) -> tuple[int, ...]:
        return tuple(b + sum(o.memory[row] for o in self.offers) for row, b in enumerate(self.problem.base))

    @property
    def host(self) -> int:
        return sum(offer.host for offer in self.offers)

    @property
    def fits(self) -> bool:
        return max(self.memory) <= self.problem.capacity

    @property
    def hosted(self) -> bool:
        return self.problem.host is None or self.host <= self.problem.host

    @property
    def preference(self) -> tuple[int, int, float, int, tuple[str, ...]]:
        fidelity = max((offer.fidelity for offer in self.offers), default=0)
        return fidelity, sum(offer.changes for offer in self.offers), self.seconds, self.scene, self.names


def choices(problems: Sequence[Problem]) -> Iterator[Choice]:
    for index, problem in enumerate(problems):
        for offers in itertools.product(*problem.groups):
            yield Choice(index, problem, offers)


def brute(
    problems: Sequence[Problem], accept: Callable[[str, tuple[str, ...]], bool], slack: float
) -> tuple[Choice | None, float]:
    """The preferred choice and the time that none accepted undercuts."""
    left = sorted((c for c in choices(problems) if c.fits and c.hosted), key=lambda c: c.seconds)
    while left:
        fastest = left[0].seconds
        near = [c for c in left if c.seconds <= fastest * (1 + slack)]
        if good := [c for c in near if accept(c.problem.label, c.names)]:
            return min(good, key=lambda c: c.preference), fastest
        left = left[len(near) :]
    return None, 0.0


def brute_capacity(problems: Sequence[Problem]) -> int:
    everything = list(choices(problems))
    return min(max(c.memory) for c in ([c for c in everything if c.hosted] or everything))


def brute_host(problems: Sequence[Problem]) -> int:
    everything, capacity = list(choices(problems)), brute_capacity(problems)
    return min(
        c.host for c in ([c for c in everything if c.fits] or [c for c in everything if max(c.memory) <= capacity])
    )


def names(solution: Solution) -> tuple[str, ...]:
    return tuple(offer.name for offer in solution.choice)


def moody(seed: int, share: float) -> Callable[[str, tuple[str, ...]], bool]:
    """Refuses that share of all choices, always the same ones."""
    return lambda label, chosen: random.Random(repr((seed, label, chosen))).random() >= share


def agrees(problems: Sequence[Problem], accept: Callable[[str, tuple[str, ...]], bool], slack: float) -> None:
    expected, bound = brute(problems, accept, slack)
    asked: list[tuple[str, tuple[str, ...]]] = []

    def ask(solution: Solution) -> bool:
        asked.append((solution.label, names(solution)))
        return accept(*asked[-1])

    if expected is None:
        with pytest.raises(NoSolution) as caught:
            solve(problems, accept=ask, slack=slack)
        assert caught.value.refused == len(asked)
    else:
        found = solve(problems, accept=ask, slack=slack)
        assert (found.label, names(found)) == (expected.problem.label, expected.names)
        assert (found.seconds, found.memory, found.host) == (expected.seconds, expected.memory, expected.host)
        assert found.bound == bound
    assert len(asked) == len(set(asked)), "asked twice about the same choice"


@given(scenes(), SLACKS)
def test_equals_brute_force(problems: tuple[Problem, ...], slack: float) -> None:
    agrees(problems, lambda label, chosen: True, slack)


@given(scenes(most=2), SLACKS, st.integers(0, 99), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_equals_brute_force_when_choices_are_refused(
    problems: tuple[Problem, ...], slack: float, seed: int, share: float
) -> None:
    agrees(problems, moody(seed, share), slack)


@given(scenes(), SLACKS)
def test_asks_once_when_all_is_accepted(problems: tuple[Problem, ...], slack: float) -> None:
    asked: list[Solution] = []
    try:
        found = solve(problems, accept=lambda solution: not asked.append(solution), slack=slack)
    except NoSolution:
        assert not asked
    else:
        assert [solution.choice for solution in asked] == [found.choice]


@given(scenes(most=2), SLACKS, st.integers(0, 99), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 3))
def test_what_the_first_offers_decide_is_asked_once(
    problems: tuple[Problem, ...], slack: float, seed: int, share: float, deciding: int
) -> None:
    """Choices that share the offers for which one was refused are refused unasked."""
    mood = moody(seed, share)

    def accept(label: str, chosen: tuple[str, ...]) -> bool:
        return mood(label, chosen[:deciding])

    refused: list[tuple[str, tuple[str, ...]]] = []

    def ask(solution: Solution) -> bool:
        accepted = accept(solution.label, names(solution))
        refused.extend(() if accepted else [(solution.label, names(solution)[:deciding])])
        return accepted

    expected, bound = brute(problems, accept, slack)
    try:
        found = solve(problems, accept=ask, slack=slack, decided=lambda solution: deciding)
    except NoSolution:
        assert expected is None
    else:
        assert expected is not None
        assert (found.label, names(found), found.bound) == (expected.problem.label, expected.names, bound)
    assert len(refused) == len(set(refused))


@given(scenes(), st.data(), SLACKS)
def test_sketches_change_nothing(problems: tuple[Problem, ...], data: st.DataObject, slack: float) -> None:
    """Offers that are known to be no less than something are asked about before they win."""
    accept = moody(3, 0.3)

    def less(offer: Offer) -> Offer:
        if not data.draw(st.booleans()):
            return offer
        memory = tuple(max(row - data.draw(st.integers(0, 3)), 0) for row in offer.memory)
        return replace(offer, seconds=offer.seconds * data.draw(st.integers(0, 4)) / 4, memory=memory, sketch=True)

    def exact(solution: Solution) -> tuple[Offer, ...]:
        assert any(offer.sketch for offer in solution.choice)
        groups = next(p for p in problems if p.label == solution.label).groups
        pairs = zip(solution.choice, groups, strict=True)
        return tuple(next(o for o in group if o.name == offer.name) for offer, group in pairs)

    def answer(several: Sequence[Problem]) -> Solution | tuple[Solution, int, int, int, int]:
        try:
            return solve(several, accept=lambda s: accept(s.label, names(s)), slack=slack, exact=exact)
        except NoSolution as none:
            return none.choice, none.capacity, none.over, none.host, none.refused

    sketched = [replace(p, groups=tuple(tuple(map(less, group)) for group in p.groups)) for p in problems]
    assert answer(sketched) == answer(problems)


@given(scenes())
def test_smallest_capacity_equals_brute_force(problems: tuple[Problem, ...]) -> None:
    capacity, found = smallest_capacity(problems)
    assert capacity == brute_capacity(problems) == max(found.memory)
    hosted = any(c.hosted for c in choices(problems))
    at_least = [c for c in choices(problems) if max(c.memory) == capacity and (c.hosted or not hosted)]
    assert found.seconds == min(c.seconds for c in at_least)


@settings(max_examples=50)
@given(scenes())
def test_evidence_equals_brute_force(problems: tuple[Problem, ...]) -> None:
    with pytest.raises(NoSolution) as caught:
        solve(problems, accept=lambda _: False)
    error = caught.value
    assert error.capacity == brute_capacity(problems)
    assert error.host == brute_host(problems)
    assert error.over == error.capacity - problems[0].capacity
    assert error.choice.memory[error.phase] == max(error.choice.memory) == error.capacity
    assert error.refused == sum(c.fits and c.hosted for c in choices(problems))


@settings(max_examples=50)
@given(scenes())
def test_what_the_evidence_asks_for_suffices(problems: tuple[Problem, ...]) -> None:
    try:
        solve(problems)
    except NoSolution as error:
        roomy = [
            replace(
                p, capacity=max(p.capacity, error.capacity), host=None if p.host is None else max(p.host, error.host)
            )
            for p in problems
        ]
        solve(roomy)


@settings(max_examples=50)
@given(scenes(), st.randoms(use_true_random=False), SLACKS)
def test_the_order_of_offers_does_not_matter(
    problems: tuple[Problem, ...], chance: random.Random, slack: float
) -> None:
    shuffled = [
        replace(p, groups=tuple(tuple(chance.sample(group, len(group))) for group in p.groups)) for p in problems
    ]
    accept = moody(1, 0.3)

    def answer(several: Sequence[Problem]) -> tuple[Solution | int, list[tuple[str, ...]]]:
        asked: list[tuple[str, ...]] = []
        try:
            found = solve(several, accept=lambda s: accept(s.label, asked.append(names(s)) or names(s)), slack=slack)
        except NoSolution as error:
            return error.capacity, asked
        return found, asked

    assert answer(problems) == answer(shuffled)


@given(scenes(most=1), st.data(), SLACKS)
def test_a_dominated_offer_never_changes_the_answer(
    problems: tuple[Problem, ...], data: st.DataObject, slack: float
) -> None:
    problem = problems[0]
    if not problem.groups:
        return
    place = data.draw(st.integers(0, len(problem.groups) - 1))
    better = data.draw(st.sampled_from(problem.groups[place]))
    worse = replace(
        better,
        name="z" + better.name,
        seconds=better.seconds + data.draw(st.integers(0, 2)) / 8,
        memory=tuple(row + data.draw(st.integers(0, 2)) for row in better.memory),
        fidelity=better.fidelity + data.draw(st.integers(0, 1)),
        changes=better.changes + data.draw(st.integers(0, 1)),
    )
    group = (worse, *problem.groups[place])
    more = replace(problem, groups=(*problem.groups[:place], group, *problem.groups[place + 1 :]))
    try:
        found = solve([problem], slack=slack)
    except NoSolution:
        with pytest.raises(NoSolution):
            solve([more], slack=slack)
    else:
        assert solve([more], slack=slack) == found


@settings(max_examples=50)
@given(scenes(), SLACKS)
def test_alternatives_tell_the_truth(problems: tuple[Problem, ...], slack: float) -> None:
    accept = moody(2, 0.3)
    try:
        found = solve(problems, accept=lambda s: accept(s.label, names(s)), slack=slack)
    except NoSolution:
        return
    problem = next(p for p in problems if p.label == found.label)
    told = list(alternatives(problem, found, slack=slack))
    assert len(told) == sum(len(group) - 1 for group in problem.groups)
    mine = Choice(0, problem, found.choice)
    for other in told:
        swapped = (*found.choice[: other.group], other.offer, *found.choice[other.group + 1 :])
        holds(other, mine, Choice(0, problem, swapped), accept, found.bound * (1 + slack))


def holds(told: Alternative, mine: Choice, swap: Choice, accept: Callable[..., bool], latest: float) -> None:
    if told.reason == "over":
        assert told.phase is not None
        assert (
            told.amount
            == swap.memory[told.phase] - mine.problem.capacity
            == max(swap.memory) - mine.problem.capacity
            > 0
        )
    elif told.reason == "host":
        assert swap.fits
        assert mine.problem.host is not None
        assert told.amount == swap.host - mine.problem.host > 0
    else:
        assert swap.fits
        assert swap.hosted
        assert told.amount == swap.seconds - mine.seconds
    if told.reason == "refused":
        assert not accept(mine.problem.label, swap.names)
    elif told.reason == "within slack":
        assert swap.seconds <= latest
        assert swap.preference > mine.preference
    elif told.reason == "slower":
        assert told.amount > 0


def offer(name: str, seconds: float, *memory: float, **more: int) -> Offer:
    return Offer(name=name, seconds=seconds, memory=tuple(int(row * GB) for row in memory), **more)


def small_pipeline(capacity: float, host: int | None = None) -> Problem:
    """Encoding, denoising, decoding: encoder and transformer stay or are loaded when needed, the decoder may tile."""
    return Problem(
        label="half precision",
        capacity=int(capacity * GB),
        host=host,
        base=(GB // 2, GB // 2, GB // 2),
        seconds=1.0,
        groups=(
            (offer("stay", 0.0, 4, 3, 3), offer("load", 1.0, 4, 0, 0, host=3, changes=1)),
            (offer("stay", 10.0, 6, 7, 6), offer("load", 13.0, 0, 7, 0, host=6, changes=1)),
            (offer("whole", 2.0, 0.25, 0.25, 5), offer("tiled", 2.5, 0.25, 0.25, 1, changes=1, fidelity=1)),
        ),
    )


# Phases by hand, 0.5 + 0.25 always there:    encode                denoise        decode (whole | tiled)
#   stay stay  13.0 s | 13.5 s                0.75 + 4 + 6 = 10.75  0.75 + 3 + 7   0.5 + 3 + 6 + 5 = 14.5 | 10.5
#   load stay  14.0 s | 14.5 s                10.75                 7.75           0.5 + 6 + 5 = 11.5     |  7.5
#   stay load  16.0 s | 16.5 s                4.75                  10.75          0.5 + 3 + 5 = 8.5      |  4.5
#   load load  17.0 s | 17.5 s                4.75                  7.75           5.5                    |  1.5
@pytest.mark.parametrize(
    ("capacity", "chosen", "seconds"),
    [
        pytest.param(20, ("stay", "stay", "whole"), 13.0, id="slack"),
        pytest.param(14.5, ("stay", "stay", "whole"), 13.0, id="exactly"),
        pytest.param(14.4, ("stay", "stay", "tiled"), 13.5, id="decoding binds"),
        pytest.param(10.74, ("load", "load", "whole"), 17.0, id="encoding and denoising bind"),
        pytest.param(7.75, ("load", "load", "whole"), 17.0, id="exactly the least"),
    ],
)
def test_by_hand(capacity: float, chosen: tuple[str, ...], seconds: float) -> None:
    found = solve([small_pipeline(capacity)])
    assert (names(found), found.seconds, found.bound) == (chosen, seconds, seconds)


def test_too_tight_tells_where_and_by_how_much() -> None:
    with pytest.raises(NoSolution) as caught:
        solve([small_pipeline(7)])
    error = caught.value
    assert (error.phase, error.over, error.capacity) == (1, 750_000_000, 7_750_000_000)
    assert names(error.choice) == ("load", "load", "whole")
    assert smallest_capacity([small_pipeline(7)]) == (error.capacity, error.choice)


def test_too_little_host_memory_is_told_apart() -> None:
    with pytest.raises(NoSolution) as caught:
        solve([small_pipeline(9, host=5)])
    assert caught.value.capacity == 10_750_000_000, "with 5 bytes of host RAM only the encoder can be loaded"
    assert caught.value.host == 9


def test_slack_buys_fidelity() -> None:
    problem = small_pipeline(11.5)
    assert names(solve([problem])) == ("stay", "stay", "tiled")
    assert names(solve([problem], slack=0.05)) == ("load", "stay", "whole")


def test_scenes_compete_and_the_earlier_wins_a_tie() -> None:
    first = small_pipeline(20)
    again, faster = replace(first, label="again"), replace(first, label="faster", seconds=0.5)
    assert solve([first, again]).label == "half precision"
    assert solve([again, first]).label == "again"
    assert solve([first, faster, again], slack=0.0).label == "faster"


def test_a_scene_without_offers_is_exact() -> None:
    nothing = Problem(label="nothing to choose", groups=(), capacity=1, base=(0,), seconds=1.0)
    faithful = Problem(label="faithful", groups=((offer("a", 1.0, 0, fidelity=1),),), capacity=1, base=(0,))
    assert solve([faithful, nothing]).label == "nothing to choose"


def test_alternatives_by_hand() -> None:
    problem = small_pipeline(14.4, host=4)
    found = solve([problem])
    told = {
        (problem.groups[a.group], a.offer.name): (a.reason, a.amount, a.phase) for a in alternatives(problem, found)
    }
    assert list(told.values()) == [("slower", 1.0, None), ("host", 2, None), ("over", 100_000_000, 2)]


def test_a_problem_without_offers_is_refused() -> None:
    with pytest.raises(ValueError, match="group without offers"):
        solve([Problem(label="empty", groups=((),), capacity=1, base=(0,))])


def test_many_combinations_are_no_matter() -> None:
    """10 groups of 20 offers, 10^13 choices, in which the fastest twenty are refused."""
    chance = random.Random(1)
    groups = tuple(
        tuple(
            Offer(
                name=f"{index:02}",
                seconds=(20 - index) / 8,
                memory=tuple(index * chance.randrange(10**8) for _ in range(3)),
            )
            for index in range(20)
        )
        for _ in range(10)
    )
    asked: list[float] = []

    def accept(solution: Solution) -> bool:
        asked.append(solution.seconds)
        return len(asked) > 20

    found = solve([Problem(label="", groups=groups, capacity=4 * GB, base=(0, 0, 0))], accept=accept)
    assert max(found.memory) <= 4 * GB
    assert asked[:21] == sorted(asked[:21])


def crumbs(pieces: int = 12) -> Problem:
    """Fast choices that differ in crumbs, and slow ones that need less and less: 2^12 times 8 of them."""
    small = tuple(
        (Offer(name="a", seconds=0.0, memory=(n,)), Offer(name="b", seconds=(n + 1) / 1024, memory=(0,)))
        for n in range(1, pieces + 1)
    )
    large = tuple(Offer(name=f"{n}", seconds=float(n), memory=(900 - 100 * n,)) for n in range(8))
    return Problem(label="crumbs", groups=(*small, large), capacity=1000, base=(0,))


def test_patience_with_choices_that_differ_in_crumbs_ends() -> None:
    asked: list[Solution] = []

    def refuse(solution: Solution) -> bool:
        asked.append(solution)
        return False

    with pytest.raises(NoSolution) as nothing:
        solve([crumbs()], accept=refuse)
    assert PATIENCE < len(asked) == nothing.value.refused < 9 * PATIENCE


@pytest.mark.parametrize("most", [960, 700, 420, 260])
def test_what_was_not_asked_about_is_no_faster_than_the_bound(most: int) -> None:
    """The replay takes nothing above `most` bytes; a choice is found, and the bound says what was proven."""
    found = solve([crumbs()], accept=lambda solution: solution.memory[0] <= most, slack=0.0)
    fastest = solve([replace(crumbs(), capacity=most)], slack=0.0)
    assert found.memory[0] <= most
    assert found.bound <= fastest.seconds <= found.seconds
    assert found.memory[0] >= 0.7 * most
    assert found.seconds == pytest.approx(solve([replace(crumbs(), capacity=found.memory[0])], slack=0.0).seconds)


@given(scenes(), SLACKS, st.integers(0, 9), st.floats(0, 0.6), st.data())
def test_a_search_goes_on_where_it_stopped(
    problems: tuple[Problem, ...], slack: float, seed: int, share: float, data: st.DataObject
) -> None:
    """Scenes that come later, and offers that were withheld at first, are found as if they had been there."""
    accept = moody(seed, share)
    kept = [data.draw(st.integers(1, max(len(p.groups[-1]), 1))) if p.groups else 0 for p in problems]
    less = [
        replace(p, groups=(*p.groups[:-1], p.groups[-1][:n])) if n else p for p, n in zip(problems, kept, strict=True)
    ]
    asked: list[tuple[str, tuple[str, ...]]] = []

    def ask(solution: Solution) -> bool:
        asked.append((solution.label, names(solution)))
        return accept(*asked[-1])

    search = Search((), ask)
    for first in less:
        search.extend([first])
        found(search, slack)
    for whole in problems:
        search.change(whole)
        last = found(search, slack)
    expected, _ = brute(problems, accept, slack)
    assert (last and (last.label, names(last))) == (expected and (expected.problem.label, expected.names))
    assert len(asked) == len(set(asked)), "asked twice about the same choice"
