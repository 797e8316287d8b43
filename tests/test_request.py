"""Budgets and requests: what is read, what is refused and with which advice, and JSON both ways."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from planner.device import Device
from planner.errors import BadBudget, BadRequest
from planner.request import Budget, Fidelity, Request
from planner.sizes import Size

CARD = Device(
    name="NVIDIA GeForce RTX 4090",
    total=24564 * 2**20,
    free=23 * 10**9,
    compute_capability=(8, 9),
    multiprocessors=128,
    half_rate=165e12,
    single_rate=82e12,
    bandwidth=1008e9,
    l2=72 * 2**20,
    pinned_rate=25e9,
    pageable_rate=10e9,
    native_bf16=True,
)

BUDGETS = st.one_of(
    st.integers(1, 10**13).map(lambda n: Budget(amount=n)),
    st.decimals(Decimal("0.1"), 100, places=1).map(lambda p: Budget(percent=p)),
    st.integers(0, 10**13).map(lambda n: Budget(reserve=n)),
)
COUNTS = st.none() | st.integers(1, 10**6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=6
)
PICTURES = st.sampled_from([(), True, "640x480", "auto*2, 64x32", Image.new("RGB", (8, 16))])
REQUESTS = st.builds(
    Request,
    height=COUNTS,
    width=COUNTS,
    frames=COUNTS,
    images=st.integers(1, 64),
    prompts=st.integers(1, 64),
    steps=COUNTS,
    guidance=st.none() | st.floats(0, 30),
    prompt_tokens=COUNTS,
    image=PICTURES,
    mask=PICTURES,
    control=PICTURES,
    video=PICTURES,
    strength=st.none() | st.floats(0, 1, exclude_min=True),
    extra=st.dictionaries(st.text(), VALUES, max_size=3).map(lambda extra: tuple(extra.items())),
    budget=BUDGETS,
    host_ram=st.none() | st.integers(1, 10**13),
    disk=st.none() | st.integers(1, 10**13),
    fidelity=st.sampled_from(Fidelity),
    dtype=st.sampled_from([None, "float16", "bf16", "torch.float32"]),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 2**33),
        (2**33, 2**33),
        ("8589934592", 2**33),
        ("100%", CARD.free),  # what others hold nobody can have
        ("24GB", CARD.free),
        ("80%", CARD.total * 8 // 10),
        (" 12.5 % ", CARD.total // 8),
        ("auto", CARD.free),
        ("AUTO", CARD.free),
        ("auto-1GB", CARD.free - 10**9),
        ("auto - 1GiB", CARD.free - 2**30),
    ],
)
def test_budget_resolves(text: str | int, expected: int) -> None:
    assert Budget.parse(text).resolve(CARD) == expected


@pytest.mark.parametrize(
    "text", ["8 bananas", "", "auto-", "auto-2 bananas", "auto+1GB", "autopilot", "%", "-8GB", True]
)
def test_unreadable_budget_names_the_forms(text: str) -> None:
    with pytest.raises(BadBudget, match=r"is not a budget; write 8GB .*, 80%, auto or auto-1GB"):
        Budget.parse(text)


@pytest.mark.parametrize(("text", "words"), [("0GB", "leaves nothing"), ("0%", "between 0 and"), ("101%", "101%")])
def test_budget_outside_the_possible_is_refused_when_read(text: str, words: str) -> None:
    with pytest.raises(BadBudget, match=words):
        Budget.parse(text)


def test_budget_above_the_card_says_by_how_much_and_what_to_do() -> None:
    with pytest.raises(BadBudget) as caught:
        Budget.parse("24GiB").resolve(CARD)
    assert str(caught.value) == (
        "A budget of 25.8 GB is 12.6 MB more than the 25.8 GB of NVIDIA GeForce RTX 4090; "
        "write 100% for all of it or auto for what is free."
    )


def test_reserve_above_what_is_free_is_refused() -> None:
    with pytest.raises(BadBudget, match=r"auto-30GB leaves nothing of the 23\.0 GB free on NVIDIA"):
        Budget.parse("auto-30GB").resolve(CARD)


@given(BUDGETS)
def test_budget_text_reads_back(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget


@given(BUDGETS)
def test_a_resolved_budget_lies_within_the_card(budget: Budget) -> None:
    try:
        amount = budget.resolve(CARD)
    except BadBudget:
        return
    assert 0 < amount <= CARD.total


def test_fidelity_is_ordered_and_read_by_name() -> None:
    assert [Fidelity.parse(name) for name in ("exact", "Faithful", " lossy ")] == [0, 1, 2]
    with pytest.raises(BadRequest, match="choose exact, faithful or lossy"):
        Fidelity.parse("perfect")


def test_defaults_leave_the_figures_to_the_pipeline() -> None:
    request = Request()
    assert (request.height, request.images, request.prompts) == (None, 1, 1)
    assert request.budget == Budget.parse("auto")
    assert request.fidelity is Fidelity.FAITHFUL


@pytest.mark.parametrize(
    "name", ["height", "width", "frames", "images", "prompts", "steps", "prompt_tokens", "host_ram", "disk"]
)
@pytest.mark.parametrize("value", [0, -512, 512.0, "512", True])
def test_counts_are_positive_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(BadRequest, match=rf"^{name} is .* whole number of at least 1"):
        Request(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["images", "prompts"])
def test_counts_with_a_default_cannot_be_none(name: str) -> None:
    with pytest.raises(BadRequest, match=f"^{name} is None"):
        Request(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["guidance", "strength"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "7.5", True])
def test_guidance_and_strength_are_finite_numbers(name: str, value: float) -> None:
    with pytest.raises(BadRequest, match=f"{name} is"):
        Request(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -0.5, 1.01, 7])
def test_strength_is_a_share(value: float) -> None:
    with pytest.raises(BadRequest, match="has to lie above 0 and be at most 1"):
        Request(strength=value)


def test_of_pictures_only_the_sizes_are_kept() -> None:
    request = Request.from_json({"image": Image.new("RGB", (64, 48)), "mask": True, "control": "1024x768*2"})  # type: ignore[dict-item]
    assert request.image == (Size(width=64, height=48),)
    assert request.mask == (Size(),)
    assert request.control == (Size(width=1024, height=768),) * 2
    plain = request.to_json()
    assert (plain["image"], plain["mask"], plain["control"], plain["video"]) == ("64x48", "auto", "1024x768*2", None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, None),
        ("fp16", "float16"),
        ("half", "float16"),
        ("torch.float16", "float16"),
        ("BF16", "bfloat16"),
        ("float", "float32"),
    ],
)
def test_dtype_has_one_name(name: str | None, expected: str | None) -> None:
    assert Request(dtype=name).dtype == expected


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(BadRequest, match="'int3' is not a dtype to plan with; choose float16"):
        Request(dtype="int3")


def test_call_arguments_are_values() -> None:
    size = [1024, 1024]
    request = Request(extra=(("original_size", size),))
    size.append(7)
    assert request.extra == (("original_size", (1024, 1024)),)
    assert hash(request) == hash(Request(extra=(("original_size", (1024, 1024)),)))
    with pytest.raises(BadRequest, match="given twice"):
        Request(extra=(("eta", 0.0), ("eta", 1.0)))
    with pytest.raises(BadRequest, match="'image' holds"):
        Request(extra=(("image", object()),))  # type: ignore[arg-type]


def test_a_request_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Request().height = 512  # type: ignore[misc]


@given(REQUESTS)
def test_json_gives_the_same_request_back(request: Request) -> None:
    assert Request.from_json(request.to_json()) == request
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_json_may_be_partial_and_written_by_hand() -> None:
    request = Request.from_json({"height": 1024, "budget": "8GiB", "fidelity": "exact", "host_ram": "32GB"})
    assert request == Request(height=1024, budget=Budget(amount=2**33), fidelity=Fidelity.EXACT, host_ram=32 * 10**9)


@pytest.mark.parametrize("data", [{"hight": 512}, {"extra": [1]}, {"budget": None}, {"host_ram": "8 bananas"}])
def test_wrong_json_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        Request.from_json(data)  # type: ignore[arg-type]
