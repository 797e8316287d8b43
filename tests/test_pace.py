"""Seconds against rooflines worked out by hand, and against what cannot be otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from techniques.programs import device

from planner.pace import LAUNCH, LEAF_SECONDS, Pace
from planner.program import Attention, Conv, Kernel, Matmul, Plain

CARD = device((8, 9))
"""100 TFLOP/s in half precision, 20 in single, 400 GB/s, 20 GB/s pinned and 8 pageable."""
TURING = replace(CARD, compute_capability=(7, 5), native_bf16=False)
SHARE, STREAMED = 0.75, 0.75
MAP = (1, 256, 1024, 1024)
CONV = Conv("float16", MAP, (256, 256, 3, 3), MAP, (1, 1), input_last=True, weight_last=True)
CONV_FLOPS = 2 * 256 * 1024 * 1024 * 256 * 9
ATTENTION = Attention("float16", 2, 8, 4096, 4096, 64, 64)


def seconds(kernel: Kernel, card: object = CARD, tracing: str = "none") -> float:
    return Pace(card, tracing).kernel(kernel)  # type: ignore[arg-type]


def test_elementwise_kernels_take_their_traffic() -> None:
    assert seconds(Plain("add", 0, 3 * 10**9)) == pytest.approx(3e9 / (4e11 * STREAMED))
    assert seconds(Plain("add", 0, 3 * 10**9), tracing="compile") == pytest.approx(1.5e9 / (4e11 * STREAMED))


def test_products_take_the_longer_of_arithmetic_and_traffic() -> None:
    assert seconds(Matmul("float16", 10**13, 1)) == pytest.approx(10**13 / (1e14 * SHARE))
    assert seconds(Matmul("float16", 1, 3 * 10**9)) == pytest.approx(3e9 / (4e11 * STREAMED))
    assert seconds(Matmul("float32", 10**13, 1)) == pytest.approx(10**13 / (2e13 * SHARE))


def test_bfloat16_without_tensor_cores_runs_at_the_single_rate() -> None:
    product = Matmul("bfloat16", 10**13, 1)
    assert seconds(product) == pytest.approx(10**13 / (1e14 * SHARE))
    assert seconds(product, TURING) == pytest.approx(10**13 / (2e13 * SHARE))


def test_single_precision_convolutions_use_tensor_float_from_ampere_on() -> None:
    conv = replace(CONV, dtype="float32", input_last=False, weight_last=False)
    assert seconds(conv) == pytest.approx(CONV_FLOPS / (5e13 * SHARE))
    assert seconds(conv, TURING) == pytest.approx(CONV_FLOPS / (2e13 * SHARE))


def test_contiguous_half_precision_convolutions_pay_for_the_conversion() -> None:
    x = y = 256 * 1024 * 1024 * 2
    work = CONV_FLOPS / (1e14 * SHARE)
    assert seconds(CONV) == pytest.approx(work)
    there_and_back = 2 * (x + y) / (4e11 * STREAMED)
    assert seconds(replace(CONV, input_last=False, weight_last=False)) == pytest.approx(work + there_and_back)
    assert seconds(replace(CONV, input_last=False)) == pytest.approx(work + 2 * x / (4e11 * STREAMED))


def test_attention_takes_two_products() -> None:
    flops = 2 * 16 * 4096 * 4096 * 128
    assert seconds(ATTENTION) == pytest.approx(flops / (1e14 * SHARE))


def test_math_attention_moves_its_scores_and_multiplies_in_single_precision() -> None:
    flops, scores = 2 * 16 * 4096 * 4096 * 128, 16 * 4096 * 4096 * 4
    inputs = 16 * 2 * (2 * 4096 * 64 + 4096 * 128)
    taken = seconds(replace(ATTENTION, backend="math"))
    assert taken == pytest.approx(flops / (2e13 * SHARE) + (3 * inputs + 8 * scores) / (4e11 * STREAMED))


def test_backends_rank_as_people_measure_them() -> None:
    taken = {b: seconds(replace(ATTENTION, backend=b)) for b in ("flash", "xformers", "sliced", "math")}
    assert taken["flash"] < taken["xformers"] < taken["sliced"] < taken["math"]


@pytest.mark.parametrize("tracing", ["none", "jit", "compile"])
def test_nothing_is_quicker_than_its_launch(tracing: str) -> None:
    for kernel in (Plain("add", 1, 1), Matmul("float16", 1, 1), Attention("float16", 1, 1, 1, 1, 8, 8)):
        assert seconds(kernel, tracing=tracing) == LAUNCH[tracing]


def test_whole_components_arrive_at_the_pageable_rate() -> None:
    assert Pace(CARD).load(16 * 10**9, 100, whole=True) == pytest.approx(2.0)


def test_leaves_arrive_sooner_but_each_takes_its_time() -> None:
    assert Pace(CARD).load(16 * 10**9, 1000, whole=False) == pytest.approx(1.0 + 1000 * LEAF_SECONDS)
    slow = replace(CARD, pageable_rate=15e9)
    assert Pace(slow).load(20 * 10**9, 0, whole=False) == pytest.approx(1.0), "never above the pinned rate"


KERNELS = st.one_of(
    st.builds(Plain, st.just("add"), st.integers(0, 10**9), st.integers(0, 10**10)),
    st.builds(
        Matmul, st.sampled_from(["float32", "float16", "bfloat16"]), st.integers(0, 10**14), st.integers(0, 10**10)
    ),
    st.builds(
        lambda dtype, input_last, weight_last: replace(
            CONV, dtype=dtype, input_last=input_last, weight_last=weight_last
        ),
        st.sampled_from(["float32", "float16", "bfloat16"]),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        lambda dtype, backend, keys: replace(ATTENTION, dtype=dtype, backend=backend, keys=keys),
        st.sampled_from(["float32", "float16", "bfloat16"]),
        st.sampled_from(["auto", "flash", "efficient", "cudnn", "math", "xformers", "sliced"]),
        st.integers(1, 10**4),
    ),
)


@given(KERNELS, st.sampled_from([CARD, TURING, device((8, 0)), device((9, 0))]))
def test_a_faster_card_is_never_slower(kernel: Kernel, card: object) -> None:
    twice = replace(  # type: ignore[type-var]
        card, half_rate=2 * card.half_rate, single_rate=2 * card.single_rate, bandwidth=2 * card.bandwidth
    )
    before, after = seconds(kernel, card), seconds(kernel, twice)
    assert after <= before
    assert after >= before / 2 * (1 - 1e-9)
