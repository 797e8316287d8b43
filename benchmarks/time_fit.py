"""Predicted seconds against published ones, and the fit of the few figures that say what kernels reach of a card.

python benchmarks/time_fit.py            # the table as things are, benchmarks/results/time.md
python benchmarks/time_fit.py --fit      # fits planner/efficiency.py's figures first, and prints them

timings.csv holds the published figures, and why a row is left out where it is.  A row is priced as the planner prices
plans: its program is recorded from the pipeline's profile and goes through `planner.cost`.  The fit minimises the
median-like sum of |log(predicted ÷ published)|, cut at a factor of two, each (card, source, model) counting by the root
of its rows; so no page with many rows outweighs the others, and no single wrong row bends the figures.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from functools import cache
from itertools import combinations, starmap
from math import exp, log
from pathlib import Path

from planner import profiles, tasks
from planner.cards import card
from planner.cost import Cost
from planner.device import Device
from planner.efficiency import FITTED, Efficiency
from planner.events import Call, Enter, Exit, Run
from planner.kernels import Attention, Kernel, Plain
from planner.offload import model_offload, sequential_offload
from planner.pace import Pace
from planner.program import Component, Program, Variant, calls
from planner.programs import FromProfile, Programs
from planner.request import Request
from planner.study import cache_folder
from planner.techniques import DEFAULT, Option

FOLDER = Path(__file__).parent
STEPS = 2
"""Steps that are recorded; all steps of a call take the same time."""
FIRST_FLASH = 2.0
"""Operations beside the products of fused attention before torch 2.2 against today: FlashAttention-2 does fewer of them
(arXiv:2307.08691, §3.1)."""
MOVES = {"resident": lambda program: program, "model": model_offload, "sequential": sequential_offload}
TECHNIQUES = ("dtype", "layout", "attention", "running", "tile", "placement", "use")
LOOSE = Plain("mul", 0, 0)
"""An operation of the pipeline itself."""
PACKAGES = ("flash_attn", "sage")
BY_NAME = {technique.name: technique for technique in DEFAULT}
LADDER = "huggingface/diffusers a7ca03aa85:docs/source/en/optimization/fp16.mdx"
CUT = 0.7
"""Of |log(predicted ÷ published)|, twice: what is further off is wrong in a way no figure here explains."""
BOUNDS = {
    "product": (0.6, 0.98), "before_ampere": (0.4, 1.0), "convolution": (0.6, 1.0), "single": (0.9, 1.0),
    "efficient": (0.3, 1.0), "softmax": (2, 15), "unfused": (4, 6), "streaming": (0.75, 0.92),
    "resident": (0.1, 1.0), "cached": (2, 6), "norms": (1.5, 3), "tail": (1e-6, 4e-6), "fused": (0.1, 0.6),
    "desktop": (10e-6, 40e-6), "server": (28e-6, 55e-6), "wide": (0.1, 1.0),
}  # fmt: skip
"""What each figure can be at all: shares below one, traffic not below what must be moved; a launch takes servers 28 to
50 µs (SD 1.5 on A100 and A800, torch 2.0 to 2.3), and no page shows a desktop that takes less than 12."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published figure, in the columns of timings.csv."""

    card: str
    model: str
    width: str
    height: str
    frames: str
    images: str
    steps: str
    dtype: str
    given: str
    """Pictures handed to the call, as a request has them: `image`, `image=64x64`."""
    layout: str
    attention: str
    running: str
    placement: str
    tile: str
    use: str
    """Further techniques by their names in plans, as `fused_qkv quantization=int8`."""
    measures: str
    """`step`, one of the denoiser's with guidance; `call`, the whole pipeline; `encode` and `decode`, the autoencoder
    alone."""
    seconds: str
    stack: str
    """`first`: before torch 2.2."""
    source: str
    left_out: str

    @property
    def published(self) -> float:
        return float(self.seconds)

    @property
    def chip(self) -> str:
        """The card without the size of its memory."""
        return "-".join(part for part in self.card.split("-") if not part.endswith("gb"))

    @property
    def setting(self) -> tuple[str, ...]:
        """What must be equal for two techniques to be compared."""
        what = (self.model, self.width, self.height, self.frames, self.images, self.given, self.steps, self.measures)
        return self.card, *what, self.source

    @property
    def recorded(self) -> Row:
        """What of it a program depends on."""
        return replace(self, card="", steps="", measures="", seconds="", stack="", source="")


