"""Attention backends: who runs where, and what it holds, in sums done by hand.

The rules are those of aten's sdp_utils.cpp and attention.cu and of diffusers' processors.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from techniques.programs import device

from planner.attention import chosen, late, requests, seeds, usable
from planner.cost import rounded, temporaries
from planner.cost import scratch as most
from planner.kernels import Attention

KiB, MiB = 2**10, 2**20


def scratch(attention: Attention, capability: tuple[int, int]) -> tuple[int, ...]:
    """Requests on a card with 82 multiprocessors."""
    return requests(attention, replace(device(capability), multiprocessors=82))


SD = Attention("float16", 2, 8, 4096, 4096, 40, 40)
"""Self-attention of SD 1.5's first block at 512 x 512, both guidance branches."""
VAE = Attention("float16", 1, 1, 4096, 4096, 512, 512)
"""The middle of an image VAE's decoder at 512 x 512."""
CAPABILITIES = [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.mark.parametrize(
    ("attention", "capability", "backend"),
    [
        (SD, (8, 6), "flash"),
        (SD, (12, 0), "flash"),
        (SD, (9, 0), "cudnn"),  # cuDNN goes first on 9.x and 10.x
        (SD, (10, 0), "cudnn"),
        (SD, (7, 5), "efficient"),  # flash needs Ampere
        (replace(SD, dtype="bfloat16"), (8, 0), "flash"),
        (replace(SD, dtype="bfloat16"), (7, 5), "math"),  # the memory-efficient kernels take bf16 from 8.0 only
        (replace(SD, dtype="float32"), (8, 6), "efficient"),
        (replace(SD, dtype="float32"), (7, 5), "efficient"),
        (replace(SD, mask="float", mask_size=4096), (8, 6), "efficient"),  # flash takes no mask
        (replace(SD, mask="bool", mask_size=4096), (9, 0), "cudnn"),
        (VAE, (8, 6), "efficient"),  # flash ends at 256
        (VAE, (9, 0), "efficient"),  # and so does cuDNN
        (replace(SD, head_size=256, value_size=256), (8, 6), "flash"),
        (replace(SD, head_size=256, value_size=256), (9, 0), "cudnn"),
        (replace(SD, head_size=256, value_size=256, backend="cudnn"), (12, 0), "flash"),  # elsewhere it ends at 128
        (replace(SD, head_size=66, value_size=66, backend="efficient"), (8, 6), "math"),  # wants multiples of eight
        (replace(SD, head_size=66, value_size=66, dtype="float32"), (8, 6), "math"),  # or of four
        (replace(SD, head_size=66, value_size=66), (7, 5), "math"),
        (replace(SD, value_size=80), (8, 6), "efficient"),  # flash wants equal heads
        (replace(SD, head_size=20, value_size=20), (9, 0), "flash"),  # cuDNN wants multiples of eight
        (replace(SD, keys=1), (9, 0), "flash"),  # and more than one key
    ],
)
def test_torch_takes_the_first_backend_that_can(
    attention: Attention, capability: tuple[int, int], backend: str
) -> None:
    assert chosen(attention, capability) == backend


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("backend", ["math", "sliced"])
def test_some_backends_run_everywhere(backend: str, capability: tuple[int, int]) -> None:
    for attention in (SD, VAE, replace(SD, dtype="bfloat16"), replace(SD, mask="bool")):
        assert usable(attention, backend, capability)
        assert chosen(replace(attention, backend=backend), capability) == backend


def test_a_backend_that_cannot_run_gives_way_to_torchs_own_order() -> None:
    assert chosen(replace(VAE, backend="flash"), (8, 6)) == "efficient"
    assert chosen(replace(VAE, backend="flash", mask="bool", head_size=64, value_size=64), (9, 0)) == "efficient"
    assert chosen(replace(SD, backend="cudnn"), (7, 5)) == "efficient"
    assert chosen(replace(SD, backend="xformers"), (8, 6)) == "xformers"


def test_flash_keeps_a_sum_per_row_and_cudnn_nothing() -> None:
    """log-sum-exp, fp32, one a query: 2 · 8 · 4096 · 4 B.  cuDNN took 256 B on the virtual GPU."""
    assert scratch(SD, (8, 6)) == (256 * KiB,)
    assert scratch(SD, (9, 0)) == ()
    assert scratch(replace(SD, dtype="bfloat16"), (8, 6)) == (256 * KiB,)


def test_torchs_own_kernels_return_seeds_without_dropout_too() -> None:
    """Flash 16 + 8 B, the others twice 8, as seen on the virtual GPU: blocks of 512 B each."""
    for backend, capability in (("flash", (8, 6)), ("efficient", (7, 5)), ("cudnn", (9, 0)), ("xformers", (8, 6))):
        asked = replace(SD, backend=backend)
        assert sum(seeds(asked, device(capability))) in (16, 24)
        assert temporaries(asked, device(capability))[-2:] == seeds(asked, device(capability))
    for backend in ("math", "sliced", "sage", "flash_hub"):
        assert seeds(replace(SD, backend=backend), device((8, 6))) == ()


def test_flash_pads_heads_to_multiples_of_eight() -> None:
    """q, k, v and the output take 24 instead of 20 numbers a head, as seen on the virtual GPU: 4 times 768,000 B."""
    odd = replace(SD, head_size=20, value_size=20, queries=1000, keys=1000)
    assert scratch(odd, (8, 6)) == (768_000, 768_000, 768_000, 128_000, 64_000)


@pytest.mark.parametrize(
    ("keys", "head", "sums", "outputs"),
    [(77, 160, 8192, 1_572_864), (640, 40, 12_288, 786_432), (77, 40, 0, 0)],
)
def test_flash_splits_the_keys_where_few_queries_leave_the_card_idle(
    keys: int, head: int, sums: int, outputs: int
) -> None:
    """Two and three parts of 64 queries, heads rounded to 192 and 64; measured on the virtual GPU (108 processors)."""
    few = replace(SD, queries=64, keys=keys, head_size=head, value_size=head)
    assert requests(few, replace(device((8, 0)), multiprocessors=108))[1:] == tuple(filter(None, (sums, outputs)))


def test_the_memory_efficient_kernel_accumulates_wide_heads_in_memory() -> None:
    """Heads above 128 in half precision: an fp32 output beside the real one, 4096 · 512 · 4 B."""
    assert scratch(VAE, (8, 6)) == (8 * MiB,)
    assert scratch(VAE, (7, 5)) == (8 * MiB,)
    assert scratch(replace(VAE, dtype="float32"), (8, 6)) == ()
    for narrow in (40, 128):
        assert scratch(replace(SD, head_size=narrow, value_size=narrow, backend="efficient"), (8, 6)) == ()


@pytest.mark.parametrize(
    ("kind", "shape", "asked"),
    [
        ("bool", (77, 77), (2, 2, 11_858, ~0, ~1, 12_320, ~2)),  # to numbers, then to rows of 80
        ("float", (77, 77), (12_320,)),
        ("float", (12 * 77, 77), (147_840,)),  # expanded over heads: the copy is not
        ("bool", (2000, 304), (2, 2, 1_216_000, ~0, ~1)),  # rows that are multiples of eight stay
        ("float", (1024, 512), ()),
    ],
)
def test_rows_of_masks_are_aligned_for_the_memory_efficient_kernel(
    kind: str, shape: tuple[int, int], asked: tuple[int, ...]
) -> None:
    """Requests as seen on the virtual GPU, fp16."""
    rows, columns = shape
    how = {"mask_size": rows * columns, "mask_columns": columns, "mask_aligned": columns % 8 == 0}
    masked = replace(SD, mask=kind, keys=columns, **how)  # type: ignore[arg-type]
    assert scratch(masked, (8, 6)) == asked
    as_they_are = (2, 2, rows * columns * 2, ~0, ~1) if kind == "bool" else ()
    assert scratch(masked, (9, 0)) == as_they_are  # for cuDNN


def test_xformers_holds_what_the_kernels_it_calls_hold() -> None:
    """Its contiguous copies of q, k and v take the places of the originals."""
    assert scratch(replace(SD, backend="xformers"), (8, 6)) == (256 * KiB,)
    assert scratch(replace(SD, backend="xformers"), (7, 5)) == ()
    assert scratch(replace(VAE, backend="xformers"), (8, 6)) == (8 * MiB,)


def test_sliced_holds_one_heads_scores_twice() -> None:
    """baddbmm writes a head's 4096 x 4096 scores and softmax another: 32 MiB each in half precision.

    The output of the head before, 4096 · 40 · 2 B, is there until this one's.
    """
    assert scratch(replace(SD, backend="sliced"), (8, 6)) == (32 * MiB, 32 * MiB, 320 * KiB)


def test_math_asks_in_torchs_order() -> None:
    """The course seen on the virtual GPU: casts, scaled q and k, copies, scores, softmax, mask and its rows, halves,
    a copy of v, the product, which is cast; only that stays until it is copied to where rows are whole.
    The halves are a result that nobody takes, and go last.
    """
    small = Attention("float16", 2, 8, 1000, 1000, 64, 64, backend="math")
    copy, scores, output = 4_096_000, 64_000_000, 2_048_000
    first = (copy,) * 7 + (scores, ~6, ~5, ~4, scores, scores // 4, 16_000, 4, ~11, ~10, ~9, ~7)
    then = (scores // 2, copy, copy, ~13, output, ~14, ~8, ~3, ~2, ~1, ~0, ~12)
    assert scratch(small, (8, 6)) == first + then
    assert late(small, device((8, 6))) == (len(first + then), output)
    assert most(small, device((8, 6))) == pytest.approx(4 * copy + 9 * scores // 4 - output, abs=20_000)


def test_math_copies_only_what_lies_row_by_row() -> None:
    """Kandinsky's keys come out of a concatenation, head by head."""
    single = Attention("float32", 2, 8, 1000, 1000, 64, 64, backend="math")
    copy, scores = 4_096_000, 64_000_000
    rest = (scores, scores // 4, 16_000, 4)
    assert scratch(single, (8, 6))[:7] == (copy, copy, copy, copy, scores, ~3, ~2)
    assert scratch(replace(single, apart="q"), (8, 6))[:6] == (copy, copy, copy, scores, ~2, ~1)
    assert scratch(replace(single, apart=""), (8, 6)) == (copy, copy, scores, ~1, *rest, ~6, ~5, ~4, ~2, copy, ~3, ~0)


def test_cudnn_by_name_gets_copies() -> None:
    """diffusers lays q, k and v head by head first; torch by itself does not, and what comes of it is copied back."""
    named = replace(SD, backend="cudnn")
    copy = 2 * 8 * 4096 * 40 * 2
    assert scratch(named, (9, 0)) == (copy, copy, copy, copy, ~2, ~1, ~0)
    assert (late(named, device((9, 0)))[1], most(named, device((9, 0)))) == (copy, 3 * copy)


def test_maths_product_is_the_output_where_there_is_one_head() -> None:
    single = replace(VAE, dtype="float32", backend="math")
    copy, scores = 4096 * 512 * 4, 4096 * 4096 * 4
    assert scratch(single, (8, 6)) == (copy, copy, scores, ~1, scores, scores // 4, 4096, 4, ~6, ~5, ~4, ~2)
    assert late(single, device((8, 6)))[1] == copy
    assert late(single, device((8, 6)))[0] == len(scratch(single, (8, 6)))


@pytest.mark.parametrize(
    ("attention", "capability", "before", "after"),
    [
        (replace(SD, backend="flash"), (8, 6), (), (256 * KiB, 16, 8)),
        (replace(SD, backend="efficient"), (8, 6), (8, 8), ()),
        (SD, (9, 0), (8, 8), ()),
        (VAE, (8, 6), (8, 8), (8 * MiB,)),
        (replace(VAE, mask="bool", mask_size=4096, mask_columns=4095, mask_aligned=False), (8, 6),
         (2, 2, 8192, ~0, ~1, 8192, ~2, 8, 8), (8 * MiB,)),
    ],
)  # fmt: skip
def test_masks_and_seeds_come_before_the_output_and_room_to_accumulate_after_it(
    attention: Attention, capability: tuple[int, int], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """As the allocator's history has it on the virtual GPU."""
    assert temporaries(attention, replace(device(capability), multiprocessors=82)) == before + after
    output = attention.batch * attention.heads * attention.queries * attention.value_size * 2
    assert late(attention, device(capability)) == ((len(before), output) if before else (0, 0))


def test_fused_kernels_lay_their_output_as_queries_lie_and_the_caller_copies_it() -> None:
    """CogVideoX norms its queries head by head; of 36 numbers a head flash gives 40."""
    sums, output = 256 * KiB, 2 * 8 * 4096 * 40 * 2
    apart = replace(SD, backend="flash", apart="kv")
    assert temporaries(apart, device((8, 6))) == (output, sums, 16, 8, ~1, ~2, ~3)
    assert late(apart, device((8, 6))) == (7, output)
    assert temporaries(replace(SD, apart=""), device((9, 0))) == (8, 8, output, ~0, ~1)
    assert most(apart, device((8, 6))) == output
    assert late(replace(apart, heads=1), device((8, 6))) == late(replace(apart, queries=1), device((8, 6))) == (0, 0)
    odd = replace(SD, backend="flash", head_size=36, value_size=36)
    assert temporaries(odd, device((8, 6))) == (output,) * 4 + (sums, 16, 8, ~4, ~5, ~6, ~0, ~1, ~2)
    assert late(odd, device((8, 6))) == (13, output // 40 * 36)


def test_math_holds_nine_bytes_a_score() -> None:
    """4 + 4 + 1 B beside fp32 copies of half inputs; the output, 2 or 4 B a number, is not there yet."""
    numbers, scores = 2 * 8 * 4096 * 40, 2 * 8 * 4096 * 4096
    half = most(replace(SD, backend="math"), device((8, 6)))
    rows = 2 * 8 * 4096 + 512  # and a byte a row, whether all of it is -inf, and a zero
    assert half == 4 * numbers * 4 + 9 * scores + rows - numbers * 2
    single = most(replace(SD, backend="math", dtype="float32"), device((8, 6)))
    assert single == numbers * 4 + 9 * scores + rows - numbers * 4
    causal = most(replace(SD, backend="math", causal=True), device((8, 6)))
    assert causal - half == 4096 * 4096 * 4


ATTENTIONS = st.builds(
    Attention,
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    batch=st.integers(1, 4),
    heads=st.integers(1, 24),
    queries=st.integers(1, 5000),
    keys=st.integers(1, 5000),
    head_size=st.sampled_from([8, 20, 40, 64, 128, 160, 256, 512]),
    value_size=st.sampled_from([8, 40, 128, 512]),
    mask=st.sampled_from(["none", "bool", "float"]),
    mask_size=st.integers(0, 10**6),
    mask_columns=st.integers(0, 300),
    mask_aligned=st.booleans(),
    backend=st.sampled_from(["auto", "flash", "efficient", "cudnn", "math", "xformers", "sliced"]),
)


def taken(attention: Attention, capability: tuple[int, int]) -> int:
    """Bytes at the peak with an output that comes late."""
    return most(attention, device(capability)) + rounded(late(attention, device(capability))[1])


@given(ATTENTIONS, st.sampled_from(CAPABILITIES))
def test_whatever_is_chosen_can_run_and_holds_something_sensible(
    attention: Attention, capability: tuple[int, int]
) -> None:
    assert usable(attention, chosen(attention, capability), capability)
    held = scratch(attention, capability)
    given_back = [~size for size in held if size < 0]
    assert len(set(given_back)) == len(given_back)
    assert all(n < sum(size >= 0 for size in held[: held.index(~n)]) for n in given_back)
    if chosen(attention, capability) not in ("flash", "xformers"):  # which split where there is little to do
        larger = replace(attention, batch=attention.batch + 1)
        assert taken(attention, capability) <= taken(larger, capability)
