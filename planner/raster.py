"""Raster: a picture as PNG, by resvg and with a font that comes along, so that it is the same on every machine."""

from __future__ import annotations

from typing import Any

from planner.errors import BadRequest

SCALE = 2
"""Pixels for each unit of a picture: 1600 across, for screens of high density."""


def png(svg: str) -> bytes:
    """The picture as PNG.  Raises BadRequest where the extra `png` is not installed."""
    resvg, font = _tools()
    made: bytes = resvg.svg_to_bytes(
        svg_string=svg,
        zoom=SCALE,
        skip_system_fonts=True,
        font_files=[font.Lato, font.LatoBold],
        sans_serif_family="Lato",
    )
    return made


def check() -> None:
    """Refuse before any work is done where PNG cannot be made.  Raises BadRequest."""
    _tools()


def _tools() -> tuple[Any, Any]:
    try:
        import font_lato
        import resvg_py
    except ModuleNotFoundError as error:
        raise BadRequest(
            f"A .png needs {error.name}; run pip install 'vram-planner[png]', or name a .svg, which needs nothing."
        ) from error
    return resvg_py, font_lato
