"""Card profiles: every file is sane, and cards are found as people and drivers name them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import cards
from planner.errors import UnknownDevice
from planner.profiles import read_toml, shipped

GIB = 2**30
FILES = sorted((shipped() / "gpus").glob("*.toml"))


def test_every_card_of_the_list_is_there():
    assert len(FILES) == 116
    apple = [file for file in FILES if file.stem.startswith("apple-")]
    assert len(apple) == 14
    assert len(cards.cards()) == len(set(cards.cards())) == 102


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_says_what_it_is_and_where_it_is_from(file):
    facts = read_toml(file)
    assert facts["name"]
    assert facts["device_name"]
    assert facts["architecture"]
    assert facts["sources"]
    assert isinstance(facts["native_bf16"], bool)
    assert ("vram" in facts) == ("bandwidth" in facts) == ("pcie_lanes" in facts)


@pytest.mark.parametrize("slug", cards.cards())
def test_every_card_has_sane_figures(slug):
    device = cards.card(slug)
    assert device.free == device.total
    assert 4 * GIB <= device.total <= 192 * GIB
    assert 100e9 <= device.bandwidth <= 8e12
    assert 2e12 <= device.single_rate <= 130e12
    assert device.single_rate <= device.half_rate <= 2.3e15
    assert 2**20 <= device.l2 <= 2**28
    assert device.pageable_rate <= device.pinned_rate <= 24e9
    assert device.pcie[0] in (3, 4, 5)
    assert device.pcie[1] in (8, 16)
    assert device.source == f"card profile {slug}"
    nvidia = "AMD" not in device.name
    assert nvidia == (device.compute_capability >= (6, 0)) == (device.multiprocessors > 0)
    if nvidia:
        assert device.native_bf16 == (device.compute_capability >= (8, 0))


def test_one_card_figure_by_figure():
    device = cards.card("rtx-3070")
    assert device.name == "NVIDIA GeForce RTX 3070"
    assert device.total == 8 * GIB
    assert device.compute_capability == (8, 6)
    assert device.multiprocessors == 46
    assert device.half_rate == pytest.approx(40.6e12)
    assert device.single_rate == pytest.approx(20.31e12)
    assert device.bandwidth == 448e9
    assert device.l2 == 4 * 2**20
    assert (device.pinned_rate, device.pageable_rate) == (12e9, 5e9)


def test_the_rate_of_a_link_doubles_with_generation_and_lanes():
    assert cards.pinned_rate(3, 16) == 6e9
    assert cards.pinned_rate(4, 8) == 6e9
    assert cards.pinned_rate(5, 16) == 24e9


@pytest.mark.parametrize(
    ("spoken", "slug"),
    [
        ("rtx-3070", "rtx-3070"),
        ("RTX 3070", "rtx-3070"),
        ("3070", "rtx-3070"),
        ("3070 8GB", "rtx-3070"),
        ("geforce rtx3070", "rtx-3070"),
        ("NVIDIA GeForce RTX 3070", "rtx-3070"),
        ("rtx-3060", "rtx-3060-12gb"),
        ("4060 ti 16gb", "rtx-4060-ti-16gb"),
        ("3080-12GB", "rtx-3080-12gb"),
        ("TITAN RTX", "titan-rtx"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("a100_sxm4_80gb", "a100-sxm4-80gb"),
        ("Tesla T4", "t4"),
        ("6000 ada", "rtx-6000-ada"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop"),
        ("NVIDIA GeForce RTX 2060", "rtx-2060"),
        ("rtx 2060 laptop", "rtx-2060-laptop"),
        ("7900 xtx", "rx-7900-xtx"),
    ],
)
def test_a_card_is_found_as_people_name_it(spoken, slug):
    assert cards.card(spoken).source == f"card profile {slug}"


@pytest.mark.parametrize("slug", cards.cards())
def test_every_card_is_found_by_its_own_names(slug):
    [known] = [each for each in cards.catalogue() if each.slug == slug]
    for spoken in (known.slug, known.name, known.slug.upper(), known.name.replace(" ", "")):
        assert cards.card(spoken) == known.device


def test_an_ambiguous_name_lists_the_cards_it_may_mean():
    with pytest.raises(UnknownDevice, match="rtx-3080-10gb, rtx-3080-12gb"):
        cards.card("3080")
    with pytest.raises(UnknownDevice, match="rtx-4060-ti-16gb, rtx-4060-ti-8gb"):
        cards.card("NVIDIA GeForce RTX 4060 Ti")


@pytest.mark.parametrize(
    ("spoken", "hint"),
    [
        ("a100", "a100-sxm4-80gb"),
        ("rtx-3070x", "closest are rtx-3070,"),
        ("3070 16gb", "rtx-3070"),
        ("voodoo", "lists all"),
    ],
)
def test_an_unknown_name_gets_advice(spoken, hint):
    with pytest.raises(UnknownDevice, match=hint):
        cards.card(spoken)


def test_unified_memory_is_refused_with_a_reason():
    with pytest.raises(UnknownDevice, match="shares the machine's memory"):
        cards.card("Apple M1 Max")


@given(st.text(max_size=40))
def test_any_text_is_a_card_or_unknown(text):
    try:
        found = cards.card(text)
    except UnknownDevice:
        return
    assert found in {known.device for known in cards.catalogue()}


@pytest.mark.parametrize(
    ("name", "capability", "total", "slug", "exact"),
    [
        ("NVIDIA GeForce RTX 3080", (8, 6), 10 * GIB, "rtx-3080-10gb", True),
        ("NVIDIA GeForce RTX 3080", (8, 6), 12 * GIB, "rtx-3080-12gb", True),
        ("Tesla T4", (7, 5), 15360 * 2**20, "t4", True),
        ("NVIDIA GeForce RTX 5090", (12, 0), 32607 * 2**20, "rtx-5090", True),
        ("NVIDIA GeForce RTX 2060", (7, 5), 6 * GIB, "rtx-2060", False),  # a laptop's or a desktop's, nobody can tell
        ("NVIDIA GeForce RTX 2060", (7, 5), 12 * GIB, "rtx-2080-ti", False),
        ("NVIDIA GB10", (12, 1), 120 * GIB, "rtx-pro-6000-blackwell-server", False),
        ("NVIDIA RTX 4500 Ada Generation", (8, 9), 24 * GIB, "rtx-4090-d", False),
    ],
)
def test_a_reported_device_gets_the_nearest_profile(name, capability, total, slug, exact):
    device, same = cards.nearest(name, capability, total)
    assert (device.source, same) == (f"card profile {slug}", exact)


@given(
    st.text(max_size=30),
    st.sampled_from(sorted({each.device.compute_capability for each in cards.catalogue()})),
    st.integers(min_value=0, max_value=2**40),
)
def test_a_stand_in_has_the_same_compute_capability_where_one_exists(name, capability, total):
    device, _ = cards.nearest(name, capability, total)
    assert device.compute_capability == capability


def test_nothing_heavy_is_imported():
    code = "import sys; from planner import cards; cards.cards(); assert not {'torch', 'pynvml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
