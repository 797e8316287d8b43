"""The command line, a file a command.  It parses and prints; nothing is decided here.

A new command is a file with a click command called `command`, and its name in COMMANDS.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from planner import __version__
from planner.cli import output
from planner.errors import PlannerError
from planner.plan import Infeasible

COMMANDS = (
    *("plan", "run", "max", "min", "compare", "frontier", "explain"),
    *("app", "profiles", "probe", "calibrate", "verify", "schema", "completion"),
)
"""In the order in which help lists them; only the one that is called is imported."""
REFUSED, INFEASIBLE, OVER, INTERRUPTED = 2, 3, 4, 130
"""Exit codes; the last as shells report a process that Ctrl-C ended."""
CODES = """\b
Exit codes:
  0    done; where something was to be planned, it fits
  1    a fault of the planner itself, with a traceback
  2    the request, model, card or pipeline folder cannot be used
  3    no combination of techniques fits; what would fit is said
  4    verify: the run went over its budget
  130  interrupted"""
WHERE = "Exit codes: `vram-planner --help` lists them."
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


class Front(click.Group):
    """A group that turns the planner's errors into one sentence, or one JSON object, and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002  (click's too)
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"planner.cli.{name}").command
        command.epilog = WHERE
        return command

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
            output.complain("Interrupted.")
            ctx.exit(INTERRUPTED)
        except Infeasible as error:
            output.refuse(error, as_json=ctx.obj)
            ctx.exit(INFEASIBLE)
        except (PlannerError, click.UsageError) as error:
            if isinstance(error, click.UsageError) and not ctx.obj:
                raise
            output.refuse(error, as_json=ctx.obj)
            ctx.exit(REFUSED)


@click.group(cls=Front, context_settings=SETTINGS, epilog=CODES)
@click.version_option(__version__, prog_name="vram-planner")
def main() -> None:
    """Find the fastest combination of diffusers memory techniques that fits a VRAM budget."""
