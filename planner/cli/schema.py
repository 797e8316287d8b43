"""`vram-planner schema`."""

from __future__ import annotations

import click

from planner.cli import output


def _names(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:  # noqa: ARG001
    from planner.printed import PRINTED

    return [name for name in PRINTED if name.startswith(begun)]


@click.command("schema")
@click.argument("name", shell_complete=_names)
def command(*, name: str) -> None:
    """Print the JSON Schema of what a command prints with --json.

    NAME is a command's, `gpus` for `profiles --gpus`, or `error` for what is
    printed instead where the exit code is 2 or 3.
    """
    from planner import printed
    from planner.errors import BadRequest

    if name not in printed.PRINTED:
        raise BadRequest(f"There is no schema {name!r}; choose {', '.join(printed.PRINTED)}.")
    output.show_json(printed.document(name))
