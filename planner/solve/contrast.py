"""Why the other offers were not chosen, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from planner.solve.problem import Alternative, Offer, Problem, Solution, nanoseconds


def alternatives(problem: Problem, solution: Solution, *, slack: float = 0.02) -> Iterator[Alternative]:
    """Each offer not chosen, with what speaks against putting it, alone, in the place of the chosen one."""
    for place, (group, chosen) in enumerate(zip(problem.groups, solution.choice, strict=True)):
        yield from (contrast(problem, solution, place, o, slack) for o in group if o.name != chosen.name)


def contrast(problem: Problem, solution: Solution, place: int, offer: Offer, slack: float) -> Alternative:
    """The first that holds: it breaks a limit, is too slow, was refused, intervenes more, is slower."""

    def preference(one: Offer) -> tuple[int, int, int, str]:
        fidelity, changes = max(o.fidelity for o in (*others, one)), sum(o.changes for o in others) + one.changes
        return fidelity, changes, nanoseconds(one.seconds), one.name

    others = solution.choice[:place] + solution.choice[place + 1 :]
    because = partial(Alternative, group=place, offer=offer)
    chosen = solution.choice[place]
    memory = [m - c + o for m, c, o in zip(solution.memory, chosen.memory, offer.memory, strict=True)]
    host = solution.host - chosen.host + offer.host
    if max(memory) > problem.capacity:
        return because(reason="over", amount=max(memory) - problem.capacity, phase=memory.index(max(memory)))
    if problem.host is not None and host > problem.host:
        return because(reason="host", amount=host - problem.host)
    theirs, ours = preference(offer), preference(chosen)
    more = theirs[2] - ours[2]
    time, bound = nanoseconds(solution.seconds) + more, nanoseconds(solution.bound)
    if bound <= time <= bound * (1 + slack) and theirs > ours and (theirs[:2] > ours[:2] or not more):
        return because(reason="within slack", amount=more / 1e9)
    refused = time < bound or (time <= bound * (1 + slack) and theirs < ours)
    return because(reason="refused" if refused else "slower", amount=more / 1e9)
