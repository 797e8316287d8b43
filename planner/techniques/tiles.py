"""Tiles of an autoencoder by their figures: which edges each class takes, and where the seams of its tiles meet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, gcd, nextafter

from planner.errors import BadRequest
from planner.program import Component

LADDER = (256, 384, 512, 768, 1024, 1536, 2048)
"""Tile edges in pixels worth tracing; multiples of 128, so a quarter's overlap is whole latents at factors up to 32."""
SIZED = frozenset({
    "AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLHunyuanImage", "AutoencoderKLKVAE", "AutoencoderTiny",
})  # fmt: skip
"""Classes whose square tile is set by attributes (diffusers 0.42.1)."""
STRIDES: Mapping[str, float] = {
    "AutoencoderKLWan": 192 / 256, "AutoencoderKLQwenImage": 192 / 256, "AutoencoderKLQwenImage21": 192 / 256,
    "AutoencoderKLMochi": 192 / 256, "AutoencoderKLHunyuanVideo": 192 / 256,
    "AutoencoderDC": 448 / 512, "AutoencoderKLLTXVideo": 448 / 512, "AutoencoderKLLTX2Video": 448 / 512,
    "AutoencoderKLMagvit": 448 / 512, "AutoencoderKLCosmos": 448 / 512,
}  # fmt: skip
"""Classes that take tile and stride as arguments, with stride ÷ tile of their defaults (diffusers 0.42.1)."""
SQUARE_SHARES = frozenset({"AutoencoderKLHunyuanVideo15"})
"""Classes that take a square tile, in pixels and in latents, and the share of it that overlaps (diffusers 0.42.1)."""
COGVIDEOX = "AutoencoderKLCogVideoX"
"""Takes a height, a width and a share of each that overlaps (diffusers 0.42.1)."""
COGVIDEOX_OWN, COGVIDEOX_SHARES = (240, 360), (1 / 6, 1 / 5)
COGVIDEOX_LADDER = (160, 320, 480, 640, 960)
"""Heights; the widths, half as much again, are whole latents, too."""
ALLEGRO = "AutoencoderKLAllegro"
"""Always tiles, and leaves black what its tiles do not cover (diffusers 0.42.1, `tiled_decode`)."""
KNOWN = SIZED | STRIDES.keys() | SQUARE_SHARES | {COGVIDEOX, ALLEGRO}
LEAST_COVERING, WORK = 128, 2.0
"""Edge in pixels below which no covering tiles are sought, and how often they may decode a pixel."""
_FORM = re.compile(r"([1-9][0-9]{0,4})(?:/([1-9][0-9]{0,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's edge in pixels (its height where it is not square), and how far it lies over its neighbour."""

    edge: int
    overlap: int = 0
    """Pixels; 0: the share that the class has."""

    @classmethod
    def of(cls, value: str | int) -> Tile:
        """What `512` or `512/64` stands for.  Raises BadRequest."""
        match = _FORM.fullmatch(str(value))
        if match is None:
            raise BadRequest(f"{value!r} is no tile; write its edge in pixels, 512, or edge and overlap, 512/64.")
        return cls(int(match[1]), int(match[2] or 0))

    @property
    def value(self) -> str | int:
        """As a plan keeps it."""
        return f"{self.edge}/{self.overlap}" if self.overlap else self.edge

    def lacks(self, component: Component) -> str:
        """Why an autoencoder cannot have it, in words that follow "it"; empty where it can.

        Allegro's can have what is offered alone.
        """
        factor = component.factor
        if component.kind == ALLEGRO:
            return f"leaves black what tiles of {self.value} do not cover at this size; name vae_tiling alone"
        if component.kind not in KNOWN and (self.overlap or self.edge != component.tile):
            return f"has an autoencoder of a class whose tiles are known in 1 size, {component.tile}"
        if self.edge % factor or self.overlap % factor:
            return f"takes tiles and overlaps that are multiples of {factor} px, which {self.value} is not"
        if self.overlap > self.edge // 2:
            return f"takes overlaps of at most half a tile, and {self.overlap} is more than half of {self.edge}"
        if self.overlap and any(not meets(axis, self.overlap / axis, factor) for axis in self._shared(component)):
            return f"rounds an overlap of {self.overlap} px otherwise in latents than in pixels; write {factor} px less"
        return ""

    def _shared(self, component: Component) -> tuple[int, ...]:
        """The edges whose overlap the class keeps as a share."""
        if component.kind == COGVIDEOX:
            return self.edge, width_of(self.edge)
        return (self.edge,) if component.kind in SIZED | SQUARE_SHARES else ()


def meets(pixels: int, share: float, factor: int) -> bool:
    """Whether what is kept of a tile is as long in pixels as in latents.

    diffusers rounds the overlap once in latents and once in pixels; where the two differ, the image comes out shifted.
    """
    return int(pixels // factor * (1 - share)) * factor == pixels - int(pixels * share)


def meeting(pixels: int, share: float, factor: int) -> float | None:
    """The share itself where the seams meet, else the next larger one of whole latents; None where that fails, too."""
    latents = pixels // factor
    rounded = ceil(nextafter(latents * share, 0)) / latents
    return next((each for each in (share, rounded) if each < 1 and meets(pixels, each, factor)), None)


def width_of(edge: int) -> int:
    """Of CogVideoX' tile with that height, in its own proportions."""
    height, width = COGVIDEOX_OWN
    return edge * width // height


def offered(component: Component, height: int, width: int) -> Iterator[Tile]:
    """Tiles of an autoencoder that cut a picture; a class nobody has looked at keeps its own."""
    if component.kind == ALLEGRO:
        yield from covering(height, width, component.factor)
        return
    usual = COGVIDEOX_LADDER if component.kind == COGVIDEOX else LADDER if component.kind in KNOWN else ()
    longest = max(height, width)
    for edge in sorted({component.tile, *usual}):
        long = width_of(edge) if component.kind == COGVIDEOX else edge
        if edge and long < longest and edge % component.factor == 0:
            yield Tile(edge)


def covering(height: int, width: int, factor: int) -> Iterator[Tile]:
    """Square tiles that cover a picture to the last pixel: of each doubling of the edge the one with the least work."""
    best: dict[int, tuple[float, Tile]] = {}
    for edge in range(LEAST_COVERING, min(height, width) + 1, factor):
        steps = gcd((height - edge) // factor, (width - edge) // factor)
        strides = (steps // part * factor for part in range(1, steps + 1) if steps % part == 0)
        stride = next((each for each in strides if each <= edge * 0.75), 0)
        if 2 * stride < edge or (height == edge and width == edge):
            continue
        work = ((height - edge) // stride + 1) * ((width - edge) // stride + 1) * edge**2 / (height * width)
        doubling = edge.bit_length()
        best[doubling] = min(best.get(doubling, (WORK, Tile(0))), (work, Tile(edge, edge - stride)), key=lambda b: b[0])
    yield from (tile for _, tile in best.values() if tile.edge)
