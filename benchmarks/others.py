"""What people use today, as programs: the same kernels, with weights where each of these tools puts them.

Rules from their sources: diffusers 0.42.1 (modes, `ComponentsManager`), unsloth Studio 015bdef0
(`plan_diffusion_memory`), mmgp 3.8.2 (`profile`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from planner.events import Cast, Drop, Empty, Enter, Event, Exit, Load
from planner.pricing import PLACEMENT, Candidate, Priced, Pricer, described, words
from planner.program import Program, calls
from planner.programs import Programs
from planner.request import Request
from planner.techniques.base import Option
from planner.techniques.tiles import Tile

MIB = 2**20
MARGIN = 3 * 10**9
"""`memory_reserve_margin` of diffusers' AutoOffloadStrategy."""
ROOMY = 24 * 10**9
"""Card memory from which mmgp's profiles let whole models stay while they work (its `HighVRAM`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run a request: who would, how, and the program it makes."""

    who: str
    how: str
    program: Program


class Others:
    """The ways of others for one request on one card."""

    def __init__(self, programs: Programs, pricer: Pricer, request: Request, *, total: int, context: int) -> None:
        self._programs, self._pricer, self._request = programs, pricer, request
        self._capacity, self._total = total - context, total
        self._bare = pricer.price(())
        self._tiling = next(iter(_default_tiles(pricer, self._bare)), None)

    def ways(self) -> Iterator[Way]:
        """All of them; a ladder's steps in its order."""
        yield from self._modes()
        yield Way(who="ComponentsManager", how="auto offload", program=auto_offload(self._bare.program, self._capacity))
        yield from self._ladder()
        yield from self._mmgp()

    def _modes(self) -> Iterator[Way]:
        """diffusers' placements by hand, each with and without its tiling."""
        for tiles in self._tilings():
            priced = self._pricer.price(tiles)
            for option in self._pricer.offered(PLACEMENT, priced):
                yield self._way("by hand", (*tiles, option))

    def _ladder(self) -> Iterator[Way]:
        """unsloth's: all resident where its estimate allows, else a step down until one runs."""
        weights = sum(sum(component.weights) for component in self._bare.program.components)
        pixels = (self._request.height or 1024) * (self._request.width or 1024) / 2**20
        clip = (self._request.frames or 0) * pixels * 2**20 * 3 * 4
        needed = weights + ((4096 * MIB + 3 * clip) if clip else 8192 * MIB * pixels) + 2048 * MIB
        allowed = 0.85 * (self._total - max(2048 * MIB, self._total // 10))
        placed = {str(o.value).partition("-")[0]: o for o in self._pricer.offered(PLACEMENT, self._bare)}
        steps: list[Candidate] = [(placed["resident"],)] if needed <= allowed else []
        tiles = self._tilings()[-1]
        steps += [(placed[name],) for name in ("group_block_stream", "group_leaf_stream") if name in placed]
        steps += [(*tiles, placed[name]) for name in ("model", "sequential") if name in placed]
        yield from (self._way("ladder", step) for step in steps)

    def _mmgp(self) -> Iterator[Way]:
        """Its profiles: each model whole on the card while it works, or all of its blocks fetched as they run."""
        base = self._pricer.baseline()
        options = self._pricer.offered("streaming", base)
        wanted = "0/" if self._total >= ROOMY else ""
        for tiles in self._tilings():
            chosen: dict[str, Option] = {}
            for option in options:
                count, _, rest = str(option.value).partition("/")
                whole = not wanted and rest.partition("-")[0] == count and "until" not in rest
                if whole or (wanted and str(option.value).startswith(wanted)):
                    chosen[option.component] = option
            yield self._way(
                "mmgp", (*tiles, *chosen.values(), *(o for o in base.candidate if o.technique == PLACEMENT))
            )

    def _tilings(self) -> list[Candidate]:
        return [(), (self._tiling,)] if self._tiling else [()]

    def _way(self, who: str, options: Candidate) -> Way:
        order = list(self._pricer.techniques)
        candidate = tuple(sorted(options, key=lambda option: order.index(option.technique)))
        how = (
            described(tuple(option for option in candidate if not option.neutral))
            if len(candidate) > 1
            else words(candidate[0])
        )
        return Way(who=who, how=how, program=self._programs.under(candidate, self._pricer.techniques))


def _default_tiles(pricer: Pricer, bare: Priced) -> Iterator[Option]:
    """The option that `enable_tiling()` alone stands for, or the nearest below it."""
    edges = [component.tile for component in bare.program.components if component.tile]
    offered = pricer.offered("vae_tiling", bare)
    return (option for option in offered if edges and Tile.of(option.value).edge <= max(edges))


def auto_offload(program: Program, capacity: int) -> Program:
    """`ComponentsManager.enable_auto_cpu_offload`: a component comes when called; others leave where room is short.

    It counts free memory less a margin; what leaves is the smallest combination that is large enough, or all.
    """
    weights = {component.name: component.weights for component in program.components}
    return replace(program, waiting=sum(map(sum, weights.values()))).with_course(
        tuple(_moved(program, weights, capacity))
    )


def _moved(program: Program, weights: dict[str, tuple[int, ...]], capacity: int) -> Iterator[Event]:
    here: list[str] = []
    for event, called in calls(program.events):
        if isinstance(event, Cast):
            weights[event.component] = event.weights
            if event.component not in here:
                continue
        name = called.partition(".")[0]
        if name in weights and name not in here:
            leaving = _leaving({n: sum(weights[n]) for n in here}, sum(weights[name]), capacity)
            here = [n for n in here if n not in leaving]
            moves: list[Event] = [Drop(n, copied=True) for n in leaving]
            moves += [Empty()] if leaving else []
            yield from (Enter(called, ()), *moves, Load(name, weights[name]), Exit())
            here.append(name)
        yield event


def _leaving(held: Mapping[str, int], size: int, capacity: int) -> tuple[str, ...]:
    """Which components leave so that one of `size` bytes may come."""
    spare = capacity - sum(held.values()) - MARGIN
    if size < spare or not held:
        return ()
    able = [c for r in range(1, len(held) + 1) for c in combinations(held, r)]
    enough = [c for c in able if sum(held[n] for n in c) >= size - spare]
    return min(enough, key=lambda c: sum(held[n] for n in c), default=tuple(held))
