"""Every shipped profile, planned with its default request: how long a cold plan takes, and what it needs.

    python benchmarks/profiles.py [NAME …] [--gpu rtx-4090] [--larger h200-sxm] > benchmarks/results/profiles.md

Seconds are of this process's CPU, from the profile to the program of the plain call; imports are not counted.  Where
nothing fits on the card, the larger one is planned for.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from planner import profiles
from planner.cards import card
from planner.device import Device
from planner.errors import PlannerError
from planner.plan import Plan
from planner.pricing import described
from planner.programs import FromProfile
from planner.request import Request
from planner.study import Study, opened

HEAD = ("name", "family", "recorded in", "plain peak", "in", "plan", "card", "peak")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--gpu", default="rtx-4090")
    parser.add_argument("--larger", default="h200-sxm")
    asked = parser.parse_args()
    os.environ |= {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    cards = card(asked.gpu), card(asked.larger)
    wanted = asked.names or sorted(profiles.names(), key=lambda name: (profiles.find(name).family.casefold(), name))
    print(f"| {' | '.join(HEAD)} |\n|---|---|--:|--:|---|---|---|--:|")
    failed = 0
    for name in wanted:
        FromProfile(profiles.find(name), None).ghost()  # imports the classes
        try:
            cells = tuple(row(name, cards))
        except PlannerError as error:
            failed, cells = failed + 1, (f"{type(error).__name__}: {error}",)
        print(f"| {name} | {profiles.find(name).family} | {' | '.join(cells)} |", flush=True)
    return min(failed, 1)


def row(name: str, cards: tuple[Device, Device]) -> Iterator[str]:
    """The cells of one profile."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as cache:
        study = opened(name, Request(), cache=Path(cache))
        worst = study.pricer(cards[0]).baseline().worst
        yield f"{time.process_time() - start:.1f} s"
        yield f"{worst.peak.total / 1e9:.3g} GB"
        yield worst.name
        yield from planned(study, cards)


def planned(study: Study, cards: tuple[Device, Device]) -> Iterator[str]:
    """What was chosen, on which card, and the peak that is promised there."""
    for device in cards:
        found = study.attempt(device, budget=device.total)
        if isinstance(found, Plan):
            yield described(found.options) or "nothing"
            yield device.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
            yield f"{found.promise.allocated / 1e9:.3g} GB"
            return
    yield from ("nothing fits", "–", "–")


if __name__ == "__main__":
    sys.exit(main())
