"""What a card is taken to hold outside torch."""

from __future__ import annotations

from dataclasses import replace

from planner.cards import card, catalogue
from planner.device import BARE_CONTEXTS, KERNELS, published_context
from planner.probe import device_of_size


def test_a_published_context_is_taken_and_the_largest_where_there_is_none() -> None:
    assert card("rtx-3090").context == BARE_CONTEXTS[8, 6] + KERNELS
    assert card("rtx-4090").context == BARE_CONTEXTS[8, 9] + KERNELS
    assert card("rtx-5090").context == max(BARE_CONTEXTS.values()) + KERNELS
    assert all(
        known.device.context >= max(BARE_CONTEXTS.values()) or known.device.context == published_context((8, 6))
        for known in catalogue()
    )


def test_a_measured_context_stays() -> None:
    assert replace(card("rtx-3090"), context=10**9).context == 10**9


def test_a_card_of_a_size_has_its_own_architecture_s_context() -> None:
    assert device_of_size(10**10, (8, 9)).context == published_context((8, 9))
