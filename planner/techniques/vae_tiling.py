"""VAE tiling: the autoencoder works on overlapping tiles and blends their seams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner.device import Device
from planner.errors import BadRequest
from planner.kernels import Conv
from planner.program import Component, Program, Setting, Variant
from planner.request import Fidelity, Request
from planner.techniques.base import Option, Scope, Undo
from planner.techniques.live import in_reverse, modules, remember, undone_on_error
from planner.techniques.tiles import (
    ALLEGRO,
    COGVIDEOX,
    COGVIDEOX_OWN,
    COGVIDEOX_SHARES,
    SIZED,
    SQUARE_SHARES,
    STRIDES,
    Tile,
    meeting,
    width_of,
)
from planner.techniques.tiles import offered as tiles_of

SHARE = "tile_overlap_factor"
TRAVEL = ("kernel", "stride")
IMPORT = "from planner.techniques.vae_tiling import set_tile"
"""For tiles whose proportions no call of diffusers is known to give."""


@dataclass(frozen=True, slots=True)
class VaeTiling:
    """Decode and encode in tiles.  Faithful: seams are blended, and norms see one tile at a time."""

    name: str = "vae_tiling"
    scope: Scope = "autoencoder"
    needs: str = "an autoencoder that tiles, and an image larger than its smallest tile"

    def options(self, program: Program, device: Device, request: Request) -> tuple[Option, ...]:  # noqa: ARG002
        if request.fidelity < Fidelity.FAITHFUL:
            return ()
        able, (height, width) = _able(program), _picture(program, request)
        tiles = {tile for component in able for tile in tiles_of(component, height, width)}
        named = (value for name, _, value in (used.partition("=") for used in request.use) if name == self.name)
        tiles |= {tile for tile in map(Tile.of, filter(None, named)) if _possible(tile, able, max(height, width))}
        return tuple(self._option(able, tile) for tile in sorted(tiles, key=lambda tile: (-tile.edge, tile.overlap)))

    def lacks(self, value: str, program: Program, device: Device) -> str:  # noqa: ARG002
        """Why a tile that was named cannot be had."""
        able = _able(program)
        return next(filter(None, (Tile.of(value).lacks(component) for component in able)), "") if value else ""

    def variant(self, variant: Variant, option: Option) -> Variant:
        tile = Tile.of(option.value)
        if tile.overlap:
            return variant.under(Setting(self.name, option.value, self.scope))
        return replace(variant, tile=tile.edge)

    def apply(self, pipe: Any, option: Option) -> Undo:
        tile = Tile.of(option.value)
        able = [part for part in modules(pipe).values() if hasattr(part, "use_tiling") and spatial_attributes(part)]
        undo = in_reverse(remember(part, "use_tiling", *tile_attributes(part)) for part in able)
        with undone_on_error(undo):
            for part in able:
                set_tile(part, tile.edge, tile.overlap)
        return undo

    def _option(self, able: tuple[Component, ...], tile: Tile) -> Option:
        calls = tuple(dict.fromkeys(call for component in able for call in plain_calls(component, tile)))
        return Option(technique=self.name, value=tile.value, fidelity=Fidelity.FAITHFUL, calls=calls)

    def rewrite(self, program: Program, option: Option) -> Program:  # noqa: ARG002
        return program


def _able(program: Program) -> tuple[Component, ...]:
    able = (component for component in program.components if "tiling" in component.traits)
    return tuple(component for component in able if component.tile or component.kind == ALLEGRO)


def _picture(program: Program, request: Request) -> tuple[int, int]:
    """Height and width in pixels: as requested, else as the program's widest convolution shows."""
    edge = request.height or request.width
    if edge:
        return request.height or edge, request.width or edge
    shown = max((max(k.output[2:]) for k in program.kernels if isinstance(k, Conv) and k.output[2:]), default=0)
    return shown, shown


def _possible(tile: Tile, able: Sequence[Component], largest: int) -> bool:
    return bool(able) and tile.edge < largest and not any(tile.lacks(component) for component in able)


def plain_calls(component: Component, tile: Tile) -> tuple[str, ...]:
    """The diffusers statements that give this autoencoder such tiles; ours where its proportions are not known."""
    vae, edge, overlap = f"pipe.{component.name}", tile.edge, tile.overlap
    if component.kind == ALLEGRO:
        kernel, stride = (f"{vae}.{name} = ({vae}.{name}[0], {size}, {size})" for name, size in _travel(tile))
        return (f"{vae}.enable_tiling()", kernel, stride)
    if edge == component.tile and not overlap:
        return (f"{vae}.enable_tiling()",)
    if component.kind in SIZED:
        latent = edge // component.factor
        sizes = f"{vae}.tile_sample_min_size = {edge}", f"{vae}.tile_latent_min_size = {latent}"
        share = (f"{vae}.tile_overlap_factor = {overlap} / {edge}",) if overlap else ()
        return (f"{vae}.enable_tiling()", *sizes, *share)
    if component.kind == COGVIDEOX and component.tile != COGVIDEOX_OWN[0]:
        return IMPORT, f"set_tile({vae}, {edge}{f', {overlap}' if overlap else ''})"
    return (f"{vae}.enable_tiling({', '.join(_arguments(component, tile))})",)


