"""Prose: sentences for a terminal, in which a number and its unit stay on one line."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

TIE = "\u00a0"
"""Written in place of a space at which no line may end; `textwrap` keeps it, and it is a space again in the end."""
_TOGETHER = re.compile(r"\d (?:h \d+ min|min \d+ s|[kMGT]?B(?:/s)?|[mµ]?s|[TP]FLOP/s)\b")


@dataclass(frozen=True, slots=True)
class Prose:
    """Words for rich, broken between words that do not belong together."""

    words: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines no wider than the console."""
        for line in textwrap.wrap(tied(self.words), options.max_width, break_on_hyphens=False) or [""]:
            yield Text(line.replace(TIE, " "), style=self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """From the longest word to all in one line."""
        longest = max((len(word) for word in tied(self.words).split(" ")), default=0)
        return Measurement(longest, len(self.words)).with_maximum(options.max_width)


@dataclass(frozen=True, slots=True)
class Dotted:
    """A module's path for rich, broken after dots."""

    path: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines no wider than the console."""
        line = ""
        for name in re.findall(r"[^.]*\.?", self.path):
            if line and len(line) + len(name) > options.max_width:
                yield Text(line, overflow="fold")
                line = ""
            line += name
        yield Text(line, overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """From the longest name to all in one line."""
        longest = max(len(name) + 1 for name in self.path.split("."))
        return Measurement(longest, max(longest, len(self.path))).with_maximum(options.max_width)


def tied(words: str) -> str:
    """The same with each number tied to its unit, and hours to minutes."""
    return _TOGETHER.sub(lambda found: found[0].replace(" ", TIE), words)
