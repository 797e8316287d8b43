from __future__ import annotations

from planner.cards import card
from planner.request import Request
from planner.techniques.expandable_segments import ExpandableSegments

from . import programs

CARD = card("rtx-3070")


def test_it_is_for_those_who_name_it() -> None:
    program, technique = programs.program(), ExpandableSegments()
    assert technique.options(program, CARD, Request(use=("micro_batch",))) == ()
    (option,) = technique.options(program, CARD, Request(use=("expandable_segments",)))
    assert option.calls == ('torch.cuda.memory._set_allocator_settings("expandable_segments:True")',)
    assert technique.rewrite(program, option) is program
