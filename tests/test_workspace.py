"""Scratch memory of convolutions and products by the rules, from what was measured on cuDNN 9.24 (torch 2.14.1).

x, w and y are the bytes of input, weight and output.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from techniques.programs import device

from planner.kernels import Conv
from planner.workspace import copied, cublas, early, engines

MiB = 2**20


def convolution(given: Conv, capability: tuple[int, int]) -> int:
    """Everything torch and cuDNN hold beside x, w and y."""
    card = device(capability)
    return sum(copied(given, card)) + engines(given, card)[0]


AMPERE = [(8, 0), (8, 6), (8, 9), (12, 0)]


def conv(
    dtype: str, channels: int, edge: int, out: int, kernel: int = 3, *, groups: int = 1, last: str = "", images: int = 1
) -> Conv:
    """A convolution of a square map that keeps its size; `last` names what is channels-last: x, w or both."""
    return Conv(
        dtype=dtype,
        input=(images, channels, edge, edge),
        weight=(out, channels // groups, kernel, kernel),
        output=(images, out, edge, edge),
        stride=(1, 1),
        groups=groups,
        input_last="x" in last,
        weight_last="w" in last,
        copied=last == "w",
    )


@pytest.mark.parametrize("capability", [(7, 5), *AMPERE, (9, 0)])
@pytest.mark.parametrize(
    ("given", "mebibytes"),
    [
        (conv("float16", 256, 512, 256), 128 + 1.125 + 128),
        (conv("float16", 256, 512, 128), 128 + 0.5625 + 64),
        (conv("float16", 128, 1024, 128), 256 + 0.28125 + 256),
        (conv("float16", 256, 1024, 256), 512 + 1.125 + 512),
        (conv("float16", 1280, 32, 1280, images=2), 5 + 28.125 + 5),
        (conv("float16", 512, 256, 256, kernel=1), 64 + 32),
        (conv("float16", 960, 64, 320, kernel=1, images=2), 15 + 5),
    ],
)
def test_half_precision_converts_to_channels_last_and_back(
    given: Conv, mebibytes: float, capability: tuple[int, int]
) -> None:
    """x + w + y for k x k, x + y for 1 x 1."""
    assert convolution(given, capability) == mebibytes * MiB


@pytest.mark.parametrize("capability", [*AMPERE, (9, 0)])
def test_bfloat16_is_as_float16_where_the_card_has_it(capability: tuple[int, int]) -> None:
    assert convolution(conv("bfloat16", 256, 1024, 256), capability) == 1025.125 * MiB
    assert convolution(conv("bfloat16", 256, 1024, 256, last="xw"), capability) == 0


@pytest.mark.parametrize(("last", "mebibytes"), [("", 4608), ("w", 4610)])
def test_bfloat16_unfolds_the_image_on_older_cards(last: str, mebibytes: int) -> None:
    """No cuDNN kernels below 8.0: torch's im2col, nine positions of each input channel, as was measured."""
    assert convolution(conv("bfloat16", 256, 1024, 256, last=last), (7, 5)) / MiB == pytest.approx(mebibytes, abs=1)


def test_what_a_convolution_handed_on_is_contiguous_there() -> None:
    given = replace(conv("bfloat16", 256, 64, 256), input_last=True)
    x = 256 * 64 * 64 * 2
    assert copied(given, device((7, 5)))[0] == x
    assert copied(replace(given, handed_on=True), device((7, 5)))[0] == 0
    assert copied(replace(given, handed_on=True), device((8, 0))) == copied(given, device((8, 0)))


def test_unfolding_goes_image_by_image() -> None:
    one, four = conv("bfloat16", 64, 64, 64), conv("bfloat16", 64, 64, 64, images=4)
    assert convolution(one, (7, 5)) == convolution(four, (7, 5)) == 9 * 64 * 64 * 64 * 2


