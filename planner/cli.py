"""The command line: `vram-planner plan`, `probe` and `profiles`.  It parses and prints; nothing is decided here."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from planner import __version__
from planner.errors import BadRequest, PlannerError
from planner.plan import Infeasible
from planner.request import JSON, PICTURES, Budget, Fidelity, Request
from planner.units import parse_bytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from planner.device import Device

INFEASIBLE, REFUSED, INTERRUPTED = 3, 2, 130
"""Exit codes; the last as shells report a process that Ctrl-C ended."""
CODES = """\b
Exit codes:
  0    a plan was found
  2    the request, model, card or pipeline folder cannot be used
  3    no combination of techniques fits; what would fit is said
  130  interrupted"""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


class Front(click.Group):
    """A group that turns the planner's errors into one sentence, or one JSON object, and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain("Interrupted.")
            ctx.exit(INTERRUPTED)
        except Infeasible as error:
            _refuse(error, as_json=ctx.obj)
            ctx.exit(INFEASIBLE)
        except (PlannerError, click.UsageError) as error:
            if isinstance(error, click.UsageError) and not ctx.obj:
                raise
            _refuse(error, as_json=ctx.obj)
            ctx.exit(REFUSED)


@click.group(cls=Front, context_settings=SETTINGS, epilog=CODES)
@click.version_option(__version__, prog_name="vram-planner")
def main() -> None:
    """Find the fastest combination of diffusers memory techniques that fits a VRAM budget."""


def _pictures(command: Callable[..., None]) -> Callable[..., None]:
    """Options for the pictures a call is handed; without a size, one as large as the result."""
    for field, what in reversed(PICTURES.items()):
        option = f"--{field.replace('_', '-')}"
        words = f"Hand over {what} of this SIZE, such as 1024x768; without it, of the result's."
        command = click.option(option, field, is_flag=False, flag_value="auto", metavar="[SIZE]", help=words)(command)
    return command


