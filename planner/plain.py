"""Plain: values as JSON knows them.  `planner.schema` derives from the same classes what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any


def record(value: Any) -> dict[str, Any]:
    """Fields of a dataclass or a named tuple by their names, then the properties its class lists as `derived`."""
    kind = type(value)
    own = kind._fields if isinstance(value, tuple) else (field.name for field in fields(value))
    return {name: plain(getattr(value, name)) for name in (*own, *getattr(kind, "derived", ()))}


def plain(value: Any) -> Any:
    """`value` for `json.dumps`: records as objects, choices by name, sequences as lists."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value) or hasattr(value, "_fields"):
        return record(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name.lower()
    return str(value) if isinstance(value, PurePath) else value
