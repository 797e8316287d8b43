"""`vram-planner completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
HELP = """Print what makes a shell complete commands, cards and models.

\b
For bash, once:
  cd ~/.local/share/bash-completion/completions
  vram-planner completion bash > vram-planner
"""


@click.command("completion", help=HELP)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """The shell's own script, made by click."""
    made = get_completion_class(shell)
    assert made is not None, f"click completes in {SHELLS}"
    click.echo(made(context.find_root().command, {}, "vram-planner", "_VRAM_PLANNER_COMPLETE").source())
