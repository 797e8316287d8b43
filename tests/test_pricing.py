"""Pricing: what the card has no kernel for is refused before it is priced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from techniques import programs

from planner.errors import Unserved
from planner.kernels import Conv
from planner.pricing import _check
from planner.program import Program

BY_CHANNEL = Conv(
    dtype="bfloat16", input=(2, 6720, 16, 16), weight=(6720, 1, 5, 5), output=(2, 6720, 16, 16), stride=(1, 1),
    groups=6720, input_last=True,
)  # fmt: skip
"""As in the linear attention of Sana's blocks (SanaMultiscaleAttentionProjection)."""


def convolving(conv: Conv) -> Program:
    return programs.program(programs.transformer(), transformer=(conv,))


@pytest.mark.parametrize(
    ("changes", "capability", "refused"),
    [
        ({}, (7, 5), True),
        ({"weight_last": True, "input_last": False}, (7, 0), True),
        ({}, (8, 0), False),
        ({"dtype": "float16"}, (7, 5), False),
        ({"input_last": False}, (7, 5), False),
        ({"groups": 4}, (7, 5), False),
        ({"transposed": True}, (7, 5), False),
    ],
)
def test_what_cudnn_has_no_engine_for_is_refused(
    changes: dict[str, Any], capability: tuple[int, int], refused: bool
) -> None:
    """As on the virtual GPU, all layouts, groups and dtypes on 7.0 to 12.0."""
    program, card = convolving(replace(BY_CHANNEL, **changes)), programs.device(capability)
    if not refused:
        _check(program, card)
        return
    with pytest.raises(
        Unserved, match=r"6720 channels one by one in bfloat16 .* 7\.\d \(card\); ask for dtype float16"
    ):
        _check(program, card)


def test_kernels_of_other_programs_of_a_family_are_no_reason() -> None:
    plain = replace(BY_CHANNEL, input_last=False)
    program = convolving(plain)
    _check(replace(program, kernels=(*program.kernels, BY_CHANNEL)), programs.device((7, 5)))
