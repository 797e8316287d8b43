"""What commands print: pages for people, JSON for programs, one sentence for what went wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.errors import BadRequest, PlannerError
from planner.plain import plain
from planner.plan import Infeasible
from planner.quiet import TALKERS, quiet

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

FILE = click.Path(dir_okay=False, path_type=Path)
"""A file to write."""


@contextmanager
def working(words: str, *, hidden: bool = False) -> Iterator[Callable[[str], None]]:
    """A line that moves on stderr while something takes its time, and who can say what; nothing where nobody watches.

    What libraries say meanwhile about the ghosts they work on stays off the terminal, unless it was asked for.
    """
    with silence():
        if hidden or not sys.stderr.isatty():
            yield lambda _: None
            return
        with console(stderr=True).status(words) as status:
            yield lambda now: status.update(f"{words} {now}")


@contextmanager
def silence() -> Iterator[None]:
    """Quiet in this process, which is ours, also while libraries are loaded."""
    for library in TALKERS:
        os.environ.setdefault(f"{library.upper()}_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with quiet():
        yield


def hide_bars() -> None:
    """Without the bars of libraries that load weights: what is being done is said already."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    for library in (diffusers, transformers):
        library.disable_progress_bar()


def console(*, stderr: bool = False) -> Console:
    """Plain rich: no markup, emoji or guesses at what a number is."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def show(parts: Iterable[RenderableType]) -> None:
    """Print for people: no spaces that nobody sees, and lines of code whole on narrow terminals."""
    printer = console()
    with printer.capture() as page:
        for part in parts:
            printer.print(part, crop=False)
    click.echo("\n".join(line.rstrip() for line in page.get().splitlines()), color=True)


def show_json(value: object) -> None:
    """Print for programs: plain values, or such as `planner.plain` knows."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def check_picture(file: Path | None) -> None:
    """Refuse a picture's name before any work is done.  Raises BadRequest."""
    if file is None or file.suffix.lower() == ".svg":
        return
    if file.suffix.lower() != ".png":
        raise BadRequest(f"--plot {file} is neither .svg nor .png, the forms drawn here; name one of these.")
    from planner import raster

    raster.check()


def draw(file: Path | None, made: Callable[[], str]) -> None:
    """Write a picture, where one was asked for, in the form its name asks for.  Raises BadRequest."""
    if file is not None and file.suffix.lower() == ".png":
        from planner import raster

        write(file, lambda: raster.png(made()))
    else:
        write(file, made)


def write(file: Path | None, made: Callable[[], str | bytes]) -> None:
    """Write a page or a picture, where one was asked for, and say so.  Raises BadRequest where that is impossible."""
    if file is None:
        return
    content = made()
    try:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise BadRequest(
            f"{file} cannot be written ({error.strerror}); name a file in a folder that exists."
        ) from error
    click.echo(f"Wrote {file}.", err=True)


def complain(sentence: str) -> None:
    """One sentence on stderr."""
    click.echo(f"Error: {sentence}", err=True)


def refuse(error: PlannerError | click.UsageError, *, as_json: bool) -> None:
    """Say what went wrong: a sentence on stderr, or a JSON object on stdout."""
    sentence = error.format_message() if isinstance(error, click.UsageError) else " ".join(str(error).split())
    if as_json:
        from planner import printed

        show_json(printed.refusal(error, sentence))
        return
    complain(sentence)
    if isinstance(error, Infeasible):
        from planner import explain

        show(explain.refusal(error))
