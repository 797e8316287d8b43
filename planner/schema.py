"""Schema: JSON Schema (2020-12) of a value's class, as `planner.plain` writes such values.

Types become types, and the text below a field its description, so that neither can fall behind the code.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from planner.request import Budget
from planner.sizes import Sizes

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

_LEAVES: Mapping[Any, Schema] = MappingProxyType(
    {
        Any: {},
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"type": "number"},
        str: {"type": "string"},
        Path: {"type": "string"},
        NoneType: {"type": "null"},
        Sizes: {"type": ["string", "null"], "examples": ["1024x768", "auto*2"]},
        Budget: {"type": "string", "examples": ["8GB", "8GiB", "80%", "auto-1GB", "auto"]},
    }
)
Found = dict[type, Schema]
"""Classes met on the way."""


def document(name: str, kind: Any, description: str) -> Schema:
    """The whole schema of what is printed under `name`: a class, or a tuple of many."""
    found: Found = {}
    root = _of(kind, found)
    named = {each.__name__: found[each] for each in sorted(found, key=lambda each: each.__name__)}
    assert len(named) == len(found), f"two classes in {name} have one name"
    head = {"$schema": DRAFT, "$id": f"urn:vram-planner:{name}", "title": name, "description": description}
    return {**head, **root, "$defs": named}


def _of(kind: Any, found: Found) -> Schema:
    """The schema of a type; those of classes are gathered in `found`."""
    if kind in _LEAVES:
        return dict(_LEAVES[kind])
    if get_origin(kind) is not None:
        return _composed(get_origin(kind), get_args(kind), found)
    if issubclass(kind, Enum):
        return {"enum": [choice.name.lower() for choice in kind]}
    if kind not in found:
        found[kind] = {}  # a class that holds itself ends here
        found[kind] = _record(kind, found)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _composed(origin: Any, inner: tuple[Any, ...], found: Found) -> Schema:
    """The schema of a type made of others."""
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        several = [_of(each, found) for each in inner]
        if all(set(each) == {"type"} for each in several):
            return {"type": [each["type"] for each in several]}
        return {"anyOf": several}
    if issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(inner[1], found)}
    assert origin is tuple, f"no JSON is known for {origin}"
    return _sequence(inner, found)


def _sequence(inner: tuple[Any, ...], found: Found) -> Schema:
    """The schema of a tuple: of so many, of any number, or of pairs of names and values, which are an object."""
    if inner[-1] is not Ellipsis:
        items = [_of(each, found) for each in inner]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if get_args(inner[0])[:1] == (str,):
        return {"type": "object", "additionalProperties": _of(get_args(inner[0])[1], found)}
    return {"type": "array", "items": _of(inner[0], found)}


def _record(kind: type, found: Found) -> Schema:
    """The schema of a class: all that it has, and nothing else."""
    types = get_type_hints(kind, localns={"JSON": Any})
    own = [field.name for field in fields(kind)] if is_dataclass(kind) else list(types)
    said = described(kind)
    properties = {name: _of(types[name], found) for name in own}
    for name in getattr(kind, "derived", ()):
        getter = getattr(kind, name).fget
        properties[name] = _of(get_type_hints(getter)["return"], found)
        said[name] = inspect.getdoc(getter) or ""
    for name in properties.keys() & said.keys():
        properties[name] = {"description": said[name], **properties[name]}
    words = " ".join((inspect.getdoc(kind) or "").split())
    return {
        "description": words, "type": "object", "properties": properties, "required": list(properties),
        "additionalProperties": False,
    }  # fmt: skip


def described(kind: type) -> dict[str, str]:
    """What stands as a text below each field of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    said, last = dict[str, str](), ""
    for node in tree.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=last)):
                pass
            case ast.Expr(value=ast.Constant(value=str(words))) if last:
                said[last] = " ".join(words.split())
            case _:
                last = ""
    return said
