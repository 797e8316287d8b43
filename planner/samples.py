"""Samples: convolutions of shipped pipelines, run once on the card for the scratch they take.

What cuDNN answers without a card is what plans count; here the card has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import prod
from typing import TYPE_CHECKING, Any

from planner import workspace
from planner.calibration import Scratch
from planner.device import Device
from planner.kernels import ITEM_SIZE, Conv

if TYPE_CHECKING:
    import torch

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Sample:
    """A convolution by its shapes."""

    where: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    padding: int = 1

    def conv(self, dtype: str, *, last: bool) -> Conv:
        """As the planner sees it."""
        dims = len(self.weight) - 2
        pairs = zip(self.input[2:], self.weight[2:], strict=True)
        spaces = ((x + 2 * self.padding - k) // self.stride + 1 for x, k in pairs)
        return Conv(
            dtype, self.input, self.weight, (self.input[0], self.weight[0], *spaces), (self.stride,) * dims,
            padding=(self.padding,) * dims, input_last=last, weight_last=last,
        )  # fmt: skip


SAMPLES = (
    Sample("an image autoencoder's first convolution", (1, 4, 128, 128), (512, 4, 3, 3)),
    Sample("an image autoencoder at an eighth", (1, 512, 128, 128), (512, 512, 3, 3)),
    Sample("an image autoencoder at half", (1, 256, 512, 512), (256, 256, 3, 3)),
    Sample("an image autoencoder's shortcut", (1, 512, 256, 256), (256, 512, 1, 1), padding=0),
    Sample("a U-Net's first blocks", (2, 320, 64, 64), (320, 320, 3, 3)),
    Sample("a U-Net's last blocks", (2, 1280, 16, 16), (1280, 1280, 3, 3)),
    Sample("a U-Net on its way down", (2, 320, 64, 64), (320, 320, 3, 3), stride=2),
    Sample("a U-Net's shortcut", (2, 960, 64, 64), (320, 960, 1, 1), padding=0),
    Sample("a video autoencoder at an eighth", (1, 384, 6, 62, 106), (384, 384, 3, 3, 3), padding=0),
    Sample("a video autoencoder at half", (1, 96, 6, 242, 418), (96, 96, 3, 3, 3), padding=0),
)
"""Stable Diffusion 1.5 and SDXL at 512², whose autoencoder is built as FLUX.1's is; Wan 2.1 at 832×480, which pads
before it convolves.  At most 2.5 GB each."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A sample that was run: bytes of its input and output, of its weight, of scratch foreseen and taken."""

    where: str
    maps: int
    weight: int
    foreseen: int
    taken: int

    @property
    def beyond(self) -> int:
        """Bytes it took more."""
        return max(self.taken - self.foreseen, 0)


def measured(device: Device, place: str) -> tuple[Scratch, ...]:
    """What each kind takes, by every sample in every dtype and layout; nothing but on a card."""
    found = dict[str, list[Seen]]()
    for sample, dtype, last in product(SAMPLES if place.startswith("cuda") else (), DTYPES, (False, True)):
        conv = sample.conv(dtype, last=last)
        if last and len(conv.weight) > 4:
            continue  # no plan has such
        if seen := _seen(sample.where, conv, replace(device, excess=()), place):
            found.setdefault(workspace.kind(conv), []).append(seen)
    return tuple(summed(kind, seen) for kind, seen in found.items())


def summed(kind: str, seen: Sequence[Seen]) -> Scratch:
    """Samples of one kind as one: its worst, and bytes to add that cover each and are least over all."""
    worst = max(seen, key=lambda each: (each.beyond / (each.maps + each.weight), each.taken))
    rates = {0.0, *(each.beyond / each.maps for each in seen)}
    for one, other in combinations(seen, 2):
        if across := one.maps * other.weight - other.maps * one.weight:
            rates.add((one.beyond * other.weight - other.beyond * one.weight) / across)
    pairs = [(rate, max((e.beyond - rate * e.maps) / e.weight for e in seen)) for rate in rates if rate >= 0]
    maps, weight = sum(each.maps for each in seen), sum(each.weight for each in seen)
    added = min(((a, max(b, 0.0)) for a, b in pairs), key=lambda pair: pair[0] * maps + pair[1] * weight)
    return Scratch(
        kind=kind, where=worst.where, foreseen=worst.foreseen, measured=worst.taken, maps=added[0], weight=added[1]
    )


def _seen(where: str, conv: Conv, device: Device, place: str) -> Seen | None:
    """The sample, run; None where the card has no room for it."""
    import torch

    size = ITEM_SIZE[conv.dtype]
    maps, weight = (prod(conv.input) + prod(conv.output)) * size, prod(conv.weight) * size
    foreseen = sum(workspace.copied(conv, device)) + workspace.engines(conv, device)[0]
    try:
        return Seen(where, maps, weight, foreseen, _taken(conv, place))
    except torch.OutOfMemoryError:
        return None


def _taken(conv: Conv, place: str) -> int:
    """Bytes asked of torch's allocator beyond the result.  The first run makes what is made once."""
    import torch

    form = torch.channels_last if conv.input_last else torch.contiguous_format
    kind = getattr(torch, conv.dtype)
    x, w = (torch.empty(shape, device=place, dtype=kind, memory_format=form) for shape in (conv.input, conv.weight))
    _run(conv, x, w)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(place)
    before = _asked(place, "current")
    _run(conv, x, w)
    return _asked(place, "peak") - before - prod(conv.output) * ITEM_SIZE[conv.dtype]


def _run(conv: Conv, x: torch.Tensor, w: torch.Tensor) -> None:
    import torch

    convolve = torch.conv3d if len(conv.weight) > 4 else torch.conv2d
    with torch.no_grad():
        convolve(x, w, None, conv.stride, conv.padding)
    torch.cuda.synchronize(x.device)


def _asked(place: str, when: str) -> int:
    """Bytes as they were asked for; those of blocks would hold what was not worth splitting off."""
    import torch

    stats: dict[str, Any] = torch.cuda.memory_stats(place)
    return int(stats[f"requested_bytes.all.{when}"])
