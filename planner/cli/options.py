"""What several commands are asked with: a model, a call of it, its limits and a card."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import click
from click.shell_completion import CompletionItem

from planner.device import Device
from planner.errors import BadRequest
from planner.request import JSON, PICTURES, Budget, Fidelity, Request
from planner.units import parse_bytes

Command = Callable[..., None]


def _picture(field: str) -> Callable[[Command], Command]:
    """The option for a picture the call is handed; without a size, one as large as the result."""
    words = f"{PICTURES[field].capitalize()}: 1024x768, or of the result's size."
    option = f"--{field.replace('_', '-')}"
    return click.option(option, field, is_flag=False, flag_value="auto", metavar="[SIZE]", help=words)


def _models(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:  # noqa: ARG001
    from planner import profiles

    names = [CompletionItem(name) for name in profiles.names() if name.startswith(begun)]
    return [*names, CompletionItem(begun, type="dir")]


def _cards(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:  # noqa: ARG001
    from planner.cards import catalogue

    return [CompletionItem(known.slug, help=known.name) for known in catalogue() if known.slug.startswith(begun)]


def _techniques(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:  # noqa: ARG001
    from planner.techniques import DEFAULT

    return [technique.name for technique in DEFAULT if technique.name.startswith(begun)]


def one_of(*words: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes to these; what else is written the planner refuses in its own words."""
    return lambda _, __, begun: [word for word in words if word.startswith(begun)]


CARD: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--gpu",
        metavar="NAME",
        shell_complete=_cards,
        help="Plan for this card, such as rtx-3070; `profiles --gpus` lists them.",
    ),
    click.option("--vram", metavar="SIZE", help="Plan for a card of this much memory, such as 8GiB."),
)
BUDGET = click.option(
    "--budget", metavar="SIZE", default="auto", help="8GB, 8GiB, 80%, auto-1GB or auto: all that is free."
)
CALL: tuple[Callable[[Command], Command], ...] = (
    click.option("--height", type=int, metavar="N", help="Pixels."),
    click.option("--width", type=int, metavar="N", help="Pixels."),
    click.option("--batch", "images", type=int, default=1, metavar="N", help="Images or videos for each prompt."),
    click.option("--prompts", type=int, default=1, metavar="N", help="Prompts in one call."),
    click.option("--frames", type=int, metavar="N", help="Frames of a video."),
    click.option("--steps", type=int, metavar="N", help="Denoising steps."),
    click.option("--guidance", type=float, metavar="X", help="Guidance scale."),
    click.option("--prompt-tokens", type=int, metavar="N", help="Length of a prompt where it is not padded."),
    *map(_picture, PICTURES),
    click.option("--strength", type=float, metavar="X", help="Share of the steps a start image goes through, 0 to 1."),
    click.option(
        "--calls", type=int, default=1, metavar="N", help="Calls of this shape to come; compiling needs several."
    ),
    click.option(
        "--dtype",
        metavar="NAME",
        shell_complete=one_of("fp16", "bf16", "fp32"),
        help="Load the weights as fp16, bf16 or fp32.",
    ),
    click.option(
        "--fidelity",
        metavar="LEVEL",
        default="faithful",
        shell_complete=one_of(*(level.name.lower() for level in Fidelity)),
        help="exact, faithful (default) or lossy.",
    ),
    click.option(
        "--use",
        multiple=True,
        metavar="TECH[=VALUE]",
        shell_complete=_techniques,
        help="A technique the plan must have; repeatable.",
    ),
    click.option(
        "--without",
        multiple=True,
        metavar="TECH",
        shell_complete=_techniques,
        help="A technique it must not have; repeatable.",
    ),
    click.option("--plain", is_flag=True, help="Only what diffusers can do by itself."),
    click.option("--host-ram", metavar="SIZE", help="Host memory the plan may use."),
    click.option("--disk", metavar="SIZE", help="What weights may take on disk."),
    click.option("--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="Further call argument; a JSON value."),
)
"""Fields of a request."""
FIELDS = {field.name for field in fields(Request)} | {"arguments"}
WITH = click.option(
    "--with",
    "including",
    multiple=True,
    metavar="COMPONENT",
    help="Load an optional component too, or one from a GGUF file: transformer=FILE.gguf.",
)


SECTIONS: dict[str, tuple[str, ...]] = {
    "The call": (
        *("kind", "height", "width", "images", "prompts", "frames", "steps", "guidance", "prompt_tokens"),
        *(*PICTURES, "strength", "calls", "dtype", "including", "arguments"),
    ),
    "Card and limits": ("gpu", "gpus", "vram", "budget", "budgets", "down_to", "host_ram", "disk", "prices"),
    "Techniques": ("fidelity", "use", "without", "plain"),
}
"""Options by what they concern, in the order in which help shows them; all others come last."""
OTHERS = "Output and help"


class Sectioned(click.Command):
    """A command of many options, which its help shows in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = (param for param in self.get_params(ctx) if isinstance(param, click.Option))
        shown = {param.name: record for param in options if (record := param.get_help_record(ctx))}
        width = max(len(option) for option, _ in shown.values())
        named = {name for names in SECTIONS.values() for name in names}
        for title, names in (*SECTIONS.items(), (OTHERS, tuple(name for name in shown if name not in named))):
            if rows := [(f"{shown[name][0]:<{width}}", shown[name][1]) for name in names if name in shown]:
                with formatter.section(title):
                    formatter.write_dl(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked of a command that plans."""

    model: str
    request: Request
    device: Device | None
    """None: the first card of this machine."""
    components: tuple[str, ...]

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `planner.plan` and its siblings."""
        return {"device": self.device, "request": self.request, "components": self.components}


def as_json(what: str) -> Callable[[Command], Command]:
    """The option --json."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def asking(*leading: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """A model to plan and a call of it; the command gets them as `asked`, and what else it was given by name."""
    options: tuple[Callable[[Command], Command], ...] = (*leading, *CALL, WITH)

    def decorated(command: Command) -> Command:
        @functools.wraps(command)
        def parsed(*, model: str, including: tuple[str, ...], **given: Any) -> None:
            device = _device(given.pop("gpu", None), given.pop("vram", None))
            request = _request(**{name: given.pop(name) for name in FIELDS & given.keys()})
            command(asked=Asked(model=model, request=request, device=device, components=including), **given)

        asking: Command = parsed
        for option in reversed(options):
            asking = option(asking)
        return click.argument("model", shell_complete=_models)(asking)

    return decorated


asks = asking(*CARD, BUDGET)
"""A model, a call of it, one card and one budget."""


def _request(
    *,
    budget: str = "auto",
    fidelity: str,
    host_ram: str | None,
    disk: str | None,
    arguments: tuple[str, ...],
    **plain: Any,
) -> Request:
    return Request(
        budget=Budget.parse(budget),
        fidelity=Fidelity.parse(fidelity),
        host_ram=None if host_ram is None else parse_bytes(host_ram),
        disk=None if disk is None else parse_bytes(disk),
        extra=tuple(map(_argument, arguments)),
        **plain,
    )


def _argument(text: str) -> tuple[str, JSON]:
    from planner import tasks
    from planner.snippet import ARGUMENTS

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise BadRequest(f"--arg {text!r} is not KEY=VALUE; write --arg max_sequence_length=256, say.")
    own = ARGUMENTS | tasks.ARGUMENTS
    if field := next((field for field, argument in own.items() if argument == name), None):
        example = "1024x768" if field in tasks.ARGUMENTS else value
        raise BadRequest(f"--arg {name} has an option of its own; write --{field.replace('_', '-')} {example}.")
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