@pytest.mark.parametrize(
    ("given", "nbytes"),
    [
        (conv("bfloat16", 32, 128, 32, groups=32), 0),
        (conv("bfloat16", 32, 128, 64, groups=4, images=2), 4_194_304),
        (conv("bfloat16", 32, 128, 16, groups=4, images=2), 2_359_296 + 524_288),
        (
            Conv(
                dtype="bfloat16", input=(2, 32, 128, 128), weight=(32, 64, 3, 3), output=(2, 64, 257, 257),
                stride=(2, 2), transposed=True,
            ),
            18_874_368,
        ),
        (
            Conv(
                dtype="bfloat16", input=(1, 24, 100_000), weight=(24, 1, 12), output=(1, 24, 200_010), stride=(2,),
                groups=24, transposed=True,
            ),
            9_600_480,
        ),
    ],
)  # fmt: skip
def test_unfolding_goes_group_by_group(given: Conv, nbytes: int) -> None:
    """Depthwise convolutions are torch's own; groups are joined at the end; transposed ones unfold their output."""
    assert convolution(given, (7, 5)) == nbytes


@pytest.mark.parametrize("capability", AMPERE)
@pytest.mark.parametrize(
    ("given", "mebibytes"),
    [
        (conv("float32", 256, 1024, 256), 1024 + 2.25),
        (conv("float32", 128, 1024, 128), 512 + 0.5625),
        (conv("float32", 512, 256, 512), 128 + 9),
        (conv("float32", 256, 1024, 128, kernel=1), 0),
        (conv("float32", 256, 1024, 256, last="xw"), 1024 + 2.25),
        (conv("float32", 256, 1024, 256, last="w"), 1024 + 1024 + 2.25),
    ],
)
def test_single_precision_converts_what_goes_in(given: Conv, mebibytes: float, capability: tuple[int, int]) -> None:
    """x + w contiguous, nothing for 1 x 1; channels-last the same, and x more where torch must convert first."""
    assert convolution(given, capability) == mebibytes * MiB


def test_single_precision_on_hopper_converts_both_ways() -> None:
    assert convolution(conv("float32", 256, 1024, 256), (9, 0)) == 2050.25 * MiB
    assert convolution(conv("float32", 256, 1024, 128, kernel=1), (9, 0)) == (1024 + 512) * MiB
    assert convolution(conv("float32", 256, 1024, 256, last="xw"), (9, 0)) == 0
    assert convolution(conv("float32", 256, 1024, 256, last="w"), (9, 0)) == 1024 * MiB


def test_single_precision_on_turing_does_not_grow_with_the_image() -> None:
    """About 2.8 w were measured, which is Winograd's transformed weights."""
    small, large = conv("float32", 256, 128, 256), conv("float32", 256, 1024, 256)
    assert convolution(small, (7, 5)) == convolution(large, (7, 5)) == 3 * 2.25 * MiB
    assert convolution(conv("float32", 256, 1024, 256, kernel=1), (7, 5)) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("capability", AMPERE)
def test_channels_last_half_precision_takes_nothing_but_what_torch_converts(
    dtype: str, capability: tuple[int, int]
) -> None:
    """0 if the input is channels-last already, x if it is not: after a group norm, whose output is contiguous."""
    assert convolution(conv(dtype, 256, 1024, 256, last="xw"), capability) == 0
    assert convolution(conv(dtype, 256, 1024, 256, last="w"), capability) == 512 * MiB
    assert convolution(conv(dtype, 256, 1024, 256, last="x"), capability) == 1.125 * MiB


@pytest.mark.parametrize(
    "given",
    [
        conv("float16", 4, 128, 512),
        conv("float16", 3, 1024, 128),
        conv("float16", 16, 128, 16, kernel=1),
        conv("float16", 512, 64, 512, groups=512),
    ],
)
def test_first_narrow_and_depthwise_convolutions_run_directly(given: Conv) -> None:
    assert convolution(given, (8, 6)) == 0


def test_sixteen_channels_are_converted_unless_pointwise() -> None:
    """FLUX.1's first decoder convolution, 16 to 512 channels at 128 x 128: 16.6 MiB were measured."""
    assert convolution(conv("bfloat16", 16, 128, 512), (8, 6)) == (0.5 + 0.140625 + 16) * MiB


def test_three_dimensional_convolutions_follow_the_same_rule() -> None:
    """Wan's decoder, 96 channels over 6 x 482 x 834 padded positions: 734.6 MiB were measured."""
    given = Conv("bfloat16", (1, 96, 6, 482, 834), (96, 96, 3, 3, 3), (1, 96, 4, 480, 832), (1, 1, 1))
    assert convolution(given, (8, 6)) / MiB == pytest.approx(734.6, abs=0.1)


