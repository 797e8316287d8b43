from __future__ import annotations

from hypothesis import given
from reference import programs

from planner.events import Alloc, Call, Enter, Exit, Free, Run
from planner.program import Program, Recording


def test_work_has_each_kernel_and_body_once_between_where_modules_begin_and_end() -> None:
    first, again = Call(0, "", ((1, 2),)), Call(0, "", ((1, 3),))
    events = (Alloc(0, 512), Run(4), Run(4), first, Enter("to_q", ()), Run(4), again, again, Exit(), Run(4), Free(0))
    work = Recording(name="Attention", own=(), events=events).work
    assert work == (Run(4), first, Enter("to_q", ()), Run(4), again, Exit(), Run(4))
    assert [type(event) for event in work] == [Run, Call, Enter, Run, Call, Exit, Run]


@given(programs())
def test_runs_are_those_of_every_body_that_is_reached(program: Program) -> None:
    def inside(index: int) -> set[int]:
        events = program.body(index)
        called = (inside(event.recording) for event in events if isinstance(event, Call))
        return {event.kernel for event in events if isinstance(event, Run)}.union(*called)

    assert set(program.runs) == inside(program.course)
