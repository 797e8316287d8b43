from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from planner.errors import BadRequest
from planner.program import Setting, Variant
from planner.request import Fidelity, Request
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.techniques.tiles import ALLEGRO as ALLEGRO_KIND
from planner.techniques.tiles import KNOWN, Tile, covering
from planner.techniques.vae_tiling import (
    VaeTiling,
    plain_calls,
    set_tile,
    spatial_attributes,
    tile_attributes,
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


COGVIDEOX = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "layers_per_block": 1, "latent_channels": 4,
}  # fmt: skip
HUNYUAN = {
    "block_out_channels": (8, 8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 4,
    "spatial_compression_ratio": 16, "temporal_compression_ratio": 4,
}  # fmt: skip
ALLEGRO = {
    "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1, "temporal_compression_ratio": 4,
}  # fmt: skip
IMAGE = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "latent_channels": 4} | {
    f"{way}_block_types": (f"{name}Block2D",) * 4 for way, name in (("down", "DownEncoder"), ("up", "UpDecoder"))
}
DECODED = (
    ("AutoencoderKL", IMAGE, 8, "64/24", (1, 4, 12, 16)),
    ("AutoencoderKL", IMAGE, 8, "64/32", (1, 4, 12, 12)),
    ("AutoencoderKLCogVideoX", COGVIDEOX, 8, 80, (1, 4, 2, 12, 18)),
    ("AutoencoderKLCogVideoX", COGVIDEOX, 8, "80/24", (1, 4, 2, 12, 18)),
    ("AutoencoderKLHunyuanVideo15", HUNYUAN, 16, 64, (1, 4, 2, 5, 6)),
    ("AutoencoderKLHunyuanVideo15", HUNYUAN, 16, "64/32", (1, 4, 2, 5, 6)),
    ("AutoencoderKLAllegro", ALLEGRO, 8, "64/16", (1, 4, 6, 14, 20)),
)


