"""Predicted against measured memory: cells drawn at random from all pipelines, sizes, techniques, cards and caps.

    python benchmarks/accuracy.py --seed 7 [--cells 400] [--minutes 60] [--model sd15 …] [--cache FOLDER]
    python benchmarks/accuracy.py --seed 7 --page
    python benchmarks/accuracy.py --published

A cell is one call under up to two techniques on one card.  It is predicted from configurations alone and measured on
the virtual GPU.  Measurements are kept in results/accuracy_measured.csv and never made twice, so an interrupted run
goes on; predictions are made anew each time.  `--cells 0` only predicts.  `--page` does neither: it writes the page of
the predictions in results/accuracy.csv, with what results/accuracy_notes.toml says about the draw and
results/accuracy_causes.csv about single errors.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import measuring  # noqa: E402
import published  # noqa: E402
import scatter  # noqa: E402
import summary  # noqa: E402
from cells import CELLS, draw, wished  # noqa: E402
from comparing import Compared, compare, read, unsaid  # noqa: E402
from measuring import rig  # noqa: E402

from planner.errors import PlannerError  # noqa: E402
from planner.programs import Programs  # noqa: E402
from planner.study import cache_folder  # noqa: E402

RESULTS = HERE / "results"
LIMIT = 240
"""Seconds of the processor to record a setting or to measure a cell, after which it is left out."""


class TooLong(Exception):
    """A cell took longer than its time."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TooLong in the body after so many seconds of work; a busy machine only delays it."""

    def stop(*_: object) -> None:
        raise TooLong(f"over {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measure(asked: argparse.Namespace, file: Path) -> None:
    """Measure what is drawn and not yet in the file, as long as time allows."""
    known = {row.cell for row in measuring.read(file)}
    ends = time.monotonic() + asked.minutes * 60
    with rig.Server() as server:
        for number in range(asked.first, asked.first + -(-asked.cells // CELLS)):
            if time.monotonic() > ends:
                return
            if f"{asked.seed}/{number}.{CELLS - 1}" in known or f"{asked.seed}/{number}" in known:
                continue
            try:
                with limited(asked.limit):
                    cells = list(draw(asked.seed, number, asked.cache, asked.model))
            except (PlannerError, TooLong) as refused:
                measuring.append(file, measuring.unmeasured(wished(asked.seed, number, asked.model), str(refused)))
                print(f"{asked.seed}/{number}", "refused:", refused, flush=True)
                continue
            for cell in (cell for cell in cells if cell.name not in known):
                rows = measuring.measure(server, cell, asked.limit)
                measuring.append(file, rows)
                print(cell.name, cell.setting, cell.card, cell.words, rows[0].outcome, flush=True)


def predict(asked: argparse.Namespace, measured: list[measuring.Measured]) -> list[Compared]:
    """All that was measured beside what is said now."""
    rows: list[Compared] = []
    for setting, cells in groupby(measured, key=lambda row: row.is_of.setting):
        programs = setting.programs(asked.cache)
        for _, same in groupby(cells, key=lambda row: row.cell):
            rows += _compared(list(same), programs, asked.limit)
        programs.keep()
    return rows


def _compared(same: list[measuring.Measured], programs: Programs, seconds: int) -> list[Compared]:
    try:
        with limited(seconds):
            return compare(same, programs)
    except TooLong as late:
        return unsaid(same, str(late))


def write_pages(asked: argparse.Namespace, rows: list[Compared]) -> None:
    """The summary and the plot."""
    with rig.Server() as server:
        ran_on = server.script(measuring.versions)
    command = f"python benchmarks/accuracy.py --seed {asked.seed}"
    causes = summary.read_causes(asked.results / "accuracy_causes.csv")
    notes = summary.read_notes(asked.results / "accuracy_notes.toml", asked.seed)
    (asked.results / "accuracy.md").write_text(summary.page(rows, command, ran_on, causes, notes))
    whole = [row for row in rows if row.phase == measuring.WHOLE and row.has_errors]
    points = [
        (row.allocated / 1e9, row.predicted_allocated / 1e9, summary.placement(row), f"{row.model} {row.options}")
        for row in whole
    ]
    (asked.results / "accuracy.svg").write_text(scatter.plot(points, "Allocated peaks of whole calls"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published", action="store_true", help="compare with figures of physical cards instead")
    parser.add_argument("--page", action="store_true", help="only write the page of what was predicted last")
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="number of the first setting drawn")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no cell after so many")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of work a setting or a cell may take")
    parser.add_argument("--model", nargs="+", default=())
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder of recorded programs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.published:
        published.report(asked.results, asked.cache)
        return
    if asked.page:
        write_pages(asked, read(asked.results / "accuracy.csv"))
        return
    file = asked.results / "accuracy_measured.csv"
    if asked.cells:
        measure(asked, file)
    rows = predict(asked, [row for row in measuring.read(file) if row.cell.startswith(f"{asked.seed}/")])
    measuring.write(asked.results / "accuracy.csv", rows, names=Compared.__slots__)
    write_pages(asked, rows)


if __name__ == "__main__":
    main()
