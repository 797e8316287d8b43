"""Desk: answers forms one at a time, from studies that stay open, so that a change of card or budget is quick."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock

from planner.plan import Plan
from planner.profiles import PipelineProfile
from planner.programs import Tell, silent
from planner.request import Budget, Request
from planner.study import Study, opened
from planner.surveys import Anatomy, Frontier, anatomy_of, frontiers_of
from planner.web.form import Form

OPEN = 6
"""Studies that stay open.  One of SD 1.5 at 3840×2224, planned for six cards, holds some 100 MB."""


class Desk:
    """Everybody who has the page open asks here; an answer waits for the one before it.

    `cache`: folder of recorded programs, by default the user's cache.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._lock = Lock()
        self._studies: OrderedDict[tuple[str, Request], Study] = OrderedDict()
        self._frontiers: OrderedDict[Form, Frontier] = OrderedDict()
        self._tell: Tell = silent

    def plan(self, form: Form, tell: Tell = silent) -> Plan:
        """The plan of a form.  Raises BadRequest, TraceFailed or Infeasible."""
        with self._answering(form, tell) as study:
            return study.plan(form.device)

    def anatomy(self, form: Form, tell: Tell = silent) -> Anatomy:
        """The plan with where its memory is.  Raises the same."""
        with self._answering(form, tell) as study:
            return anatomy_of(study, form.device)

    def frontiers(self, form: Form, tell: Tell = silent) -> Iterator[Frontier]:
        """What each budget buys, from the most down, point by point; others are answered between two points.

        Raises BadRequest or TraceFailed.
        """
        if form in self._frontiers:
            yield self._frontiers[form]
            return
        with self._answering(form, tell) as study:
            found = frontiers_of(study, form.device)
            frontier = next(found)
        while True:
            yield frontier
            with self._answering(form, tell):
                further = next(found, None)
            if further is None:
                break
            frontier = further
        self._frontiers[form] = frontier
        while len(self._frontiers) > OPEN:
            self._frontiers.popitem(last=False)

    @contextmanager
    def _answering(self, form: Form, tell: Tell) -> Iterator[Study]:
        """The study of a form's model and call, while nobody else is answered; what was recorded is kept."""
        asked, device, profile = form.request, form.device, form.profile
        asked.budget.resolve(device)  # what makes no sense is said before anything is recorded
        key = profile.name, replace(asked, budget=Budget())
        with self._lock:
            self._tell = tell
            study = self._studies.pop(key, None) or self._opened(profile, asked)
            self._studies[key] = study
            while len(self._studies) > OPEN:
                self._studies.popitem(last=False)
            try:
                yield replace(study, request=replace(study.request, budget=asked.budget))
            finally:
                study.keep()

    def _opened(self, profile: PipelineProfile, asked: Request) -> Study:
        """A new study, with what those of the same model know."""
        made = opened(profile, asked, cache=self._cache, tell=self._told)
        for (name, _), other in reversed(self._studies.items()):
            if name == profile.name and (beside := made.beside(other)) is not made:
                return beside
        return made

    def _told(self, now: str) -> None:
        self._tell(now)