def read() -> list[Row]:
    """The rows of timings.csv, left-out ones included."""
    with (FOLDER / "timings.csv").open(newline="") as lines:
        return [Row(**line) for line in csv.DictReader(lines)]


@cache
def device(name: str) -> Device:
    return card(name)


def program(row: Row) -> Program:
    """The row's call as the planner records and rewrites it."""
    return written(row.recorded)


@cache
def written(row: Row) -> Program:
    programs = recordings(replace(row, layout="", attention="", running="", placement="", tile="", use=""))
    plain = programs.get(Variant())
    last = frozenset(c.name for c in plain.components if "conv2d" in c.traits and is_stepped(c))
    chosen = Variant(channels_last=last if row.layout == "channels_last" else frozenset(), tile=int(row.tile))
    options = [Option(technique=name, value=value) for name, _, value in (u.partition("=") for u in row.use.split())]
    for option in options:
        chosen = BY_NAME[option.technique].variant(chosen, option)
    made = programs.get(chosen)
    programs.keep()
    for option in options:
        made = BY_NAME[option.technique].rewrite(made, option)
    if row.attention != "fused":  # a package's kernels take no mask: who runs them leaves the padding out
        changes = {"backend": row.attention} | ({"mask": "none"} if row.attention in PACKAGES else {})
        kernels = (replace(k, **changes) if isinstance(k, Attention) else k for k in made.kernels)
        made = replace(made, kernels=tuple(kernels), family=f"{made.family}/{row.attention}")
    stepped = tuple(replace(c, traits=c.traits | {"denoiser"}) if is_stepped(c) else c for c in made.components)
    return MOVES[row.placement](replace(made, components=stepped, tracing=row.running))  # type: ignore[arg-type]


@cache
def recordings(row: Row) -> Programs:
    """The programs of a row's model and request, in the profile's usual figures but for what the row states.

    A start image as large as the result goes through all recorded steps.
    """
    pictures = {name: value or True for name, _, value in (g.partition("=") for g in row.given.split())}
    figures = {name: int(v) for name in ("width", "height", "frames", "images") if (v := getattr(row, name))}
    strength = 1.0 if pictures.get("image") is True else None
    asked = Request(**figures, **pictures, steps=STEPS, strength=strength)  # type: ignore[arg-type]  # by field
    profile, request = tasks.prepared(profiles.find(row.model), asked)
    return Programs(FromProfile(profile, row.dtype), request, cache_folder())


def is_stepped(component: Component) -> bool:
    """Whether it works at every step; pages that compile a denoiser compile its ControlNet, too."""
    return "denoiser" in component.traits or component.name == "controlnet"


def denoisers(of: Program) -> set[str]:
    return {c.name for c in of.components if "denoiser" in c.traits}


def evaluations(of: Program) -> Counter[str]:
    """How often each component is called in the recorded steps."""
    return Counter(called for _, called in calls(of.recordings[of.course].events) if called)


