"""What the page shows, from a plan made by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from plans import PLAN

from planner import drawing, pictures
from planner.drawing import BROAD, NARROW, Frame
from planner.errors import BadRequest
from planner.plan import Infeasible, PhasePromise
from planner.surveys import Anatomy, Frontier, Point, Step
from planner.techniques.base import Option
from planner.web import view
from planner.web.form import Form

ASKED = Form(model="sd15", card="rtx-3070", width=3840, height=2224, budget="8GB")
LONG = (
    Step(what=f"a technique with a long name, the {n}th", budget=n * 10**9, seconds=200.0 - n) for n in range(9, 0, -1)
)
STEPS = (Step(what="nothing switched on", budget=24_600_000_000, seconds=189.0), *LONG)


OPTIONS = (Option(technique="streaming", component="transformer", value="24/62", calls=()),) * 4
POINTS = tuple(Point(budget=n * 10**9, seconds=200.0 - n, options=OPTIONS) for n in range(1, 18))


class Balanced(HTMLParser):
    """Fails where a tag is not closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> str:
    """The words of a page that is well formed and asks nobody for anything."""
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert not parser.open
    assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?\s*(https?:)?//', page)
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page).split())


def test_a_plan_is_shown_with_its_link() -> None:
    shown = view.answer(ASKED, PLAN)
    verdict = check(shown.verdict)
    assert "sd15 at 3840×2224 fits in 8.00 GB" in verdict
    assert 'href="?model=sd15&amp;card=rtx-3070&amp;width=3840&amp;height=2224&amp;budget=8GB"' in shown.verdict
    drawn = check(shown.pictures)
    assert "vae.decode" in drawn
    assert "pipe.vae.enable_tiling()" in drawn
    assert PLAN.rejected[0].reason in check(shown.reasons)
    assert "StableDiffusionPipeline.from_pretrained" in shown.code


def test_what_is_in_the_way_is_a_sentence() -> None:
    shown = view.refusal(BadRequest("Too <wide>."), ASKED)
    assert "Too &lt;wide&gt;." in shown.verdict
    assert (shown.pictures, shown.reasons, shown.code) == ("", "", "")


def test_what_does_not_fit_is_shown_at_its_leanest() -> None:
    error = Infeasible(leanest=PLAN, phase="unet", over=123_000_000, smallest_budget=9 * 10**9)
    verdict = check(view.refusal(error, ASKED).verdict)
    assert "does not fit in 8.00 GB" in verdict
    assert "over 123 MB" in verdict
    assert "a budget that would do is 9.00 GB" in verdict


def test_budgets_are_drawn_as_they_are_found() -> None:
    assert "Looking for" in check(view.budgets(frontier(()), searching=True))
    points = tuple(Point(budget=n * 10**9, seconds=200.0 - n, options=PLAN.options) for n in (3, 5, 7))
    done = view.budgets(frontier(points), searching=False)
    assert "7.00 GB" in check(done)
    assert "searching" not in done


def frontier(points: tuple[Point, ...]) -> Frontier:
    bare = Point(budget=24 * 10**9, seconds=190.0, options=())
    return Frontier(model="sd15", request=PLAN.request, device=PLAN.device, points=points, bare=bare)


def many(count: int) -> tuple[PhasePromise, ...]:
    return tuple(
        PhasePromise(
            name=f"phase_{n}.forward", weights=10**9, activations=n * 10**7, scratch=0, peak=2 * 10**9, seconds=s
        )
        for n, s in enumerate([50.0, *[0.1] * (count - 1)])
    )


@pytest.mark.parametrize("frame", [BROAD, NARROW], ids=["page", "phone"])
@pytest.mark.parametrize("count", [1, 3, 8, 80])
def test_words_in_pictures_do_not_overlap(count: int, frame: Frame) -> None:
    plan = replace(PLAN, promise=replace(PLAN.promise, phases=many(count)))
    anatomy = Anatomy(plan=plan, counts=(), timeline=(), steps=STEPS)
    drawings = (
        pictures.memory(plan, None, frame),
        pictures.techniques(anatomy, frame),
        pictures.frontier(frontier(POINTS[:count]), frame),
    )
    for drawn in drawings:
        words = [each for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("text")]
        boxes = [(box(each), each.text) for each in words]
        for place, ((left, right, y), said) in enumerate(boxes):
            assert left >= 0, said
            assert right <= frame.width, said
            for (other_left, other_right, other_y), other in boxes[place + 1 :]:
                apart = abs(y - other_y) >= 9 or right <= other_left or other_right <= left
                assert apart, f"{said!r} covers {other!r}"


def box(text: ElementTree.Element) -> tuple[float, float, float]:
    """Left, right and base line, as wide as letters are on average."""
    length = 6.4 * len(text.text or "") * float(text.attrib["font-size"]) / 12
    start = {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib["text-anchor"]]
    left = float(text.attrib["x"]) - start * length
    return left, left + length, float(text.attrib["y"])


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (14.6, 107, "30 60 90"),
        (0.0, 0.9, "0 0.2 0.4 0.6 0.8"),
        (300, 900, "360 480 600 720 840"),
        (40000, 90000, "40000 50000 60000 70000 80000 90000"),
    ],
)
def test_moments_are_round(least: float, most: float, said: str) -> None:
    assert drawing.moments(least, most) == pytest.approx([float(each) for each in said.split()])
