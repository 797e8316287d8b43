"""A run of a tiny real pipeline by the clock of a CPU, beside its promise; and what is learned from runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from plans import PLAN
from techniques import tiny
from techniques.programs import device, program, unet, vae

from planner import lessons
from planner.cost import Cost
from planner.kernels import Plain
from planner.lessons import KEPT, NONE, Lessons, kind_of
from planner.plan import PhasePromise
from planner.pricing import growth, taught

CARD = device()
KIND = ("UNet2DConditionModel", "float16", "contiguous", CARD.name)
SMALL = program(unet(), vae(), unet=(Plain("add", 0, 10**9),), vae=(Plain("mul", 0, 10**9),))


def test_ratios_are_medians_and_one_run_never_lowers_memory() -> None:
    once = NONE.learned({(*KIND, "memory"): 0.9, (*KIND, "seconds"): 0.5})
    assert (once.memory(*KIND), once.seconds(*KIND)) == (1.0, 0.5)
    twice = once.learned({(*KIND, "memory"): 0.8})
    assert twice.memory(*KIND) == pytest.approx(0.85)
    assert NONE.learned({(*KIND, "memory"): 1.2}).memory(*KIND) == 1.2, "more than promised counts at once"
    many = NONE
    for _ in range(2 * KEPT):
        many = many.learned({(*KIND, "seconds"): 2.0})
    assert len(many.ratios[(*KIND, "seconds")]) == KEPT


def test_lessons_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "lessons.json"
    assert lessons.read(file) == NONE
    found = Lessons({(*KIND, "memory"): (1.1, 1.2), (*KIND, "seconds"): (0.5,)})
    lessons.write(found, file)
    assert lessons.read(file) == found
    file.write_text("[[")
    assert lessons.read(file) == NONE


def test_lessons_change_the_phases_they_are_of() -> None:
    assert kind_of(SMALL, "unet", CARD.name) == KIND
    phases = Cost(CARD).phases(SMALL)
    found = Lessons({(*KIND, "memory"): (1.5,), (*KIND, "seconds"): (2.0,)})
    better = {phase.name: phase for phase in taught(phases, SMALL, CARD, found)}
    plain = {phase.name: phase for phase in phases}
    assert better["unet"].seconds == pytest.approx(2 * plain["unet"].seconds)
    assert better["vae.decode"].seconds == plain["vae.decode"].seconds
    assert growth(SMALL, CARD, found) == 1.5
    assert better["unet"].peak.total == pytest.approx(1.5 * plain["unet"].peak.total, abs=1)
    assert taught(phases, SMALL, replace(CARD, name="another card"), found) == phases


def test_a_run_is_timed_phase_by_phase_and_learned_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("planner.lessons.file", lambda: tmp_path / "lessons.json")
    pipe = tiny.stable_diffusion(tmp_path)
    names = ("text_encoder", "unet", "vae.decode")
    promised = tuple(
        PhasePromise(name=name, weights=1, activations=1, scratch=0, peak=2, seconds=0.02) for name in names
    )
    plan = replace(PLAN, promise=replace(PLAN.promise, phases=promised, seconds=0.06))
    forwards = [part.forward for part in (pipe.unet, pipe.vae)]

    verdict = plan.verify(lambda: tiny.run(pipe), pipe)

    seen = {phase.name: phase.seconds for phase in verdict.phases}
    assert set(names) <= set(seen)
    assert sum(seen.values()) == pytest.approx(verdict.whole.seconds, rel=0.05)
    assert verdict.held, "a CPU takes none of the card"
    assert [part.forward for part in (pipe.unet, pipe.vae)] == forwards, "nothing listens any more"
    table = str(verdict)
    assert "unet, seconds" in table
    assert "allocated" not in table
    kind = (type(pipe.unet).__name__, "float32", "contiguous", plan.device.name, "seconds")
    if seen["unet"] > 0.01:
        assert lessons.read().ratios[kind] == pytest.approx((seen["unet"] / 0.02,))
