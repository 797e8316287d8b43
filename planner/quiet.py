"""Quiet: what libraries say about ghosts stays off the terminal, and they speak again afterwards."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

TALKERS = ("diffusers", "transformers")
"""Libraries that set the level of their logger when they are first loaded."""
LOGGERS = (*TALKERS, "torch", "xformers", "bitsandbytes")


@contextmanager
def quiet(*, loading: bool = False) -> Iterator[None]:
    """Without warnings and log lines of the libraries underneath; levels and filters are then as they were.

    `loading`: load the libraries that talk first, for loading them sets their levels.  Warnings that Python was started
    with (`-W`) are still shown.
    """
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        if loading:
            _load()
        loggers = [logging.getLogger(name) for name in LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(max(level, logging.ERROR))
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _load() -> None:
    """Load the libraries that talk, in silence; their loggers have levels of their own only afterwards."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        importlib.import_module("torch")
        for library in TALKERS:
            importlib.import_module(f"{library}.utils.logging").get_verbosity()
    finally:
        logging.disable(before)
