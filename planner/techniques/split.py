"""Batch splitting: one call for many images becomes several calls for fewer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from planner.device import Device
from planner.program import Program, Variant
from planner.request import Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import called

PER_PROMPT = ("prompt", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
"""Beginnings of the names of arguments that hold one entry per prompt."""
PICTURES = ("image", "mask_image", "control_image", "video")
"""Arguments that hold one entry per prompt, unless several ControlNets take one each."""
MADE = "image_embeddings"
"""What a prior made, an entry per image: a decoder makes one image of each, and is asked for one."""
PER_IMAGE = ("generator", "latents", MADE)
"""Arguments that hold one entry per image, prompt by prompt."""
COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")


@dataclass(frozen=True, slots=True)
class Split:
    """Several smaller calls.  Exact with one generator per image; a single generator is drawn from call after call."""

    name: str = "split"
    scope: Scope = "call"
    needs: str = "several images in one call"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        total = request.prompts * request.images
        return tuple(self._option(request, calls) for calls in range(2, total + 1) if total % calls == 0)

    def variant(self, variant: Variant, option: Option) -> Variant:
        return replace(variant, splits=int(option.value))

    def apply(self, pipe: Any, option: Option) -> Undo:
        original = type(pipe)
        pipe.__class__ = _in_pieces(original, int(option.value))

        def undo() -> None:
            pipe.__class__ = original

        return undo

    def _option(self, request: Request, calls: int) -> Option:
        prompts, images = portion(request.prompts, request.images, calls)
        loops = [f"for _ in range({-(-request.images // images)})"] if images < request.images else []
        if request.prompts > 1:
            loops.insert(0, f"for i in range(0, {request.prompts}, {prompts})")
        prompt = f"prompts[i:i + {prompts}]" if request.prompts > 1 else "prompt"
        call = f"outputs = [pipe({prompt}, num_images_per_prompt={images}) {' '.join(loops)}]"
        return Option(technique=self.name, value=calls, calls=(call,))

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program


def portion(prompts: int, images: int, calls: int) -> tuple[int, int]:
    """Prompts, and images for each, in the largest of `calls` calls: whole prompts while there are enough of them."""
    if calls <= prompts:
        return -(-prompts // calls), images
    return 1, -(-images // -(-calls // prompts))


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the smaller calls: the prompts it takes, and which of the images each of them asks for."""

    prompts: slice
    images: slice
    of: int
    """Images of each prompt in the whole call."""

    def rows(self, values: Any) -> Any:
        """The entries of these images among those of all images, which stand prompt by prompt."""
        wanted = [p * self.of + i for p in _indices(self.prompts) for i in _indices(self.images)]
        return values[wanted[0] : wanted[-1] + 1]


def pieces(prompts: int, images: int, calls: int) -> Iterator[Piece]:
    """The smaller calls in the order of their images."""
    per_call, per_prompt = portion(prompts, images, calls)
    for first in range(0, prompts, per_call):
        for image in range(0, images, per_prompt):
            yield Piece(
                prompts=slice(first, min(first + per_call, prompts)),
                images=slice(image, min(image + per_prompt, images)),
                of=images,
            )


def _indices(part: slice) -> range:
    return range(part.start, part.stop)


def _in_pieces(original: type, calls: int) -> type:
    """A subclass that looks like `original` and makes its calls in pieces."""
    whole_call: Any = original.__call__

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        given = _named(inspect.signature(whole_call), self, args, kwargs)
        prompts = _prompts(given)
        images = _images(whole_call, given) if given.get(MADE) is None else len(given[MADE]) // prompts
        outputs = [
            whole_call(self, **_share(self, given, piece, prompts))
            for piece in pieces(prompts, images, min(calls, prompts * images))
        ]
        return _joined(outputs)

    return called(original, __call__)


def _named(signature: inspect.Signature, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, without the pipeline itself."""
    given = dict(signature.bind(pipe, *args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return {name: value for name, value in given.items() if name != next(iter(signature.parameters))}


def _prompts(given: dict[str, Any]) -> int:
    """How many prompts a call has."""
    prompt, embeds = given.get("prompt"), given.get("prompt_embeds")
    if isinstance(prompt, (list, tuple)):
        return len(prompt)
    return 1 if prompt is not None or embeds is None else len(embeds)


def _images(call: Any, given: dict[str, Any]) -> int:
    """How many images each prompt of a call asks for."""
    parameters = inspect.signature(call).parameters
    counts = (given.get(name, parameters[name].default) for name in COUNTS if name in parameters)
    return next((int(count) for count in counts if count), 1)


def _share(pipe: Any, given: dict[str, Any], piece: Piece, prompts: int) -> dict[str, Any]:
    """The arguments of one piece."""
    parts = {name: _part(pipe, name, value, piece, prompts) for name, value in given.items()}
    count = "" if given.get(MADE) is not None else next((name for name in COUNTS if name in given), "")
    return {**parts, count: len(_indices(piece.images))} if count else parts


def _part(pipe: Any, name: str, value: Any, piece: Piece, prompts: int) -> Any:
    if not _is_row(value):
        return value
    if name in PER_IMAGE and len(value) == prompts * piece.of:
        return piece.rows(value)
    several_nets = hasattr(getattr(pipe, "controlnet", None), "nets")
    by_prompt = name.startswith(PER_PROMPT) or (name.startswith(PICTURES) and not several_nets)
    return value[piece.prompts] if by_prompt and len(value) == prompts else value


def _is_row(value: Any) -> bool:
    """Whether a value has entries along a first axis: a list, a tuple, an array or a tensor."""
    return isinstance(value, (list, tuple)) or bool(getattr(value, "shape", ()))


def _joined(outputs: Sequence[Any]) -> Any:
    """The outputs of all pieces as one, field by field."""
    import numpy
    import torch

    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, numpy.ndarray):
        return numpy.concatenate(outputs)
    if isinstance(first, list):
        return [entry for output in outputs for entry in output]
    if isinstance(first, tuple):
        return tuple(_joined(entries) for entries in zip(*outputs, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        return type(first)(**{f.name: _joined([getattr(output, f.name) for output in outputs]) for f in fields(first)})
    return first
