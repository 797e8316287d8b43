"""Ghosts are recorded in silence, and the libraries speak as before afterwards."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from typing import Any

import pytest

from planner.errors import TraceFailed
from planner.program import Variant
from planner.programs import Workshop
from planner.quiet import LOGGERS, quiet
from planner.request import Request


class Loud:
    """A source whose pipeline has much to say, and then cannot be built."""

    def key(self) -> None:
        return None

    def ghost(self) -> Any:
        say()
        raise TraceFailed("It cannot be built.")


def say() -> None:
    warnings.warn("`upcast_vae` is deprecated.", FutureWarning, stacklevel=2)
    for name in LOGGERS:
        logging.getLogger(f"{name}.models").warning("flash attention is not available")


def test_recording_is_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    import diffusers.utils.logging as library

    before = library.get_verbosity(), list(warnings.filters)
    with pytest.raises(TraceFailed):
        Workshop(Loud(), ()).trace(Request(), Variant())
    assert capfd.readouterr().err == ""
    assert not recwarn.list
    assert (library.get_verbosity(), list(warnings.filters)) == before
    say()
    assert "flash attention" in capfd.readouterr().err
    assert [str(each.message) for each in recwarn.list] == ["`upcast_vae` is deprecated."]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING, logging.CRITICAL])
def test_levels_are_never_lowered_and_always_given_back(level: int) -> None:
    logger = logging.getLogger("diffusers")
    kept = logger.level
    logger.setLevel(level)
    seen: list[int] = []
    try:
        with suppress(KeyError), quiet():
            seen.append(logger.level)
            raise KeyError
        seen.append(logger.level)
    finally:
        logger.setLevel(kept)
    assert seen == [max(level, logging.ERROR), level]


def test_warnings_that_were_asked_for_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.warnoptions", ["always"])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("asked for", UserWarning, stacklevel=1)
    assert len(heard) == 1
