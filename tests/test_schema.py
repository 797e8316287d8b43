"""JSON Schema from classes: what it says of each kind of type, and that every number says its unit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from plans import PLAN, SPLIT, promise

from planner import printed, schema
from planner.plain import plain
from planner.plan import Plan
from planner.request import Request
from planner.sizes import Size

PUBLISHED = Path(__file__).parent.parent / "docs" / "schemas"
UNITS = re.compile(
    r"byte|second|pixel|flop|watt|share|÷|factor|how many|number|ratio|generation|version|price|currency", re.IGNORECASE
)


class Mood(IntEnum):
    CALM = 0
    GLAD = 1


class Pair(NamedTuple):
    left: int
    """Bytes."""
    right: float | None


class Other(NamedTuple):
    """Holds another class of its own name."""

    pair: Pair


Other.__name__ = Pair.__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A record of everything that is known."""

    derived: ClassVar = ("twice",)
    mood: Mood
    kind: Literal["a", "b"]
    pair: Pair
    many: tuple[Pair, ...] = ()
    fixed: tuple[int, str] = (0, "")
    named: tuple[tuple[str, int], ...] = ()
    inner: Leaf | None = None
    """Another
    one."""

    @property
    def twice(self) -> int:
        """Bytes, twice."""
        return 2 * self.pair.left

    def to_json(self) -> dict[str, Any]:
        from planner.plain import record

        return record(self) | {"named": dict(self.named)}


def document(kind: Any) -> schema.Schema:
    return schema.document("it", kind, "What is tested.")


def valid(value: object, document: schema.Schema) -> bool:
    return bool(Draft202012Validator(document).is_valid(value))


leaves = st.builds(
    Leaf,
    mood=st.sampled_from(Mood),
    kind=st.sampled_from(("a", "b")),
    pair=st.builds(Pair, st.integers(), st.none() | st.floats(allow_nan=False)),
    many=st.lists(st.builds(Pair, st.integers(), st.none())).map(tuple),
    fixed=st.tuples(st.integers(), st.text()),
    named=st.dictionaries(st.text(), st.integers()).map(lambda made: tuple(made.items())),
)


@given(leaves, leaves, st.data())
def test_whatever_is_written_is_described(leaf: Leaf, inner: Leaf, data: st.DataObject) -> None:
    found = document(Leaf)
    Draft202012Validator.check_schema(found)
    made = json.loads(json.dumps(plain(replace(leaf, inner=inner))))
    assert valid(made, found)
    name = data.draw(st.sampled_from(sorted(made)))
    assert not valid({key: value for key, value in made.items() if key != name}, found), f"{name} may be missing"
    assert not valid(made | {"more": 1}, found)
    assert not valid(made | {name: {"wrong": [None]}}, found), f"{name} may be anything"


def test_texts_below_fields_become_descriptions() -> None:
    found = document(Leaf)["$defs"]
    assert found["Leaf"]["description"] == "A record of everything that is known."
    assert found["Leaf"]["properties"]["inner"]["description"] == "Another one."
    assert found["Leaf"]["properties"]["twice"] == {"description": "Bytes, twice.", "type": "integer"}
    assert "description" not in found["Leaf"]["properties"]["kind"]
    assert found["Pair"]["properties"]["left"]["description"] == "Bytes."


def test_one_name_for_two_classes_is_refused() -> None:
    with pytest.raises(AssertionError, match="one name"):
        document(Other)


def numbers(name: str, found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, record in found.items():
        for field, described in record["properties"].items():
            kinds = json.dumps([described.get(key) for key in ("type", "anyOf", "prefixItems")])
            if {"integer", "number"} & set(kinds.split('"')):
                yield f"{name}: {kind}.{field}", f"{field} {described.get('description', '')}"


@pytest.mark.parametrize("name", printed.PRINTED)
def test_every_field_says_what_it_is_and_every_number_its_unit(name: str) -> None:
    found = printed.document(name)
    Draft202012Validator.check_schema(found)
    for kind, record in found["$defs"].items():
        assert record["additionalProperties"] is False
        assert record["description"], kind
        for field, described in record["properties"].items():
            assert described.get("description") or "$ref" in described, f"{kind}.{field} says nothing"
    for field, words in numbers(name, found["$defs"]):
        assert UNITS.search(words), f"{field} has no unit"


@pytest.mark.parametrize("name", printed.PRINTED)
def test_the_published_schemas_are_these(name: str) -> None:
    """A change here is a change of the interface: write it anew with `vram-planner schema NAME`, and in CHANGELOG."""
    assert json.loads((PUBLISHED / f"{name}.json").read_text("utf-8")) == printed.document(name)


def test_nothing_else_is_published() -> None:
    assert {file.stem for file in PUBLISHED.iterdir()} == set(printed.PRINTED)


def test_a_plan_in_words_of_the_schema() -> None:
    found = printed.document("plan")
    request = Request(height=8, width=8, image=(Size(), Size(width=3, height=4)), extra=(("sigmas", (1, 0.5)),))
    made = replace(PLAN, request=request, options=(*PLAN.options, SPLIT), baseline=promise(*PLAN.promise.phases[:1]))
    told = json.loads(json.dumps(made.to_json()))
    assert valid(told, found)
    assert told["options"][1]["fidelity"] == "faithful"
    assert told["promise"]["needed"] == made.promise.needed
    assert told["headroom"] == made.headroom
    assert Plan.from_json(told) == made
    with pytest.raises(ValidationError):
        Draft202012Validator(found).validate(told | {"headroom": "much"})
