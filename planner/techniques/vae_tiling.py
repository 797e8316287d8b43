"""VAE tiling: the autoencoder works on overlapping tiles and blends their seams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from planner.device import Device
from planner.errors import BadRequest
from planner.program import Component, Conv, Program, Variant
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember, undone_on_error

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


@dataclass(frozen=True, slots=True)
class VaeTiling:
    """Decode and encode in tiles.  Faithful: seams are blended, and norms see one tile at a time."""

    name: str = "vae_tiling"
    scope: Scope = "autoencoder"
    needs: str = "an autoencoder that tiles, and an image larger than its smallest tile"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        if request.fidelity < Fidelity.FAITHFUL:
            return ()
        able = tuple(component for component in program.components if "tiling" in component.traits and component.tile)
        edges = {edge for component in able for edge in tile_edges(component, largest_edge(program, request))}
        return tuple(self._option(able, edge) for edge in sorted(edges, reverse=True))

    def variant(self, variant: Variant, option: Option) -> Variant:
        return replace(variant, tile=int(option.value))

    def apply(self, pipe: Any, option: Option) -> Undo:
        able = [part for part in modules(pipe).values() if hasattr(part, "use_tiling") and spatial_attributes(part)]
        undo = in_reverse(remember(part, "use_tiling", *spatial_attributes(part)) for part in able)
        with undone_on_error(undo):
            for part in able:
                set_tile(part, int(option.value))
        return undo

    def _option(self, able: tuple[Component, ...], edge: int) -> Option:
        calls = tuple(call for component in able for call in plain_calls(component, edge))
        return Option(technique=self.name, value=edge, fidelity=Fidelity.FAITHFUL, calls=calls)

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program


def largest_edge(program: Program, request: Request) -> int:
    """The longer edge of an image in pixels: as requested, else as the program's widest convolution shows."""
    asked = max(request.height or 0, request.width or 0)
    return asked or max((max(k.output[2:]) for k in program.kernels if isinstance(k, Conv) and k.output[2:]), default=0)


def tile_edges(component: Component, largest: int) -> tuple[int, ...]:
    """Edges that cut an image of `largest` pixels; a class nobody has looked at keeps its own tile."""
    known = component.kind in SIZED or component.kind in STRIDES
    edges = {component.tile, *(LADDER if known else ())}
    return tuple(sorted(edge for edge in edges if edge < largest and edge % component.factor == 0))


def plain_calls(component: Component, edge: int) -> tuple[str, ...]:
    """The diffusers statements that give this autoencoder tiles of `edge` pixels."""
    vae = f"pipe.{component.name}"
    if edge == component.tile:
        return (f"{vae}.enable_tiling()",)
    if component.kind in SIZED:
        latent = edge // component.factor
        sizes = f"{vae}.tile_sample_min_size = {edge}", f"{vae}.tile_latent_min_size = {latent}"
        return (f"{vae}.enable_tiling()", *sizes)
    stride = whole(edge * STRIDES.get(component.kind, 0.75), component.factor)
    tile = f"tile_sample_min_height={edge}, tile_sample_min_width={edge}"
    return (f"{vae}.enable_tiling({tile}, tile_sample_stride_height={stride}, tile_sample_stride_width={stride})",)


def tile_edge(vae: Any) -> int:
    """Edge of the tile an autoencoder has now, in pixels (its height where tiles are not square)."""
    sizes = spatial_attributes(vae)
    return int(sizes.get("tile_sample_min_size") or sizes["tile_sample_min_height"])


def set_tile(vae: Any, edge: int) -> Undo:
    """Turn tiling on with tiles of `edge` pixels; the class's own proportions of stride, overlap and width stay.

    Sizes are whole latents, and tiles whose overlap is a share become smaller until the seams meet.  The undo
    restores the flag and every size.  Raises BadRequest for an edge below one latent.
    """
    sizes, factor = spatial_attributes(vae), _factor(vae)
    if edge < factor:
        raise BadRequest(f"Tiles of {edge} px are smaller than one latent of {factor} px; ask for at least {factor}.")
    undo = remember(vae, "use_tiling", *sizes)
    before = tile_edge(vae)
    with undone_on_error(undo):
        vae.enable_tiling()
        for name, size in sizes.items() if edge != before else ():
            setattr(vae, name, _scaled(vae, name, (size, edge, before), factor))
    return undo


def spatial_attributes(vae: Any) -> dict[str, int]:
    """The attributes that hold a tile's height and width, in pixels or latents."""
    kept = (name for name in vars(vae) if name.startswith(("tile_sample_", "tile_latent_")))
    spatial = (name for name in kept if name.endswith(("_size", "_height", "_width")))
    return {name: _edge(getattr(vae, name)) for name in spatial}


def whole(size: float, factor: int) -> int:
    """The largest multiple of `factor` up to `size`, at least one."""
    return max(int(size) // factor, 1) * factor


def _edge(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _factor(vae: Any) -> int:
    """Pixels per latent along an edge."""
    sizes = spatial_attributes(vae)
    for axis in ("size", "height"):
        if f"tile_latent_min_{axis}" in sizes:
            return max(sizes[f"tile_sample_min_{axis}"] // sizes[f"tile_latent_min_{axis}"], 1)
    return int(vae.spatial_compression_ratio)


def _scaled(vae: Any, name: str, share: tuple[int, int, int], factor: int) -> int:
    """`share` is a size, the tile wanted and the tile it was meant for."""
    size, edge, before = share
    if name.startswith("tile_latent_"):
        return _aligned(vae, name, size * factor * edge // before, factor) // factor
    pixels = size * edge // before
    return _aligned(vae, name, pixels, factor) if "_min_" in name and "overlap" not in name else whole(pixels, factor)


def _aligned(vae: Any, name: str, size: int, factor: int) -> int:
    """The largest tile up to `size` whose kept part is as long in pixels as in latents.

    diffusers rounds the overlap once in latents and once in pixels; where the two differ, the image comes out shifted.
    """
    axis = name.rpartition("_")[2]
    overlap = float(getattr(vae, f"tile_overlap_factor_{axis}", getattr(vae, "tile_overlap_factor", 0.0)))
    for latents in range(whole(size, factor) // factor, 0, -1):
        pixels = latents * factor
        if int(latents * (1 - overlap)) * factor == pixels - int(pixels * overlap):
            return pixels
    return whole(size, factor)