@pytest.mark.parametrize(
    ("size", "capabilities"),
    [(8_519_680, [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9)]), (33_554_432, [(9, 0), (10, 0), (12, 0)])],
)
def test_cublas_keeps_one_workspace(size: int, capabilities: list[tuple[int, int]]) -> None:
    """0x820000 bytes by default, 0x2000000 for major versions 9 to 12 (torch 2.14, parseChosenWorkspaceSize)."""
    assert {cublas(capability) for capability in capabilities} == {size}


def test_pointwise_weights_lie_in_both_layouts() -> None:
    """Nothing was copied on the virtual GPU where the input alone is channels-last."""
    assert convolution(conv("float16", 1024, 64, 4096, kernel=1, last="x"), (8, 6)) == 0


@pytest.mark.parametrize(
    ("given", "mebibytes"),
    [
        (conv("bfloat16", 512, 80, 512, images=6, last="x"), 94.2),  # columns and a contiguous input
        (conv("bfloat16", 384, 32, 384, images=2, last="w"), 9.3),  # columns and a contiguous weight
        (conv("bfloat16", 512, 160, 256, kernel=1, images=12), 0),  # a product as it stands
    ],
)
def test_unfolding_on_older_cards_works_on_contiguous_tensors(given: Conv, mebibytes: float) -> None:
    """Measured on the virtual GPU, compute capability 7.5."""
    assert convolution(given, (7, 5)) / MiB == pytest.approx(mebibytes, abs=0.5)


@pytest.mark.parametrize("capability", AMPERE)
def test_images_beyond_32_bit_indices_are_converted(capability: tuple[int, int]) -> None:
    """15,880 MiB were measured on the virtual GPU on 8.0, 8.6 and 12.0."""
    x, w, y = (1, 256, 19, 706, 1282), (256, 256, 3, 3, 3), (1, 256, 17, 704, 1280)
    assert convolution(Conv("float16", x, w, y, (1, 1, 1)), capability) / MiB == pytest.approx(15_880, abs=1)


@pytest.mark.parametrize("capability", [*AMPERE, (9, 0), (10, 0)])
def test_beyond_32_bits_layout_and_channels_decide(capability: tuple[int, int]) -> None:
    """Measured on the virtual GPU: nothing with channels last or from three channels, and short of memory nothing."""
    assert engines(conv("float16", 256, 3000, 256, last="xw"), device(capability)) == (0,)
    assert engines(conv("bfloat16", 3, 4200, 128), device(capability)) == (0,)
    rooms = engines(conv("float32", 256, 3000, 256), device(capability), every=True)
    assert rooms[0] == 2 * 256 * 3000**2 * 4 + 256 * 256 * 9 * 4
    assert rooms[-1] == 0


def test_input_and_weight_are_copied_one_by_one() -> None:
    """On the virtual GPU the input's copy comes before the result, the weight's after (an upsampling decoder's)."""
    weight = 256 * 256 * 9 * 2
    assert copied(conv("float16", 256, 64, 256, last="w"), device((8, 6))) == (256 * 64**2 * 2, 0)
    assert copied(conv("float16", 256, 64, 256, last="x"), device((8, 6))) == (0, weight)


def test_unfolding_copies_both_before_the_result() -> None:
    """On a Turing card FLUX.1's decode in channels-last asked for 9.4 MB of weight, then for the result: its first
    convolution, of a tile cut out of the latents, copied that one, too.
    """
    last = conv("bfloat16", 512, 96, 512, last="xw")
    tile = replace(conv("bfloat16", 16, 96, 512, last="w"), scattered=True)
    old, new = device((7, 5)), device((8, 6))
    assert copied(last, old) == (512 * 96**2 * 2, 512 * 512 * 9 * 2)
    assert copied(tile, old) == (16 * 96**2 * 2, 16 * 512 * 9 * 2)
    assert copied(replace(tile, scattered=False), old) == (0, 16 * 512 * 9 * 2)
    assert [early(given, card) for given in (last, tile) for card in (old, new)] == [2, 1, 2, 1]
