"""Answers: what the page shows for a form, step by step; what is in the way is an answer, too."""

from __future__ import annotations

from collections.abc import Iterator

from planner.errors import PlannerError
from planner.programs import Tell, silent
from planner.web import view
from planner.web.desk import Desk
from planner.web.form import Form
from planner.web.view import View


def plans(desk: Desk, form: Form, tell: Tell = silent) -> Iterator[View]:
    """The plan as soon as it is known, then with its memory in detail; or why there is none."""
    try:
        plan = desk.plan(form, tell)
        yield view.answer(form, plan)
        yield view.answer(form, plan, desk.anatomy(form, tell))
    except PlannerError as error:
        yield view.refusal(error, form)


def budgets(desk: Desk, form: Form, tell: Tell = silent) -> Iterator[str]:
    """What each budget buys, growing; nothing where there is no plan to begin with, which is said elsewhere."""
    try:
        for found in desk.frontiers(form, tell):
            yield view.budgets(found)
    except PlannerError as error:
        yield view.refusal(error).verdict
