"""Seconds against rooflines worked out by hand, and against what cannot be otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from techniques.programs import device

from planner.device import Device
from planner.efficiency import Efficiency
from planner.kernels import Attention, Conv, Kernel, Matmul, Plain, Reduction
from planner.pace import EXPONENTIALS, GUARDS, ISSUES, LEAF_SECONDS, RETURN, WATTS, WINOGRAD, Pace

PLAIN = Efficiency(
    product=1.0, feeding=0.0, before_ampere=0.5, convolution=0.5, single=1.0, efficient=0.5, wide=0.5, softmax=0.0,
    unfused=4.0, streaming=1.0, resident=0.0, cached=1.0, norms=2.0, tail=0.0, watt=1e12, server=2e-6, desktop=1e-6,
    fused=0.25,
)  # fmt: skip
"""Figures that are easy to reckon with: peaks reached, no cache, no tails."""
CARD = replace(device((8, 9)), multiprocessors=64)
"""100 TFLOP/s in half precision, 20 in single, 400 GB/s, 20 GB/s pinned and 8 pageable."""
TURING = replace(CARD, compute_capability=(7, 5), native_bf16=False)
MAP = (1, 256, 1024, 1024)
CONV = Conv("float16", MAP, (256, 256, 3, 3), MAP, (1, 1), input_last=True, weight_last=True)
CONV_FLOPS = 2 * 256 * 1024 * 1024 * 256 * 9
ATTENTION = Attention("float16", 2, 8, 4096, 4096, 64, 64)
ATTENTION_FLOPS = 2 * 16 * 4096 * 4096 * 128


def seconds(kernel: Kernel, card: Device = CARD, tracing: str = "none", reached: Efficiency = PLAIN) -> float:
    return Pace(card, tracing, reached).kernel(kernel)


def test_elementwise_kernels_take_their_traffic() -> None:
    assert seconds(Plain("add", 0, 4 * 10**9)) == pytest.approx(0.01)
    assert seconds(Plain("native_group_norm", 0, 4 * 10**9)) == pytest.approx(0.02), "its input is read twice"


@pytest.mark.parametrize(("tracing", "left"), [("jit", 0.625), ("compile", 0.25), ("regional", 0.25), ("graphs", 0.25)])
def test_graphs_fuse_elementwise_kernels(tracing: str, left: float) -> None:
    assert seconds(Plain("add", 0, 4 * 10**9), tracing=tracing) == pytest.approx(0.01 * left)
    assert seconds(Matmul("float16", 10**12, 1), tracing=tracing) == pytest.approx(0.01)


def test_views_that_torch_calls_operations_take_only_the_host() -> None:
    pace = Pace(CARD)
    assert pace.kernel(Plain("_unsafe_view", 0, 10**9)) == 0.0
    assert pace.issue(Plain("_unsafe_view", 0, 10**9)) > 0.0


def test_what_is_in_the_cache_comes_sooner() -> None:
    cached = replace(PLAIN, resident=0.5, cached=4.0)
    half = CARD.l2 // 2
    assert seconds(Plain("add", 0, half), reached=cached) == pytest.approx(half / 4 / 4e11)
    assert seconds(Plain("add", 0, 3 * half), reached=cached) == pytest.approx((2 * half + half / 4) / 4e11)


def test_products_take_the_longer_of_arithmetic_and_traffic() -> None:
    assert seconds(Matmul("float16", 10**13, 1)) == pytest.approx(0.1)
    assert seconds(Matmul("float16", 1, 4 * 10**9)) == pytest.approx(0.01)
    assert seconds(Matmul("float32", 10**13, 1)) == pytest.approx(0.5)


def test_blocks_that_do_not_fill_the_card_take_a_whole_turn() -> None:
    def product(rows: int) -> float:
        return seconds(Matmul("float16", 2 * rows * 1024 * 8192, 1, (1, rows, 1024, 8192)))

    assert product(1024) == pytest.approx(2 * 1024 * 1024 * 8192 / 1e14), "64 blocks of 128 × 128 on as many processors"
    turns = 3 * 64 / (2 * 72 * 0.9)  # 144 blocks of 64 × 128 at nine tenths of the rate
    assert product(1024 + 128) == pytest.approx(2 * (1024 + 128) * 1024 * 8192 / 1e14 * turns), (
        "72 would take two turns"
    )
    assert product(1) <= 128 * product(1024), "small products are split along their depth"


def test_quick_tensor_cores_wait_for_operands() -> None:
    waiting = replace(PLAIN, feeding=1e-12)
    assert seconds(Matmul("float16", 10**13, 1), reached=waiting) == pytest.approx(0.1 * (1 + 1e14 / 64 * 1e-12))


def test_the_power_limit_holds_where_tensor_cores_want_more() -> None:
    weak = replace(CARD, power=40.0)
    assert seconds(Matmul("float16", 10**13, 1), weak) == pytest.approx(10**13 / (40 * WATTS[8, 9]))
    assert seconds(Matmul("float16", 10**13, 1), replace(CARD, power=400.0)) == pytest.approx(0.1)


def test_bfloat16_without_tensor_cores_runs_at_the_single_rate() -> None:
    product = Matmul("bfloat16", 10**13, 1)
    assert seconds(product) == pytest.approx(0.1)
    assert seconds(product, TURING) == pytest.approx(0.5)


def test_pascal_computes_half_precision_in_single() -> None:
    pascal = replace(TURING, compute_capability=(6, 1))
    assert seconds(Matmul("float16", 10**13, 1), pascal) == pytest.approx(0.5)


def test_single_precision_convolutions_use_tensor_float_from_ampere_on_and_fewer_products_before() -> None:
    conv = replace(CONV, dtype="float32", input_last=False, weight_last=False)
    assert seconds(conv) == pytest.approx(CONV_FLOPS / (5e13 * 0.5))
    assert seconds(conv, TURING) == pytest.approx(CONV_FLOPS / (2e13 * 0.5 * WINOGRAD))


def test_contiguous_half_precision_convolutions_pay_for_the_conversion() -> None:
    x = y = 256 * 1024 * 1024 * 2
    w = 256 * 256 * 9 * 2
    work = CONV_FLOPS / (1e14 * 0.5)
    assert seconds(CONV) == pytest.approx(work)
    there_and_back = 2 * (x + w + y) / 4e11
    assert seconds(replace(CONV, input_last=False, weight_last=False)) == pytest.approx(work + there_and_back)
    assert seconds(replace(CONV, input_last=False)) == pytest.approx(work + 2 * x / 4e11)


def test_attention_takes_two_products_of_padded_heads_and_a_softmax() -> None:
    cycles = 16 * 4096 * 4096 / (2e13 / 256)
    taken = ATTENTION_FLOPS / 1e14 + cycles / EXPONENTIALS
    assert seconds(ATTENTION) == pytest.approx(taken)
    odd = replace(ATTENTION, head_size=40, value_size=40)
    assert seconds(odd) == pytest.approx(taken), "no kernel has 40, the next has 64"
    assert seconds(ATTENTION, reached=replace(PLAIN, softmax=8)) == pytest.approx(taken + cycles * 8 / 128)
    ampere = replace(CARD, compute_capability=(8, 0))
    narrow = seconds(ATTENTION, ampere, reached=replace(PLAIN, softmax=8)) - seconds(ATTENTION, ampere)
    assert narrow == pytest.approx(16 * 4096 * 4096 / (2e13 / 128) * 8 / 64), "half the units, as many operations"


def test_the_memory_efficient_kernel_has_a_share_of_its_own_where_its_sums_stay_in_registers() -> None:
    masked = replace(ATTENTION, mask="full", head_size=128, value_size=128)
    for kernel, figure in ((masked, "efficient"), (replace(masked, head_size=256, value_size=256), "wide")):
        halved = replace(PLAIN, **{figure: getattr(PLAIN, figure) / 2})
        assert seconds(kernel, reached=halved) > seconds(kernel)
        other = "wide" if figure == "efficient" else "efficient"
        assert seconds(kernel, reached=replace(PLAIN, **{other: 0.1})) == seconds(kernel)


def test_math_attention_moves_its_scores_and_multiplies_in_single_precision() -> None:
    scores, inputs = 16 * 4096 * 4096 * 4, 16 * 2 * (2 * 4096 * 64 + 4096 * 128)
    taken = seconds(replace(ATTENTION, backend="math"))
    assert taken == pytest.approx(ATTENTION_FLOPS / 2e13 + (3 * inputs + 4 * scores) / 4e11)


def test_backends_rank_as_people_measure_them() -> None:
    taken = {b: Pace(CARD).kernel(replace(ATTENTION, backend=b)) for b in ("flash", "xformers", "unfused", "math")}
    assert taken["flash"] < taken["xformers"] < taken["unfused"] < taken["math"]


@pytest.mark.parametrize("tracing", ["none", "jit", "compile", "regional"])
def test_every_launch_takes_the_host_its_time(tracing: str) -> None:
    pace = Pace(CARD, tracing, PLAIN)
    server, measured = replace(CARD, server=True), replace(CARD, server=True, issue=9e-6)
    for kernel in (Plain("add", 1, 1), Matmul("float16", 1, 1), Attention("float16", 1, 1, 1, 1, 8, 8)):
        assert 0 < pace.issue(kernel) <= ISSUES[type(kernel)] * 1e-6
        assert replace(pace, device=server).issue(kernel) == pytest.approx(2 * pace.issue(kernel))
        assert replace(pace, device=measured).issue(kernel) == pytest.approx(9 * pace.issue(kernel))
    assert Pace(CARD, "graphs").issue(Plain("add", 1, 1)) == 0.0


def test_an_elementwise_operation_takes_the_host_less_than_a_product_and_a_convolution_more() -> None:
    add, product = Pace(CARD).issue(Plain("add", 1, 1)), Pace(CARD).issue(Matmul("float16", 1, 1))
    assert add < product == Pace(CARD).issue(ATTENTION) < Pace(CARD).issue(CONV)
    assert Pace(CARD).issue(Reduction("sum", 1, 1)) == add
    mean = (510 * add + 216 * product + 98 * Pace(CARD).issue(CONV)) / 824
    assert mean == pytest.approx(Pace(CARD).reached.desktop, rel=0.01), "what a launch takes in the mean over a U-Net"


def test_a_compiled_component_is_looked_at_before_it_begins() -> None:
    assert Pace(CARD).entry() == Pace(CARD, "jit").entry() == 0.0
    assert Pace(CARD, "graphs").entry() == Pace(CARD, "compile").entry() == GUARDS * Pace(CARD).reached.desktop


def test_whole_components_arrive_at_the_pageable_rate_and_return_at_less() -> None:
    assert Pace(CARD).load(16 * 10**9, 100, whole=True) == pytest.approx(2.0)
    assert Pace(CARD).unload(16 * 10**9) == pytest.approx(2.0 / RETURN)


def test_each_leaf_takes_its_time() -> None:
    assert Pace(CARD).load(16 * 10**9, 1000, whole=False) == pytest.approx(2.0 + 1000 * LEAF_SECONDS)


SHAPES = st.one_of(st.just(()), st.tuples(*[st.integers(1, 5000)] * 4))
KERNELS = st.one_of(
    st.builds(Plain, st.sampled_from(["add", "native_layer_norm"]), st.integers(0, 10**9), st.integers(0, 10**10)),
    st.builds(
        Matmul,
        st.sampled_from(["float32", "float16", "bfloat16"]),
        st.integers(0, 10**14),
        st.integers(10**9, 10**10),
        SHAPES,
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
        st.sampled_from(["auto", "flash", "efficient", "cudnn", "math", "xformers", "sliced", "unfused"]),
        st.integers(1, 10**4),
    ),
)


@given(KERNELS, st.sampled_from([CARD, TURING, device((8, 0)), device((9, 0))]))
def test_a_faster_card_is_never_slower(kernel: Kernel, card: Device) -> None:
    """Twice the multiprocessors at the same clock would fill worse; the same ones at twice the clock do not."""
    twice = replace(card, half_rate=2 * card.half_rate, single_rate=2 * card.single_rate, bandwidth=2 * card.bandwidth)
    before, after = Pace(card).kernel(kernel), Pace(twice).kernel(kernel)
    assert after <= before
    assert after >= before / 2 * (1 - 1e-9)