@pytest.mark.parametrize(("kind", "config", "factor", "value", "latents"), DECODED, ids=lambda each: str(each)[:32])
def test_decodes_as_the_class_itself_and_as_before(
    kind: str, config: dict[str, Any], factor: int, value: str | int, latents: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    ours = getattr(diffusers, kind)(**config).eval()
    plain = getattr(diffusers, kind)(**config).eval()
    plain.load_state_dict(ours.state_dict())
    allegro = kind == "AutoencoderKLAllegro"  # decodes in tiles alone
    if allegro:
        ours.enable_tiling()
        ours.kernel, ours.stride = (24, 96, 96), (16, 64, 64)
    tile, given, own = Tile.of(value), torch.randn(latents), 0 if allegro else tile_edge(ours)
    pipe, before = type("Pipe", (), {"vae": plain}), dict(vars(ours))
    with torch.no_grad():
        whole = ours.decode(given).sample
        undo = set_tile(ours, tile.edge, tile.overlap)
        for call in plain_calls(programs.vae(kind=kind, tile=own, factor=factor), tile):
            exec(call, {"pipe": pipe})
        tiled = ours.decode(given).sample
        assert torch.equal(tiled, plain.decode(given).sample)
        assert tiled.shape == whole.shape
        assert not torch.equal(tiled, whole)
        undo()
        assert torch.equal(ours.decode(given).sample, whole)
    assert {name: value for name, value in vars(ours).items() if name[0] != "_"} == {
        name: value for name, value in before.items() if name[0] != "_"
    }


@pytest.mark.parametrize("size", [(720, 1280), (480, 832), (368, 640), (512, 512)])
def test_what_allegro_is_offered_covers_the_picture(size: tuple[int, int]) -> None:
    tiles = list(covering(*size, 8))
    assert tiles
    for tile in tiles:
        stride = tile.edge - tile.overlap
        assert all((axis - tile.edge) % stride == 0 for axis in size)
        assert stride % 8 == 0
        assert tile.edge / 2 <= stride <= tile.edge * 0.75
        assert any(tile.edge < axis for axis in size)


@pytest.mark.parametrize(
    ("value", "changes", "reason"),
    [
        ("512/60", {}, "multiples of 8 px, which 512/60 is not"),
        ("515", {}, "multiples of 8 px, which 515 is not"),
        ("512/264", {}, "264 is more than half of 512"),
        ("384/136", {}, "otherwise in latents than in pixels"),
        ("384", {"kind": "AutoencoderKLNew", "tile": 320}, "known in 1 size, 320"),
        ("384/64", {"kind": "AutoencoderKLAllegro", "tile": 0}, "leaves black what tiles of 384/64 do not cover"),
    ],
)
def test_a_tile_that_cannot_be_had_gets_the_reason(value: str, changes: dict[str, Any], reason: str) -> None:
    whole = programs.program(programs.vae(**changes))
    request = Request(height=1024, width=1024, use=(f"vae_tiling={value}",))
    assert value not in [str(option.value) for option in TILING.options(whole, programs.device(), request)]
    assert reason in TILING.lacks(value, whole, programs.device())


def test_a_tile_that_is_named_is_offered() -> None:
    for value in ("512/64", "640"):
        asked = Request(height=1024, width=1024, use=(f"vae_tiling={value}",))
        assert value in map(str, offered(asked))
    with pytest.raises(BadRequest, match="512/64"):
        offered(Request(height=1024, width=1024, use=("vae_tiling=512x64",)))


def test_an_overlap_is_recorded_as_a_setting_of_its_own() -> None:
    variant = TILING.variant(Variant(), Option(technique="vae_tiling", value="512/64"))
    assert variant == Variant(settings=(Setting("vae_tiling", "512/64", "autoencoder"),))


def test_cogvideox_and_allegro_have_ladders_of_their_own() -> None:
    clip = Request(height=480, width=720, frames=49)
    assert offered(clip, kind="AutoencoderKLCogVideoX", tile=240) == [320, 240, 160]
    assert offered(Request(height=720, width=1280), kind="AutoencoderKLAllegro", tile=0) == ["440/160", "160/48"]
    assert offered(Request(height=720, width=1280), kind="AutoencoderKLHunyuanVideo15", tile=256, factor=16) == [
        1024, 768, 512, 384, 256
    ]  # fmt: skip


def test_allegro_needs_an_overlap() -> None:
    vae = diffusers.AutoencoderKLAllegro(**ALLEGRO)
    with pytest.raises(BadRequest, match="name an overlap"):
        set_tile(vae, 160)


def built(kind: str) -> Any:
    """An autoencoder of this class as its attributes are at birth, with its weights left out."""
    with torch.device("meta"):
        return getattr(diffusers, kind)()


TAKES_ARGUMENTS = {"AutoencoderKLHunyuanImage", "AutoencoderKLKVAE"}


@pytest.mark.parametrize("kind", sorted(KNOWN - {ALLEGRO_KIND} - TAKES_ARGUMENTS))
@pytest.mark.parametrize("edge", [256, 384, 768])
def test_plain_calls_do_the_same(kind: str, edge: int) -> None:
    if not hasattr(diffusers, kind):
        pytest.skip(f"diffusers {diffusers.__version__} has no {kind}")
    ours, plain = built(kind), built(kind)
    factor = (
        8 if kind in ("AutoencoderTiny", "AutoencoderKLCogVideoX") else getattr(ours, "spatial_compression_ratio", 0)
    )
    factor = factor or ours.tile_sample_min_size // ours.tile_latent_min_size
    set_tile(ours, edge)
    component = programs.vae(kind=kind, tile=tile_edge(plain), factor=factor)
    pipe = type("Pipe", (), {"vae": plain})
    for call in plain_calls(component, Tile(edge)):
        exec(call, {"pipe": pipe})
    assert plain.use_tiling
    for name in tile_attributes(ours):
        assert getattr(plain, name) == getattr(ours, name), name


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
