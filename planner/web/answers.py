"""Answers: what the page shows for a form, step by step; what is in the way is an answer, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from planner.errors import PlannerError
from planner.programs import Tell
from planner.web import view
from planner.web.desk import Desk
from planner.web.form import Form
from planner.web.view import View

Work = Callable[[Tell], Iterator[View]]


def plans(desk: Desk, form: Form) -> Iterator[View | str]:
    """The plan as soon as it is known, then with its memory in detail; or why there is none.

    Before that, in a few words, what takes seconds.
    """

    def work(tell: Tell) -> Iterator[View]:
        def told(now: str) -> None:
            tell(f"Planning {form.model}: {now} …")

        try:
            plan = desk.plan(form, told)
            yield view.answer(form, plan)
            yield view.answer(form, plan, desk.anatomy(form, told))
        except PlannerError as error:
            yield view.refusal(error, form)

    return _overheard(work)


def budgets(desk: Desk, form: Form) -> Iterator[str]:
    """What each budget buys, growing; why there is none is said elsewhere."""
    try:
        for found in desk.frontiers(form):
            yield view.budgets(found, searching=True)
        yield view.budgets(found, searching=False)
    except PlannerError as error:
        yield view.refusal(error).verdict


def _overheard(work: Work) -> Iterator[View | str]:
    """What work makes and, in between, what it tells meanwhile; it goes on in a thread of its own."""
    news: SimpleQueue[View | str | None] = SimpleQueue()

    def run() -> None:
        try:
            for made in work(news.put):
                news.put(made)
        finally:
            news.put(None)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        while (heard := news.get()) is not None:
            yield heard
        done.result()
