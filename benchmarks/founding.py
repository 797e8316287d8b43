"""Predicted against measured peaks: the techniques diffusers has had for years, each alone, on full-size pipelines.

    python benchmarks/founding.py [--model sd15 …] [--cache FOLDER] [--anew]

A peak is predicted from configurations alone, and measured by PyTorch's own allocator on the virtual GPU over the whole
call and while each component works.  Predictions are always made anew; what results/founding.csv says was measured is
kept, so an interrupted run goes on; `--anew` measures the chosen models again.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain, groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "virtual_gpu"))

import rig  # noqa: E402

from planner import profiles  # noqa: E402
from planner.cards import card  # noqa: E402
from planner.device import Device  # noqa: E402
from planner.pricing import Priced, Pricer, described  # noqa: E402
from planner.programs import FromProfile, Programs  # noqa: E402
from planner.request import Request  # noqa: E402
from planner.study import cache_folder  # noqa: E402
from planner.techniques import DEFAULT, Option  # noqa: E402

RESULTS = HERE / "results"
CARD, VRAM = "rtx-3090", 80 * rig.GIB
"""Compute capability 8.6, with memory enough for everything."""
TILE = 512
"""Edge of the tiles in pixels; where the image is no larger, the largest tile that is smaller."""
BATCH, CALLS = 4, 2
"""Images for slicing and splitting, and calls to split into."""
PROMPT = " ".join(["word"] * 64)
"""As long as the planner takes a prompt to be that is not padded."""
STEPS = 2
"""The second denoising step reuses what the first left; further ones change no peak."""
WHOLE = "whole"
MOVING = "placement=model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A pipeline and a size; without `dtype`, each component in the one people load it in."""

    model: str
    side: int
    dtype: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {self.dtype or profiles.find(self.model).dtype} {self.side}²"


