"""What CUDA's kernels hold beside their outputs, and what a convolution and an attention are said to be.

Orders of requests are those of the allocator's own history on the virtual GPU (torch 2.14.1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from planner.dispatch import Dispatch, Functions
from planner.events import Alloc, Free, Run
from planner.kernels import Attention, Conv, Kernel, Plain, Reduction
from planner.recorder import Recorder

K = TypeVar("K", Plain, Conv, Attention)
MODE = FakeTensorMode(allow_non_fake_inputs=True)


def ghost(*shape: int, dtype: torch.dtype = torch.float16, last: bool = False) -> torch.Tensor:
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape)) if last else None
    with MODE:
        return torch.empty(shape, dtype=dtype, memory_format=layout or torch.contiguous_format)


def recorded(call: Callable[[], Any]) -> tuple[list[Any], list[Kernel]]:
    """Sizes requested and given back in order, kernels named; and the kernels."""
    recorder = Recorder()
    recorder.enter("", "Test")
    with torch.no_grad(), Functions(recorder, MODE), Dispatch(recorder, MODE):
        out = call()
    events = recorder.drop()
    del out
    sizes = {event.buffer: event.size for event in events if isinstance(event, Alloc)}
    told: list[Any] = []
    for event in events:
        match event:
            case Alloc(_, size):
                told.append(size)
            case Free(buffer):
                told.append(-sizes[buffer])
            case Run(kernel):
                told.append(getattr(recorder.kernels[kernel], "name", "kernel"))
    return told, recorder.kernels


def the(kind: type[K], call: Callable[[], Any]) -> K:
    found = [kernel for kernel in recorded(call)[1] if isinstance(kernel, kind)]
    assert len(found) == 1
    return found[0]


def test_nearest_copies_what_lies_otherwise_and_not_channels_last() -> None:
    """As the virtual GPU does: what attention leaves in an autoencoder is a transposed view."""
    double = partial(functional.interpolate, scale_factor=2.0, mode="nearest")
    rows = ghost(1, 64, 64).transpose(1, 2)
    for call, copied in (
        (lambda: double(ghost(1, 64, 8, 8)), 0),
        (lambda: double(rows.reshape(1, 64, 8, 8)), 64 * 8 * 8 * 2),
        (lambda: double(ghost(1, 64, 8, 8, last=True)), 0),
    ):
        assert the(Plain, call).scratch == copied


def test_a_number_that_is_raised_becomes_a_tensor() -> None:
    """Frequencies of positions are powers of 10000; the other way round the number stays one."""
    angles = ghost(45, dtype=torch.float64)
    assert the(Plain, lambda: 10000**angles).scratch == 8
    assert the(Plain, lambda: angles**2).scratch == 0


def test_what_is_infinite_is_told_by_magnitudes_that_take_room() -> None:
    """T5 looks at what each of its layers gives in half precision."""
    rows = ghost(1, 64, 64)
    size = 64 * 64
    assert recorded(lambda: torch.isinf(rows))[0] == [2 * size, "abs", size, "eq", -2 * size]


CARD = torch.device("cpu")
"""Ghosts lie on the CPU, and pipelines name the card by their device."""


def test_a_table_takes_room_when_it_reaches_the_card() -> None:
    """As timesteps and token ids do: what the host makes and works out is on nobody's account."""
    assert recorded(lambda: torch.zeros(4))[0] == []
    assert recorded(lambda: torch.zeros(4, device="cpu"))[0] == []
    assert recorded(lambda: torch.cat([torch.arange(4), torch.ones(2, dtype=torch.int64)]) + 1)[0] == []
    assert recorded(lambda: torch.tensor([1.0, 2.0]).to(CARD, torch.float16))[0] == [4]
    assert recorded(lambda: torch.from_numpy(numpy.arange(4)).to(device=CARD) + 1)[0] == [32, 32, "add", -32]
    assert recorded(lambda: torch.tensor(4096).to(CARD))[0] == [8]  # for each sliding window, in transformers' caches


def test_a_table_made_on_the_card_is_there_from_the_beginning() -> None:
    assert recorded(lambda: torch.zeros(4, device=CARD))[0] == [16, "zeros"]
    assert recorded(lambda: torch.tensor([7.5], device=CARD))[0] == [4]
    assert recorded(lambda: torch.zeros(4, device=CARD).to(CARD))[0] == [16, "zeros"]
    assert recorded(lambda: torch.tensor(2.0) * torch.ones(4, device=CARD))[0] == [16, "ones", 16, "mul", -16]


