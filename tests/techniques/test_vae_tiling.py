from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from planner.errors import BadRequest
from planner.program import Variant
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.vae_tiling import (
    SIZED,
    STRIDES,
    VaeTiling,
    plain_calls,
    set_tile,
    spatial_attributes,
    tile_edge,
)

from . import programs, tiny

TILING = VaeTiling()


@pytest.mark.parametrize(("name", "edge"), [("sd", 64), ("wan", 64)])
def test_close_during_and_equal_after(name: str, edge: int, tmp_path: Any) -> None:
    pipe = tiny.MAKERS[name](tmp_path)
    call = tiny.arguments(pipe, edge=96) | {"generator": torch.Generator().manual_seed(3)}
    call.pop("generator")
    before, output = snapshot(pipe), tiny.run(pipe, **call, generator=torch.Generator().manual_seed(3))
    tiles: list[int] = []
    decoder = pipe.vae.decoder.register_forward_pre_hook(lambda _, args: tiles.append(args[0].shape[-1]))
    undo = TILING.apply(pipe, Option(technique="vae_tiling", value=edge, fidelity=Fidelity.FAITHFUL))
    tiled = tiny.run(pipe, **call, generator=torch.Generator().manual_seed(3))
    decoder.remove()
    assert max(tiles) == edge // 8
    assert len(tiles) > 1
    assert tiled.shape == output.shape
    assert (tiled - output).abs().mean() < 0.1
    undo()
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe, **call, generator=torch.Generator().manual_seed(3)), output)


def test_attributes_of_a_square_tile() -> None:
    vae = tiny.image_vae()
    assert tile_edge(vae) == 512
    undo = set_tile(vae, 384)
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == (True, 384, 48)
    undo()
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == (False, 512, 64)


def test_the_own_tile_changes_the_flag_alone(wan: Any) -> None:
    before = spatial_attributes(wan.vae)
    set_tile(wan.vae, 256)
    assert wan.vae.use_tiling
    assert spatial_attributes(wan.vae) == before


def test_too_small_a_tile_is_refused(wan: Any) -> None:
    before = snapshot(wan)
    with pytest.raises(BadRequest, match="8 px"):
        set_tile(wan.vae, 4)
    assert before == snapshot(wan)


@pytest.mark.parametrize("edge", [240, 256, 384, 512])
def test_cogvideox_tiles_meet_without_a_shift(edge: int) -> None:
    blocks = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1, **blocks
    )
    assert tile_edge(vae) == 240
    set_tile(vae, edge)
    for axis, latents, overlap in (
        (vae.tile_sample_min_height, vae.tile_latent_min_height, vae.tile_overlap_factor_height),
        (vae.tile_sample_min_width, vae.tile_latent_min_width, vae.tile_overlap_factor_width),
    ):
        assert axis == latents * 8
        assert int(latents * (1 - overlap)) * 8 == axis - int(axis * overlap)
    assert vae.tile_sample_min_height <= edge


def built(kind: str) -> Any:
    """An autoencoder of this class as its attributes are at birth, with its weights left out."""
    with torch.device("meta"):
        return getattr(diffusers, kind)()


TAKES_ARGUMENTS = {"AutoencoderKLHunyuanImage", "AutoencoderKLKVAE"}


@pytest.mark.parametrize("kind", sorted((SIZED | STRIDES.keys()) - TAKES_ARGUMENTS))
@pytest.mark.parametrize("edge", [256, 384, 768])
def test_plain_calls_do_the_same(kind: str, edge: int) -> None:
    if not hasattr(diffusers, kind):
        pytest.skip(f"diffusers {diffusers.__version__} has no {kind}")
    ours, plain = built(kind), built(kind)
    factor = 8 if kind == "AutoencoderTiny" else getattr(ours, "spatial_compression_ratio", 0)
    factor = factor or ours.tile_sample_min_size // ours.tile_latent_min_size
    set_tile(ours, edge)
    component = programs.vae(kind=kind, tile=tile_edge(plain), factor=factor)
    pipe = type("Pipe", (), {"vae": plain})
    for call in plain_calls(component, edge):
        exec(call, {"pipe": pipe})
    assert plain.use_tiling
    assert spatial_attributes(plain) == spatial_attributes(ours)


def offered(request: Request, **changes: object) -> list[object]:
    whole = programs.program(programs.vae(**changes))
    return [option.value for option in TILING.options(whole, programs.device(), request)]


def test_ladder_stops_below_the_image() -> None:
    assert offered(Request(height=768, width=512)) == [512, 384, 256]
    assert offered(Request(height=1024, width=1024)) == [768, 512, 384, 256]
    assert offered(Request(height=256, width=256)) == []


def test_own_tile_is_offered_and_unknown_classes_keep_it() -> None:
    assert offered(Request(height=768, width=512), tile=640) == [640, 512, 384, 256]
    assert offered(Request(height=768, width=512), kind="AutoencoderKLNew", tile=320) == [320]


def test_not_offered_when_exactness_is_asked() -> None:
    assert offered(Request(height=1024, width=1024, fidelity=Fidelity.EXACT)) == []


def test_variant() -> None:
    assert TILING.variant(Variant(), Option(technique="vae_tiling", value=384)).tile == 384