def together(row: Row, recorded: Iterable[tuple[str, float]]) -> float:
    """Seconds of what the row measures, from those of the phases of its recorded steps.

    Guidance may take two evaluations a step; a scheduler's further one at the beginning is left out.
    """
    of = program(row)
    once, often = dict(recorded), evaluations(of)
    denoising = sum(once.pop(name, 0.0) / often[name] * max(1, often[name] // STEPS) for name in denoisers(of))
    if row.measures == "step":
        return denoising
    if row.measures in ("encode", "decode"):
        return sum(seconds for name, seconds in once.items() if name == f"vae.{row.measures}")
    return sum(once.values()) + denoising * int(row.steps)


def of_stack(row: Row, reached: Efficiency) -> Efficiency:
    flash = row.stack == "first" and device(row.card).compute_capability >= (8, 0)
    return replace(reached, softmax=reached.softmax * FIRST_FLASH) if flash else reached


def phases(row: Row, reached: Efficiency) -> list[tuple[str, float]]:
    """Seconds of each phase of the recorded steps as a plan would promise them, with nothing to compile."""
    cost = Cost(device(row.card), calls=10**9, reached=of_stack(row, reached))
    return [(phase.name, phase.seconds) for phase in cost.phases(program(row))]


def predicted(row: Row, reached: Efficiency = FITTED) -> float:
    """Seconds of what the row measures.  Components that move as a whole do so once, however many steps follow."""
    if row.placement != "model":
        return together(row, phases(row, reached))
    resident = replace(row, placement="resident")
    moves = sum(seconds for _, seconds in phases(row, reached)) - sum(s for _, s in phases(resident, reached))
    return predicted(resident, reached) + moves


@cache
def counted(row: Row) -> dict[str, Counter[Kernel]]:
    """How often each kernel runs in each phase."""
    of = program(row)
    bodies: dict[int, Counter[Kernel]] = {}

    def body(index: int) -> Counter[Kernel]:
        if index not in bodies:
            found: Counter[Kernel] = Counter()
            for event in of.body(index):
                if isinstance(event, Run):
                    found[of.kernels[event.kernel]] += 1
                elif isinstance(event, Call):
                    for kernel, times in body(event.recording).items():
                        found[kernel] += times
            bodies[index] = found
        return bodies[index]

    phases: dict[str, Counter[Kernel]] = defaultdict(Counter)
    for event in of.recordings[of.course].events:
        if isinstance(event, Call) and event.module:
            phases[event.module].update(body(event.recording))
    return phases


@cache
def gist(row: Row) -> dict[str, tuple[float, list[Heavy], list[tuple[Kernel, int]]]]:
    """Of each phase: all seconds ÷ those of the kernels that make up 98 %, these, and one kernel a kind to launch."""
    found = {}
    for phase, kernels in counted(row).items():
        pace = Pace(device(row.card), "none", of_stack(row, FITTED))
        seconds = {kernel: pace.kernel(kernel) * times for kernel, times in kernels.items()}
        kept, enough = 0.0, 0.98 * sum(seconds.values())
        heavy: list[tuple[Kernel, int]] = []
        for kernel in sorted(seconds, key=lambda kernel: -seconds[kernel]):
            if kept < enough:
                heavy.append((kernel, kernels[kernel]))
                kept += seconds[kernel]
        kinds: dict[type, tuple[Kernel, int]] = {}
        for kernel, times in kernels.items():
            kinds[type(kernel)] = kernel, times + kinds.get(type(kernel), (kernel, 0))[1]
        alike = (Heavy([(k, n) for k, n in heavy if type(k) is kind]) for kind in {type(k) for k, _ in heavy})
        found[phase] = sum(seconds.values()) / kept, list(alike), list(kinds.values())
    return found


@cache
def own_kernels(row: Row) -> dict[str, list[Heavy]]:
    """What the pipeline itself runs after each phase: guidance, the scheduler's step."""
    of = program(row)
    found: dict[str, Counter[Kernel]] = defaultdict(Counter)
    now, inside = "", 0
    for event, called in calls(of.recordings[of.course].events):
        now = called or now
        inside += isinstance(event, Enter) - isinstance(event, Exit)
        if isinstance(event, Run) and not inside:
            found[now][of.kernels[event.kernel]] += 1
    return defaultdict(list, {phase: [Heavy(list(kernels.items()))] for phase, kernels in found.items()})


class Heavy:
    """Kernels of one kind in one phase of a row, and their seconds by those figures that have a say in them."""

    def __init__(self, kernels: list[tuple[Kernel, int]]) -> None:
        self._kernels = kernels
        self.number = sum(times for _, times in kernels)
        self._asked: tuple[str, ...] = ()
        self._known: dict[tuple[float, ...], float] = {}

    def seconds(self, device: Device, tracing: str, reached: Efficiency) -> float:
        figures = tuple(getattr(reached, name) for name in self._asked)
        if figures not in self._known:
            asking = Asking(reached)
            pace = Pace(device, tracing, asking)  # type: ignore[arg-type]  # has its attributes
            seconds = sum(pace.kernel(kernel) * times for kernel, times in self._kernels)
            if set(asking.asked) != set(self._asked):
                self._asked, self._known = tuple(asking.asked), {}
            self._known[tuple(getattr(reached, name) for name in self._asked)] = seconds
        return self._known[tuple(getattr(reached, name) for name in self._asked)]


class Asking:
    """Figures that remember which of them were asked for."""

    def __init__(self, reached: Efficiency) -> None:
        self._reached, self.asked = reached, dict[str, None]()

    def __getattr__(self, name: str) -> float:
        self.asked[name] = None
        found: float = getattr(self._reached, name)
        return found


def roughly(row: Row, reached: Efficiency) -> float:
    """The same as `predicted` to a few percent, from sums alone: quick enough to fit with.

    Where host and card take about as long, each waits for the other now and then; the seams of tiles wait for the host.
    """
    inside, own = denoisers(program(row)), of_stack(row, reached)
    sums: list[tuple[str, float]] = []
    for phase, (whole, heavy, kinds) in gist(row).items():
        running = row.running if phase in inside else "none"
        pace = Pace(device(row.card), running, own)
        work = whole * sum(kernels.seconds(device(row.card), running, own) for kernels in heavy)
        host = sum(pace.issue(kernel) * times for kernel, times in kinds)
        busy = work + host if row.tile != "0" else (work**8 + host**8) ** 0.125
        between = own_kernels(row)[phase]
        eager = sum(kernels.seconds(device(row.card), "none", own) for kernels in between)
        eager += sum(kernels.number for kernels in between) * Pace(device(row.card), "none", own).issue(LOOSE)
        sums.append((phase, busy + eager + pace.entry() * evaluations(program(row))[phase]))
    return together(row, sums)


def weights(rows: Sequence[Row]) -> list[float]:
    sizes = Counter((row.card, row.source, row.model) for row in rows)
    return [sizes[row.card, row.source, row.model] ** -0.5 for row in rows]


def misfit(reached: Efficiency, rows: Sequence[Row]) -> float:
    far = (abs(log(roughly(row, reached) / row.published)) for row in rows)
    return sum(weight * min(each, CUT) for weight, each in zip(weights(rows), far, strict=True))


def fit(rows: Sequence[Row], start: Efficiency, sizes: Sequence[float]) -> Efficiency:
    """Coordinate descent in the logarithm of each figure, in steps of these sizes."""
    best, least = start, misfit(start, rows)
    for size in sizes:
        for name in (field.name for field in fields(Efficiency)):
            low, high = BOUNDS.get(name, (0.0, float("inf")))
            for step in (size, -size):
                while True:
                    value = min(max(getattr(best, name) * exp(step), low), high)
                    other = replace(best, **{name: value})
                    if (found := misfit(other, rows)) >= least - 1e-4:
                        break
                    best, least = other, found
    return best


def rounded(reached: Efficiency) -> Efficiency:
    """To the three digits that efficiency.py states."""
    return Efficiency(**{field.name: float(f"{getattr(reached, field.name):.3g}") for field in fields(Efficiency)})


def summary(what: str, errors: Sequence[float]) -> str:
    sizes = sorted(map(abs, errors))
    return (
        f"| {what} | {len(sizes)} | {statistics.median(sizes):.1%} | {sizes[int(0.9 * (len(sizes) - 1))]:.1%} | "
        f"{statistics.median(errors):+.1%} |"
    )


def orderings(rows: Sequence[Row], seconds: dict[Row, float]) -> tuple[int, int, list[str]]:
    """Pairs of techniques on one card that differ by more than 5 %, those put in the right order, and the others.

    Predictions that are equal put nothing in order.
    """
    right, wrong = 0, []
    for one, other in combinations(rows, 2):
        if one.setting != other.setting or abs(log(one.published / other.published)) <= log(1.05):
            continue
        if (one.published - other.published) * (seconds[one] - seconds[other]) > 0:
            right += 1
        else:
            ways = " against ".join(starmap(described, ((one, other), (other, one))))
            wrong.append(f"{one.card}, {one.model}: {ways}")
    return right, right + len(wrong), wrong


def described(row: Row, other: Row) -> str:
    """The techniques in which a row differs from another."""
    return " ".join(getattr(row, t) for t in TECHNIQUES if getattr(row, t) != getattr(other, t)) or "the same"


def held_out(rows: Sequence[Row], moved: Sequence[Row], start: Efficiency) -> dict[Row, float]:
    """Each card's seconds as predicted with figures fitted to all other cards."""
    found: dict[Row, float] = {}
    for chip in dict.fromkeys(row.chip for row in (*rows, *moved)):
        reached = fit([row for row in rows if row.chip != chip], start, sizes=(0.2, 0.1))
        found |= {row: predicted(row, reached) for row in (*rows, *moved) if row.chip == chip}
        print(chip, *(f"{found[row] / row.published - 1:+.0%}" for row in rows if row.chip == chip), flush=True)
    return found


def report(rows: Sequence[Row], moved: Sequence[Row], reached: Efficiency, apart: dict[Row, float]) -> str:
    """The tables, as markdown."""
    seconds = {row: predicted(row, reached) for row in (*rows, *moved)}
    user = [row for row in rows if "sd-data" in row.source]
    docs = [row for row in rows if row not in user]
    lines = [
        "# Predicted and published seconds",
        "",
        f"`python benchmarks/time_fit.py --fit`, {datetime.now(tz=timezone.utc).date().isoformat()}.",
        "Error is predicted ÷ published − 1: above zero, the plan promises more time than was measured.",
        "Held out: the figures of planner/efficiency.py were fitted to all other cards.",
        "",
        "| | rows | median error | 90th percentile | median, signed |",
        "|---|---:|---:|---:|---:|",
        summary("held out, all", [apart[row] / row.published - 1 for row in rows]),
        summary("held out, pages and papers", [apart[row] / row.published - 1 for row in docs]),
        summary("held out, runs of a web UI", [apart[row] / row.published - 1 for row in user]),
        summary("fitted, all", [seconds[row] / row.published - 1 for row in rows]),
        summary("weights that travel, held out and no part of the fit", [apart[r] / r.published - 1 for r in moved]),
        "",
        *ordered(rows, moved, apart),
        "",
        *(FOLDER / "results" / "time_notes.md").read_text("utf-8").splitlines(),
        "",
        "## The classic ladder, Titan RTX",
        "",
        *table([row for row in rows if row.source == LADDER and row.measures == "call"], seconds, apart),
        "",
        "## Weights that travel",
        "",
        "No part of the fit: the rates are those of planner/cards.py, and hosts differ.",
        "",
        *table(moved, seconds, apart),
        "",
        "## All rows",
        "",
        *table(rows, seconds, apart),
        "",
        "## Left out",
        "",
        "| why | rows |",
        "|---|---:|",
        *(f"| {why} | {n} |" for why, n in Counter(r.left_out for r in read() if r.left_out).most_common()),
    ]
    return "\n".join(lines) + "\n"


def ordered(rows: Sequence[Row], moved: Sequence[Row], apart: dict[Row, float]) -> Iterable[str]:
    """How many pairs are in the right order, with weights that travel and without, and which are not."""
    right, pairs, _ = orderings(rows, apart)
    all_right, all_pairs, wrong = orderings((*rows, *moved), apart)
    yield (
        f"Techniques on one card that differ by more than 5 %, held out: {all_right} of {all_pairs} pairs are in the "
        f"right order, {right} of {pairs} where all weights stay and {all_right - right} of {all_pairs - pairs} where "
        "some travel."
    )
    yield from (f"- wrong: {pair}" for pair in wrong)


def table(rows: Sequence[Row], seconds: dict[Row, float], apart: dict[Row, float]) -> Iterable[str]:
    yield "| card | model | size | images | how | of | published s | predicted s | error | held out |"
    yield "|---|---|---|---:|---|---|---:|---:|---:|---:|"
    for row in rows:
        ways = (row.given, *(getattr(row, t) for t in TECHNIQUES))
        how = " ".join(way for way in ways if way not in ("", "none", "0", "resident", "fused"))
        size = "×".join(side for side in (row.width, row.height, row.frames) if side)
        yield (
            f"| {row.card} | {row.model} | {size} | {row.images} | {how} | {row.measures} | "
            f"{row.published:.3f} | {seconds[row]:.3f} | {seconds[row] / row.published - 1:+.0%} | "
            f"{apart[row] / row.published - 1:+.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the figures anew before the table is made")
    asked = parser.parse_args()
    used = [row for row in read() if not row.left_out]
    rows = [row for row in used if row.placement == "resident"]
    moved = [row for row in used if row.placement != "resident"]
    reached = rounded(fit(rows, FITTED, sizes=(0.4, 0.2, 0.1, 0.05, 0.025))) if asked.fit else FITTED
    print(reached, flush=True)
    apart = held_out(rows, moved, reached)
    (FOLDER / "results" / "time.md").write_text(report(rows, moved, reached, apart))


if __name__ == "__main__":
    main()