def test_a_table_that_is_a_plain_attribute_reaches_the_card_when_it_is_asked_to() -> None:
    """No module moves it (Qwen-Image's positions); what an operation made is there already."""
    table = ghost(1024, 8, dtype=torch.complex64)
    assert recorded(lambda: table.to(CARD))[0] == [65536, "copy"]
    assert recorded(lambda: table.to(torch.complex128))[0] == [131072, "_to_copy"], "no device is named"
    assert recorded(lambda: (table.to(CARD) * 2).to(CARD))[0] == [65536, "copy", 65536, "mul", -65536]


def test_a_picture_that_is_cast_comes_row_by_row_and_is_copied_once_more() -> None:
    """Pictures of numpy lie with their channels last, and so they do on the card."""
    picture = torch.from_numpy(numpy.zeros((1, 64, 64, 3), numpy.float32)).permute(0, 3, 1, 2)
    assert the(Plain, lambda: picture.to(CARD, torch.float16)).scratch == 64 * 64 * 3 * 2
    assert the(Plain, lambda: picture.to(CARD)).scratch == 0
    assert the(Plain, lambda: picture.contiguous().to(CARD, torch.float16)).scratch == 0


@pytest.mark.parametrize("home", [lambda table: table.cpu(), lambda table: table.to("cpu")])
def test_a_table_that_goes_home_leaves_its_room(home: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """As Euler's sigmas, which the host reads at every step."""
    assert recorded(lambda: home(torch.tensor([1.0, 2.0]).to(CARD)) * 2)[0] == [8, -8]


def test_reductions_say_how_their_numbers_lie() -> None:
    x = ghost(2, 64, 64, 640)
    norm = the(Reduction, lambda: torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True))
    assert (norm.results, norm.values, norm.along, norm.vector) == (2 * 640, 64 * 64, False, 4)
    mean = the(Reduction, lambda: x.mean(-1))
    assert (mean.results, mean.values, mean.along, mean.vector) == (2 * 64 * 64, 640, True, 4)


def test_group_norm_copies_what_lies_otherwise_after_its_output_is_there() -> None:
    size, row = 2 * 320 * 64 * 64 * 2, 2 * 32 * 2
    for last, copied in ((False, []), (True, [size])):
        x = ghost(2, 320, 64, 64, last=last)
        told, _ = recorded(lambda x=x: functional.group_norm(x, 32))
        tables = [2 * row, 2 * row]  # statistics in single precision
        kernel = "native_group_norm"
        back = [-each for each in (2 * row, 2 * row, *copied, row, row)]
        assert told == [size, row, row, *copied, *tables, kernel, *back]


def test_group_norm_by_weights_holds_factors_too() -> None:
    x, weight = ghost(2, 320, 8, 8), ghost(320)
    told, _ = recorded(lambda: functional.group_norm(x, 32, weight, weight))
    factors = 2 * 320 * 4
    assert told[5:] == [factors, factors, "native_group_norm", -factors, -factors, -256, -256, -128, -128]


def test_layer_norm_copies_before() -> None:
    x = ghost(2, 320, 64).transpose(1, 2)
    told, _ = recorded(lambda: functional.layer_norm(x, (320,)))
    size = 2 * 320 * 64 * 2
    assert told[:4] == [size, "contiguous", size, 2 * 64 * 4]
    assert -size in told[4:]


@pytest.mark.parametrize(
    ("x", "weight", "copied", "scattered"),
    [
        (ghost(1, 64, 32, 32), ghost(64, 64, 3, 3), False, False),
        (ghost(1, 64, 32, 32), ghost(64, 64, 3, 3, last=True), True, False),
        (ghost(1, 64, 32, 32, last=True), ghost(64, 64, 3, 3), False, False),
        (ghost(1, 64, 32, 34)[..., :32], ghost(64, 64, 3, 3), True, True),
        (ghost(1, 64, 32, 34)[..., :32], ghost(64, 64, 3, 3, last=True), True, True),
        (ghost(1, 64, 4, 34, 34)[:, :, 1:], ghost(64, 64, 3, 3, 3), True, True),
    ],
)
def test_a_convolution_says_what_torch_copies_first(
    x: torch.Tensor, weight: torch.Tensor, copied: bool, scattered: bool
) -> None:
    convolve = functional.conv2d if x.dim() == 4 else functional.conv3d
    conv = the(Conv, lambda: convolve(x, weight, padding=1))
    assert (conv.copied, conv.scattered) == (copied, scattered)


