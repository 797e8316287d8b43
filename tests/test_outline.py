"""Outlines promise less than the programs they stand for, and hardly less."""

from __future__ import annotations

import pytest

from planner import profiles
from planner.cards import card
from planner.device import Device
from planner.events import Drop, Fetch
from planner.lessons import Lessons, kind_of
from planner.pricing import Priced, Pricer, Sketch
from planner.programs import FromProfile, Programs
from planner.request import Request
from planner.techniques.base import Option
from planner.techniques.placement import Placement
from planner.techniques.split import Split
from planner.techniques.streaming import Streaming

CARDS = ("rtx-3070", "t4", "h100-sxm")
"""Copies that hide behind kernels, kernels that hide behind copies, and a host slower than both."""
NEAR = 40 * 10**6
"""Bytes: cuBLAS's workspace and the tensors between calls, which an outline leaves out."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    request = Request(height=512, width=512, images=2, steps=3)
    return Programs(FromProfile(profiles.find("sd15"), None), request, tmp_path_factory.mktemp("programs"))


def priced(programs: Programs, device: Device, lessons: Lessons | None = None) -> Pricer:
    request = Request(height=512, width=512, images=2, steps=3)
    techniques = (Streaming(), Placement(), Split())
    return Pricer(programs, device, request, techniques, *([lessons] if lessons else []))


def sketched(pricer: Pricer, scene: Priced) -> dict[Option, Sketch]:
    """Every way to stream a component, in outline."""
    options = pricer.offered("streaming", scene)
    found: dict[Option, Sketch] = {}
    for name in dict.fromkeys(option.component for option in options):
        mine = [option for option in options if option.component == name]
        found |= {option: made for option, made in zip(mine, pricer.sketches(scene, mine), strict=True) if made}
    assert len(found) == len(options)
    return found


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("splits", [1, 2])
def test_never_more_and_hardly_less(programs: Programs, name: str, splits: int) -> None:
    pricer = priced(programs, card(name))
    calls = tuple(o for o in pricer.offered("split", pricer.price(())) if o.value == splits)
    scene = pricer.price(pricer.merged(pricer.baseline(), calls))
    sketches = sketched(pricer, scene)
    assert len(sketches) > 50
    for option, sketch in sketches.items():
        exact = pricer.price(pricer.merged(scene, (option,)))
        assert exact.seconds - scene.seconds == pytest.approx(sketch.seconds, abs=1e-9)
        for less, before, after in zip(sketch.memory, scene.phases, exact.phases, strict=True):
            assert 0 <= after.peak.total - before.peak.total - less <= NEAR
        assert sketch.host == exact.program.waiting


def test_no_pass_no_burden(programs: Programs) -> None:
    """What stays while its component works is fetched once."""
    pricer = priced(programs, card("rtx-3070"))
    scene = pricer.baseline()
    sketch = next(s for o, s in sketched(pricer, scene).items() if o.component == "unet" and "0/" in str(o.value))
    assert sketch.seconds == pytest.approx(sketch.host / card("rtx-3070").pinned_rate, rel=0.1)


def test_what_runs_taught_counts(programs: Programs) -> None:
    """Where earlier runs took longer and more, so does the outline, and no more than the program."""
    plain = priced(programs, card("rtx-3070"))
    kind = kind_of(plain.baseline().program, "unet", card("rtx-3070").name)
    taught = Lessons({(*kind, "memory"): (1.25,), (*kind, "seconds"): (1.5,)})
    pricer = priced(programs, card("rtx-3070"), taught)
    scene = pricer.baseline()
    for option, sketch in sketched(pricer, scene).items():
        exact = pricer.price(pricer.merged(scene, (option,)))
        assert sketch.seconds <= exact.seconds - scene.seconds + 1e-9
        for less, before, after in zip(sketch.memory, scene.phases, exact.phases, strict=True):
            assert less <= after.peak.total - before.peak.total


def test_each_call_of_a_split_fetches_anew_what_left_in_the_one_before(programs: Programs) -> None:
    """And it is rehearsed with all its calls."""
    pricer = priced(programs, card("rtx-3070"))
    visiting = next(o for o in pricer.offered("streaming", pricer.price(())) if str(o.value).startswith("0/"))
    split = pricer.offered("split", pricer.price(()))
    candidate = pricer.merged(pricer.baseline(), (visiting, *split))
    moves = [type(e) for e in programs.under(candidate, pricer.techniques, 2).events if isinstance(e, (Fetch, Drop))]
    assert moves == [Fetch, Drop, Fetch, Drop]
    names = [name for name, _, _ in pricer.rehearse(pricer.price(candidate), None).phases]
    assert names == ["start", *(phase.name for phase in pricer.price(candidate).phases if phase.name != "start")]


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("splits", [1, 2])
def test_placements_by_leaves_take_no_less_than_said(programs: Programs, name: str, splits: int) -> None:
    """And hardly more where copies last longest; there are the host's waits at every piece, and what goes back."""
    pricer = priced(programs, card(name))
    calls = tuple(o for o in pricer.offered("split", pricer.price(())) if o.value == splits)
    scene = pricer.price(pricer.merged(pricer.price(()), calls))
    said = pricer.least_seconds(scene, pricer.offered("placement", scene))
    assert {str(option.value) for option in said} == {"sequential", "group_leaf", "group_leaf_stream"}
    for option, seconds in said.items():
        exact = pricer.price(pricer.merged(scene, (option,)))
        assert scene.seconds < seconds <= exact.seconds
        assert option.value == "group_leaf" or name == "h100-sxm" or seconds > 0.7 * exact.seconds


def test_what_runs_taught_counts_for_placements_too(programs: Programs) -> None:
    plain = priced(programs, card("rtx-3070"))
    kind = kind_of(plain.baseline().program, "unet", card("rtx-3070").name)
    pricer = priced(programs, card("rtx-3070"), Lessons({(*kind, "seconds"): (2.0,)}))
    scene = pricer.price(())
    for option, seconds in pricer.least_seconds(scene, pricer.offered("placement", scene)).items():
        assert seconds <= pricer.price(pricer.merged(scene, (option,))).seconds