def _arguments(component: Component, tile: Tile) -> Iterator[str]:
    """Of `enable_tiling`, where it takes any."""
    factor, width = component.factor, width_of(tile.edge) if component.kind == COGVIDEOX else tile.edge
    axes = (("height", tile.edge), ("width", width))
    yield from (f"tile_sample_min_{axis}={edge}" for axis, edge in axes)
    if component.kind in SQUARE_SHARES:
        yield from (f"tile_latent_min_{axis}={edge // factor}" for axis, edge in axes)
        yield from (f"tile_overlap_factor={tile.overlap} / {tile.edge}",) if tile.overlap else ()
    elif component.kind == COGVIDEOX:
        for (axis, edge), share in zip(axes, COGVIDEOX_SHARES, strict=True):
            overlap = tile.overlap or round((meeting(edge, share, factor) or share) * edge)
            yield f"tile_overlap_factor_{axis}={overlap} / {edge}"
    else:
        own = whole(tile.edge * STRIDES.get(component.kind, 0.75), factor)
        yield from (
            f"tile_sample_stride_{axis}={tile.edge - tile.overlap if tile.overlap else own}" for axis, _ in axes
        )


def _travel(tile: Tile) -> tuple[tuple[str, int], ...]:
    """The two attributes of Allegro's autoencoder that hold frames, heights and widths, and the latter two."""
    return ("kernel", tile.edge), ("stride", tile.edge - tile.overlap)


def tile_edge(vae: Any) -> int:
    """Edge of the tile an autoencoder has now, in pixels (its height where tiles are not square); 0 where unknown."""
    if _covers(vae):
        return int(vae.kernel[1])
    sizes = spatial_attributes(vae)
    return int(sizes.get("tile_sample_min_size") or sizes.get("tile_sample_min_height", 0))


def set_tile(vae: Any, edge: int, overlap: int = 0) -> Undo:
    """Turn tiling on with tiles of `edge` pixels; the class's own proportions of stride, overlap and width stay.

    With an `overlap` in pixels that is theirs.  Sizes are whole latents; where an overlap is a share it grows to whole
    latents, too, or tiles become smaller, until the seams meet.  The undo restores the flag and every size.  Raises
    BadRequest for an edge below one latent.
    """
    sizes, factor = spatial_attributes(vae), _factor(vae)
    if edge < factor:
        raise BadRequest(f"Tiles of {edge} px are smaller than one latent of {factor} px; ask for at least {factor}.")
    undo, before = remember(vae, "use_tiling", *tile_attributes(vae)), tile_edge(vae)
    if _covers(vae) and edge != before and not overlap:
        raise BadRequest(
            f"Tiles of {edge} px leave black what they do not cover with the overlap that was made for {before}; name "
            "an overlap, too."
        )
    with undone_on_error(undo):
        vae.enable_tiling()
        if _covers(vae) and overlap:
            for name, size in _travel(Tile(edge, overlap)):
                setattr(vae, name, (getattr(vae, name)[0], size, size))
        elif edge != before or overlap:
            _scale(vae, sizes, (edge, before), factor)
            _overlap(vae, overlap)
    return undo


def spatial_attributes(vae: Any) -> dict[str, int]:
    """The attributes that hold a tile's height and width, in pixels or latents."""
    if _covers(vae):
        return {name: int(getattr(vae, name)[1]) for name in TRAVEL}
    kept = (name for name in vars(vae) if name.startswith(("tile_sample_", "tile_latent_")))
    spatial = (name for name in kept if name.endswith(("_size", "_height", "_width")))
    return {name: _edge(getattr(vae, name)) for name in spatial}


def tile_attributes(vae: Any) -> tuple[str, ...]:
    """All that `set_tile` sets, but for the flag."""
    return (*spatial_attributes(vae), *(name for name in vars(vae) if name.startswith(SHARE)))


def whole(size: float, factor: int) -> int:
    """The largest multiple of `factor` up to `size`, at least one."""
    return max(int(size) // factor, 1) * factor


def _edge(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _covers(vae: Any) -> bool:
    return type(vae).__name__ == ALLEGRO


def _factor(vae: Any) -> int:
    """Pixels per latent along an edge."""
    sizes = spatial_attributes(vae)
    for axis in ("size", "height"):
        if f"tile_latent_min_{axis}" in sizes:
            return max(sizes[f"tile_sample_min_{axis}"] // sizes[f"tile_latent_min_{axis}"], 1)
    return int(vae.spatial_compression_ratio)


def _scale(vae: Any, sizes: Mapping[str, int], edges: tuple[int, int], factor: int) -> None:
    """From the tile that `sizes` belong to, the second of `edges`, to the first."""
    edge, before = edges
    latents = {name: size for name, size in sizes.items() if name.startswith("tile_latent_")}
    for name, size in sizes.items():
        if name in latents:
            continue
        scaled, share = whole(size * edge // before, factor), _share(vae, name)
        if "_min_" in name and share:
            scaled, found = _meeting(scaled, getattr(vae, share), factor)
            setattr(vae, share, found)
        setattr(vae, name, scaled)
        twin = name.replace("tile_sample_", "tile_latent_")
        if twin in latents:
            setattr(vae, twin, scaled // factor)


def _overlap(vae: Any, overlap: int) -> None:
    """Give tiles an overlap of so many pixels; 0 leaves it."""
    for name, size in spatial_attributes(vae).items() if overlap else ():
        if name.startswith("tile_sample_min_"):
            stride, share = name.replace("_min_", "_stride_"), _share(vae, name)
            setattr(vae, share or stride, overlap / size if share else size - overlap)


def _share(vae: Any, name: str) -> str:
    """The attribute that holds which share of that edge overlaps; empty where a stride says it."""
    names = f"{SHARE}_{name.rpartition('_')[2]}", SHARE
    return next((each for each in names if hasattr(vae, each)), "")


def _meeting(pixels: int, share: float, factor: int) -> tuple[int, float]:
    """The largest tile up to so many pixels whose seams meet under a share, or under that of the next whole latent."""
    for edge in range(pixels, 0, -factor):
        found = meeting(edge, share, factor)
        if found is not None:
            return edge, found
    return pixels, share