SETTINGS = (
    Setting(model="sd15", side=512),
    Setting(model="sd15", side=1024),
    Setting(model="sd15", side=512, dtype="float32"),
    Setting(model="sdxl", side=1024),
    Setting(model="sd3-medium", side=1024),
    Setting(model="flux1-dev", side=1024),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Peaks in bytes of one case, over the whole call or one phase of it."""

    setting: str
    images: int
    options: str
    phase: str
    predicted_allocated: int
    allocated: int
    predicted_reserved: int
    reserved: int

    @property
    def case(self) -> tuple[str, int, str]:
        """What was measured."""
        return self.setting, self.images, self.options

    @property
    def errors(self) -> tuple[float, float]:
        """Of the allocated and the reserved peak; above zero, too much was promised."""
        return self.predicted_allocated / self.allocated - 1, self.predicted_reserved / self.reserved - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One technique on one setting."""

    setting: Setting
    images: int
    pricer: Pricer
    options: tuple[Option, ...]

    @property
    def key(self) -> tuple[str, int, str]:
        return self.setting.name, self.images, described(self.options)

    @property
    def priced(self) -> Priced:
        return self.pricer.price(self.options)


Truth = dict[str, tuple[int, int]]
"""Allocated and reserved peak in bytes, by phase."""


def device() -> Device:
    """The card of the measurements."""
    return replace(card(CARD), total=VRAM, free=VRAM)


def cases(setting: Setting, cache: Path) -> Iterator[Case]:
    """Everything resident, and each technique alone that this pipeline offers; for one image, and for a batch."""
    source = FromProfile(profiles.find(setting.model), setting.dtype)
    for images in (1, BATCH):
        request = Request(height=setting.side, width=setting.side, images=images, steps=STEPS)
        programs = Programs(source, request, cache)
        pricer = Pricer(programs, device(), request, DEFAULT)
        for options in _chosen(pricer, request):
            yield Case(setting=setting, images=images, pricer=pricer, options=options)
        programs.keep()


def _chosen(pricer: Pricer, request: Request) -> Iterator[tuple[Option, ...]]:
    bare = pricer.price(()).program
    offered = {t.name: t.options(bare, device(), request) for t in DEFAULT if t.name != "tracing"}
    resident = next(option for option in offered["placement"] if option.neutral)
    yield (resident,)
    if request.images > 1:
        yield from ((option, resident) for option in offered["vae_slicing"])
        yield from ((resident, option) for option in offered["split"] if option.value == CALLS)
        return
    tiles = sorted(offered["vae_tiling"], key=lambda option: (option.value != TILE, -int(option.value)))
    alone = (*offered["precision"], *offered["channels_last_denoiser"], *offered["channels_last_vae"])
    yield from ((option, resident) for option in (*alone, *tiles[:1], *offered["attention"]))
    yield from ((option,) for option in offered["placement"] if not option.neutral)


def on_the_card(model: str, dtype: str | None, call: dict[str, Any], options: list[list[Any]]) -> dict[str, Any]:
    """Sent to the virtual GPU: peaks of a call after the planner's techniques were applied."""
    import torch
    from inside import arguments, pipelines, smallvalues
    from inside.peaks import Peaks

    from planner.techniques import DEFAULT, Option

    mode = smallvalues.install()  # noqa: F841  (lives as long as the process)
    pipe = pipelines.shipped(model, dtype)
    peaks = Peaks(pipe)
    techniques = {technique.name: technique for technique in DEFAULT}
    for name, value in options:
        techniques[name].apply(pipe, Option(technique=name, value=value))
    with torch.no_grad():
        pipe(**arguments.of(pipe, call))
    return {**peaks.whole, "phases": peaks.phases}


def measure(server: rig.Server, case: Case) -> Truth:
    """Peaks on the card by phase, the whole call first."""
    side = case.setting.side
    call = {"height": side, "width": side, "num_images_per_prompt": case.images, "prompt": PROMPT}
    arguments = {
        "model": case.setting.model,
        "dtype": case.setting.dtype,
        "call": call | {"num_inference_steps": STEPS},
        "options": [[option.technique, option.value] for option in case.options],
    }
    seen = server.script(on_the_card, arguments, **rig.card(CARD) | {"vram": VRAM})
    return {name: (peak["allocated"], peak["reserved"]) for name, peak in {WHOLE: seen, **seen["phases"]}.items()}


def compare(case: Case, truth: Truth) -> list[Row]:
    """The rows of one case, the whole call first."""
    setting, images, options = case.key
    foreseen = case.pricer.rehearse(case.priced, None)
    predicted = {WHOLE: (foreseen.allocated, foreseen.reserved)} | {name: (a, r) for name, a, r in foreseen.phases}
    return [
        Row(
            setting=setting, images=images, options=options, phase=phase,
            predicted_allocated=predicted[phase][0], allocated=allocated,
            predicted_reserved=predicted[phase][1], reserved=reserved,
        )
        for phase, (allocated, reserved) in truth.items()
    ]  # fmt: skip


def read(file: Path) -> list[Row]:
    """The rows measured so far."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        text = ("setting", "options", "phase")
        return [Row(**{k: v if k in text else int(v) for k, v in line.items()}) for line in csv.DictReader(lines)]  # type: ignore[arg-type]


def write(file: Path, rows: Sequence[Row]) -> None:
    """All rows, sorted as the settings are; within one, as they were measured."""
    order = [setting.name for setting in SETTINGS]
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, Row.__slots__, lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: order.index(row.setting)):
            writer.writerow({name: getattr(row, name) for name in Row.__slots__})


def versions() -> dict[str, str]:
    """Sent to the virtual GPU: what the measurements ran on."""
    import diffusers
    import torch

    number: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.__version__,
        "cuDNN": f"{number // 10000}.{number // 100 % 100}.{number % 100}",
        "diffusers": diffusers.__version__,
    }


def report(rows: Sequence[Row], ran_on: dict[str, str]) -> str:
    """The table and its summary, as markdown."""
    whole = [row for row in rows if row.phase == WHOLE]
    phases = [row for row in rows if row.phase != WHOLE and MOVING not in row.options]
    day = datetime.now(tz=timezone.utc).date().isoformat()
    lines = [
        "# Predicted and measured peaks, technique by technique",
        "",
        f"`python benchmarks/founding.py`, {day}; {', '.join(f'{name} {v}' for name, v in ran_on.items())};",
        f"a virtual card of compute capability 8.6 with 80 GiB, {STEPS} steps, a prompt of 64 words.",
        "Predicted from configurations alone; measured as `torch.cuda.max_memory_allocated` and `max_memory_reserved`.",
        "Error is predicted ÷ measured − 1: above zero, too much was promised.  Bytes, and every phase: founding.csv.",
        "Phases under model offload are in no summary: there a phase is measured from before its predecessor leaves.",
        "",
        "| | rows | median error | least | greatest | within 0.5 % | within 1 % |",
        "|---|---:|---:|---:|---:|---:|---:|",
        _summary("allocated, whole call", [row.errors[0] for row in whole]),
        _summary("allocated, each phase", [row.errors[0] for row in phases]),
        _summary("reserved, whole call", [row.errors[1] for row in whole]),
    ]
    for setting in dict.fromkeys(row.setting for row in whole):
        lines += ["", *_table(setting, [row for row in whole if row.setting == setting])]
    return "\n".join(lines) + "\n"


def _summary(what: str, errors: Sequence[float]) -> str:
    middle = statistics.median(map(abs, errors))
    near = [f"{sum(abs(error) <= bound for error in errors) / len(errors):.0%}" for bound in (0.005, 0.01)]
    return f"| {what} | {len(errors)} | {middle:.2%} | {min(errors):+.2%} | {max(errors):+.2%} | {' | '.join(near)} |"


def _table(setting: str, rows: Sequence[Row]) -> Iterator[str]:
    yield f"## {setting}"
    yield ""
    yield "| options | images | predicted GB | allocated GB | error | predicted GB | reserved GB | error |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        allocated = f"{row.predicted_allocated / 1e9:.3f} | {row.allocated / 1e9:.3f} | {row.errors[0]:+.2%}"
        reserved = f"{row.predicted_reserved / 1e9:.3f} | {row.reserved / 1e9:.3f} | {row.errors[1]:+.2%}"
        yield f"| {row.options} | {row.images} | {allocated} | {reserved} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[setting.model for setting in SETTINGS])
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of recorded programs")
    parser.add_argument("--anew", action="store_true", help="measure these models again")
    asked = parser.parse_args()
    file = RESULTS / "founding.csv"
    wanted = [setting for setting in SETTINGS if setting.model in asked.model]
    rows = {case: list(same) for case, same in groupby(read(file), key=lambda row: row.case)}
    with rig.Server() as server:
        for setting in wanted:
            for case in cases(setting, asked.cache):
                known = (
                    {} if asked.anew else {row.phase: (row.allocated, row.reserved) for row in rows.get(case.key, ())}
                )
                rows[case.key] = compare(case, known or measure(server, case))
                write(file, list(chain.from_iterable(rows.values())))
                print(*case.key, *(f"{error:+.2%}" for error in rows[case.key][0].errors), flush=True)
        (RESULTS / "founding.md").write_text(report(read(file), server.script(versions)))


if __name__ == "__main__":
    main()
