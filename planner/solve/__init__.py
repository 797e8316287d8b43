"""The search: one offer per group, within memory in every phase, fastest first.  Pure, and exact but for `PATIENCE`.

This is a multiple-choice knapsack with a row per phase.  Dominated offers go, then offers that cannot fit, and the
rest is searched depth first under the Lagrangian bound that puts a price on memory (Fisher 1981,
doi:10.1287/mnsc.27.1.1).  Where choices that fit are refused by the dozen, leaner ones are asked about next, and the
bound of a solution says up to which time none was passed over.  Times are summed in whole nanoseconds and prices are
integers, so every bound is exact and the answer does not depend on the order of offers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from planner.solve.bounds import UNLIMITED
from planner.solve.contrast import alternatives
from planner.solve.problem import Alternative, NoSolution, Offer, Problem, Solution, filled, nanoseconds
from planner.solve.search import Aim, Decided, Exact, Search, as_offered, by_all

__all__ = [
    "Alternative",
    "NoSolution",
    "Offer",
    "Problem",
    "Search",
    "Solution",
    "alternatives",
    "evidence",
    "filled",
    "found",
    "smallest_capacity",
    "solve",
    "undercut",
]


def solve(
    problems: Sequence[Problem],
    *,
    accept: Callable[[Solution], bool] = lambda _: True,
    slack: float = 0.02,
    exact: Exact = as_offered,
    decided: Decided = by_all,
) -> Solution:
    """The choice that intervenes least among those feasible, accepted and at most `slack` slower than the fastest.

    That is: lowest fidelity number, then fewest changes, least time, earliest problem, names.  Where none so near the
    fastest feasible choice is accepted, the fastest of those farther off stands in its place, and so on.  `accept` is
    asked about preferred choices first, never twice about one.  A choice that holds sketches is first put to `exact`,
    which answers with its offers in full.  `decided` says of a refused choice how many of its first offers suffice for
    that: of choices that share them no other is asked about.  Raises `NoSolution`.
    """
    search = Search(problems, accept, exact, decided)
    if (solution := found(search, slack)) is None:
        raise evidence(search.problems, search.refused, exact)
    return solution


def found(search: Search, slack: float) -> Solution | None:
    """The same of a search that may have begun before; None where there is nothing, and quickly."""
    levels = sorted({0, *(offer.fidelity for p in search.problems for group in p.groups for offer in group)})
    unasked = UNLIMITED
    while fastest := search.reach(Aim(levels[-1])):
        hunts = (search.hunt(Aim(level, fastest.time * (1 + slack), frugal=True)) for level in levels)
        key = next(filter(None, hunts), None)
        if search.impatient:
            unasked = min(unasked, fastest.time)
        if key:
            return search.solution(key, min(unasked, fastest.time))
    return None


def undercut(problem: Problem, seconds: float) -> float | None:
    """The least seconds of what is feasible where these are fewer, else None.  Sketches count as they are."""
    level = max(offer.fidelity for group in problem.groups for offer in group)
    fastest = Search((problem,), lambda _: True).sweep(Aim(level, nanoseconds(seconds) - 1 if seconds < inf else inf))
    return fastest.time / 1e9 if fastest else None


def smallest(
    problems: Sequence[Problem],
    limited: Callable[[Problem, int], Problem],
    need: Callable[[Solution], int],
    least: Callable[[Problem], int],
    exact: Exact = as_offered,
) -> int | None:
    """The smallest limit under which anything is feasible, by bisection between what was found and what was refuted.

    Scenes are looked through by what they need at `least`, until that is no smaller than what was found.
    """
    high: int | None = None
    for problem in sorted(problems, key=least):
        low = least(problem)
        if high is not None and low >= high:
            break
        search = Search([problem], lambda _: True, exact)
        # Each scene must first beat the best so far; only then is bisecting worth it.
        limit = UNLIMITED if high is None else high - 1
        while low <= limit:
            search.change(limited(search.problems[0], limit))
            if key := search.hunt(Aim(UNLIMITED, enough=UNLIMITED, timeless=True)):
                high = need(search.solution(key, 0))
            elif high is None or limit == high - 1:
                break
            else:
                low = limit + 1
            limit = (low + high - 1) // 2
    return high


def smallest_capacity(problems: Sequence[Problem], exact: Exact = as_offered) -> tuple[int, Solution]:
    """The least bytes per phase under which some choice fits, host RAM as it is, and the fastest such choice.

    Where no choice keeps to the host RAM, it is left out of account.  ValueError when there is nothing to choose from.
    """
    capacity = smallest(problems, with_capacity, lambda solution: max(solution.memory), least_capacity, exact)
    if capacity is not None:
        near = [with_capacity(problem, capacity) for problem in problems if least_capacity(problem) <= capacity]
        return capacity, solve(near, slack=0.0, exact=exact)
    if all(problem.host is None for problem in problems):
        raise ValueError("Every problem has a group without offers; give each group one, or leave the group out.")
    return smallest_capacity([with_host(problem, None) for problem in problems], exact)


def least_capacity(problem: Problem) -> int:
    """Bytes that its fullest phase has at least: every group at its leanest there."""
    lows = (map(min, zip(*(offer.memory for offer in group), strict=True)) for group in problem.groups if group)
    return max(map(sum, zip(problem.base, *lows, strict=True)))


def least_host(problem: Problem) -> int:
    """Bytes of host RAM that it takes at least."""
    return sum(min(offer.host for offer in group) for group in problem.groups if group)


def with_capacity(problem: Problem, limit: int) -> Problem:
    """The same problem under another capacity."""
    return replace(problem, capacity=limit)


def with_host(problem: Problem, limit: int | None) -> Problem:
    """The same problem under another limit of host RAM."""
    return replace(problem, host=limit)


def evidence(problems: Sequence[Problem], refused: int, exact: Exact = as_offered) -> NoSolution:
    """What stands in the way of a solution, in numbers."""
    capacity, choice = smallest_capacity(problems, exact)
    host = smallest(problems, with_host, lambda solution: solution.host, least_host, exact)
    if host is None:
        roomy = [with_capacity(problem, max(problem.capacity, capacity)) for problem in problems]
        host = smallest(roomy, with_host, lambda solution: solution.host, least_host, exact)
    over = capacity - next(problem.capacity for problem in problems if problem.label == choice.label)
    return NoSolution(choice, over=over, host=host or 0, refused=refused)