def test_a_convolution_says_how_it_goes() -> None:
    conv = the(Conv, lambda: functional.conv2d(ghost(1, 8, 33, 33), ghost(16, 4, 3, 3), None, 2, 2, 2, 2))
    assert (conv.stride, conv.padding, conv.dilation, conv.groups) == ((2, 2), (2, 2), (2, 2), 2)
    assert not conv.transposed
    grown = the(Conv, lambda: functional.conv_transpose1d(ghost(1, 8, 33), ghost(8, 16, 4), None, 2, 1))
    assert grown.transposed
    assert grown.output == (1, 16, 66)


def test_a_convolution_says_whether_one_before_it_made_its_input_channels_last() -> None:
    """Cards without cuDNN's bfloat16 would have left it contiguous: the residual stream of a decoder, upsampled."""

    def convolutions(x: torch.Tensor) -> list[bool]:
        weight = ghost(8, 8, 3, 3, dtype=x.dtype)

        def stream() -> torch.Tensor:
            made = functional.conv2d(x, weight, padding=1)
            summed = made / 2 + ghost(1, 8, 16, 16, dtype=x.dtype)
            return functional.conv2d(functional.interpolate(summed, scale_factor=2.0, mode="nearest"), weight)

        return [kernel.handed_on for kernel in recorded(stream)[1] if isinstance(kernel, Conv)]

    assert convolutions(ghost(1, 8, 16, 16, dtype=torch.bfloat16, last=True)) == [False, True]
    assert convolutions(ghost(1, 8, 16, 16, dtype=torch.bfloat16)) == [False, False]
    assert convolutions(ghost(1, 8, 16, 16, last=True)) == [False, False], "half precision has cuDNN everywhere"


def attend(mask: torch.Tensor | None) -> Attention:
    q = ghost(2, 8, 64, 40)
    k = ghost(2, 8, 77, 40)
    return the(Attention, lambda: functional.scaled_dot_product_attention(q, k, k, attn_mask=mask))


def test_an_attention_says_whether_the_rows_of_its_mask_are_aligned() -> None:
    assert attend(None).mask_aligned
    uneven = attend(ghost(2, 1, 1, 77))
    assert (uneven.mask_size, uneven.mask_columns, uneven.mask_aligned) == (154, 77, False)
    assert attend(ghost(2, 1, 1, 80)[..., :77]).mask_aligned
    assert attend(ghost(2, 1, 1, 77).expand(2, 8, 64, 77)).mask_size == 2 * 8 * 64 * 77


@pytest.mark.parametrize(("library", "switchable"), [("diffusers.models.attention", True), ("transformers.x", False)])
def test_diffusers_chooses_the_backend_of_its_own_attention_only(library: str, switchable: bool) -> None:
    space: dict[str, Any] = {"__name__": library, "attend": attend}
    exec("def call(): return attend(None)", space)
    assert space["call"]().switchable is switchable


def test_a_product_of_two_dtypes_is_refused_as_on_the_card() -> None:
    """Layers that look at the dtype of their weights cast their input to fp8, and layerwise casting then not them."""
    x, weight = ghost(2, 8, dtype=torch.float8_e4m3fn), ghost(4, 8)
    with pytest.raises(RuntimeError, match="float8_e4m3fn and float16"):
        recorded(lambda: functional.linear(x, weight))


def test_shuffled_pixels_lie_contiguously_as_on_the_card() -> None:
    """A CPU has a kernel that keeps channels last; CUDA has none."""
    image, weight = ghost(1, 4, 8, 8, last=True), ghost(8, 16, 3, 3)
    conv = the(Conv, lambda: functional.conv2d(functional.pixel_unshuffle(image, 2), weight))
    assert (conv.input, conv.input_last) == ((1, 16, 4, 4), False)
    conv = the(Conv, lambda: functional.conv2d(functional.pixel_shuffle(ghost(1, 64, 8, 8, last=True), 2), weight))
    assert (conv.input, conv.input_last) == ((1, 16, 16, 16), False)