@main.command("plan", epilog=CODES)
@click.argument("model")
@click.option("--gpu", metavar="NAME", help="Plan for this card, such as rtx-3070; `profiles --gpus` lists them.")
@click.option("--vram", metavar="SIZE", help="Plan for a card of this much memory, such as 8GiB.")
@click.option("--budget", metavar="SIZE", default="auto", help="8GB, 8GiB, 80%, auto-1GB or auto: all that is free.")
@click.option("--height", type=int, help="Pixels.")
@click.option("--width", type=int, help="Pixels.")
@click.option("--batch", "images", type=int, default=1, metavar="N", help="Images or videos for each prompt.")
@click.option("--prompts", type=int, default=1, metavar="N", help="Prompts in one call.")
@click.option("--frames", type=int, help="Frames of a video.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", type=float, help="Guidance scale.")
@click.option("--prompt-tokens", type=int, metavar="N", help="Length of a prompt where it is not padded.")
@_pictures
@click.option("--strength", type=float, help="Share of the steps that a start image goes through.")
@click.option("--calls", type=int, default=1, metavar="N", help="Calls of this shape to come; compiling needs several.")
@click.option("--dtype", metavar="NAME", help="fp16, bf16 or fp32: load the weights so.")
@click.option("--fidelity", metavar="LEVEL", default="faithful", help="exact, faithful (default) or lossy.")
@click.option("--host-ram", metavar="SIZE", help="Host memory the plan may use.")
@click.option("--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="Further call argument; a JSON value.")
@click.option("--with", "including", multiple=True, metavar="COMPONENT", help="Load an optional component too.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or the error, as JSON.")
def plan_command(
    *,
    model: str,
    gpu: str | None,
    vram: str | None,
    including: tuple[str, ...],
    as_json: bool,
    **wanted: Any,
) -> None:
    """Find the best plan for one call of a pipeline.

    MODEL is a name or hub id that `profiles` lists, or a folder in hub layout.
    The card is the first of this machine unless --gpu or --vram names another.
    """
    request = _request(**wanted)
    device = _device(gpu, vram)
    _quiet()
    from planner import auto

    with _status(f"Planning {model} …"):
        plan = auto.plan(model, device=device, request=request, components=including)
    if as_json:
        _print_json(plan.to_json())
    else:
        from planner import explain

        _show(explain.renderables(plan))


@main.command("probe", epilog=CODES)
@click.option("--json", "as_json", is_flag=True, help="Print the cards as JSON.")
def probe_command(*, as_json: bool) -> None:
    """Show the cards of this machine."""
    from dataclasses import asdict

    from planner.probe import probe

    devices = probe()
    if as_json:
        _print_json([asdict(device) for device in devices])
    else:
        from planner import tables

        _show([tables.devices_table(devices)])


@main.command("profiles", epilog=CODES)
@click.option("--gpus", is_flag=True, help="List the cards instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def profiles_command(*, gpus: bool, as_json: bool) -> None:
    """List the pipelines, or the cards, that can be planned by name."""
    from planner import tables

    if as_json:
        _print_json(tables.cards_json() if gpus else tables.pipelines_json())
    else:
        _show([tables.cards_table() if gpus else tables.pipelines_table(_console().width)])


def _request(*, budget: str, fidelity: str, host_ram: str | None, arguments: tuple[str, ...], **plain: Any) -> Request:
    return Request(
        budget=Budget.parse(budget),
        fidelity=Fidelity.parse(fidelity),
        host_ram=None if host_ram is None else parse_bytes(host_ram),
        extra=tuple(map(_argument, arguments)),
        **plain,
    )


def _argument(text: str) -> tuple[str, JSON]:
    from planner.snippet import ARGUMENTS

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise BadRequest(f"--arg {text!r} is not KEY=VALUE; write --arg max_sequence_length=256, say.")
    if field := next((field for field, argument in ARGUMENTS.items() if argument == name), None):
        raise BadRequest(f"--arg {name} has an option of its own; write --{field} {value}.")
    try:
        return name, json.loads(value)
    except ValueError:
        raise BadRequest(f"--arg {name}: {value!r} is not JSON; write text as {name}='\"text\"'.") from None


def _device(gpu: str | None, vram: str | None) -> Device | None:
    """The card that was named, None for this machine's own."""
    if gpu and vram:
        raise click.UsageError("--gpu and --vram both name a card; give one of them.")
    if gpu is not None:
        from planner.cards import card

        return card(gpu)
    if vram is not None:
        from planner.probe import device_of_size

        return device_of_size(parse_bytes(vram))
    return None


def _quiet() -> None:
    """Keep what libraries say while they are imported off the terminal, unless it was asked for."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    logging.getLogger("xformers").setLevel(logging.ERROR)


@contextmanager
def _status(words: str) -> Iterator[None]:
    """A line that moves on stderr while something takes its time; nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield
        return
    with _console(stderr=True).status(words):
        yield


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def _show(parts: Iterable[RenderableType]) -> None:
    """Print for people: no spaces that nobody sees, and lines of code whole on narrow terminals."""
    console = _console()
    with console.capture() as page:
        for part in parts:
            console.print(part, crop=False)
    click.echo("\n".join(line.rstrip() for line in page.get().splitlines()), color=True)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _complain(sentence: str) -> None:
    click.echo(f"Error: {sentence}", err=True)


def _refuse(error: PlannerError | click.UsageError, *, as_json: bool) -> None:
    """Say what went wrong: a sentence on stderr, or a JSON object on stdout."""
    sentence = error.format_message() if isinstance(error, click.UsageError) else " ".join(str(error).split())
    if as_json:
        _print_json({"error": sentence, "kind": type(error).__name__, **_evidence(error)})
        return
    _complain(sentence)
    if isinstance(error, Infeasible):
        from planner import explain

        _show(explain.refusal(error))


def _evidence(error: Exception) -> dict[str, Any]:
    if not isinstance(error, Infeasible):
        return {}
    plain = {name: getattr(error, name) for name in ("phase", "over", "smallest_budget", "largest_size")}
    return plain | {"leanest": error.leanest.to_json()}
