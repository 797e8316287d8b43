"""Folding: statements of Python in lines of at most 80 columns."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from itertools import pairwise

from planner.request import JSON

WIDTH = 80
"""Columns of a line of code."""


def literal(value: JSON) -> str:
    """`value` as Python writes it, text in double quotes where it holds none."""
    match value:
        case str() if '"' not in value:
            return '"' + repr("'" + value)[2:]
        case dict():
            return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
        case tuple():
            return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
        case list():
            return f"[{', '.join(map(literal, value))}]"
    return repr(value)


def fold(statement: str, indent: int = 0) -> str:
    """The same code in lines of at most 80 columns, broken inside brackets and, where need be, inside text.

    What has lines of its own is left as it is.
    """
    margin = " " * indent
    if "\n" in statement:
        return statement
    if indent + len(statement) < WIDTH:
        return margin + statement
    commas = _outermost(statement)
    if not commas:
        return _folded_text(statement, indent)
    items = [statement[start + 1 : end].strip() for start, end in pairwise(commas)]
    lines = [fold(item, indent + 4) for item in items if item]
    comma = "," if len(items) > 1 else ""
    head, tail = statement[: commas[0] + 1], statement[commas[-1] :]
    return "\n".join((margin + head, ",\n".join(lines) + comma, margin + tail))


def _tokens(statement: str) -> Iterable[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(statement).readline)


def _outermost(statement: str) -> list[int]:
    """Places of the widest outer pair of brackets and of the commas right inside it; empty where there is none."""
    pairs: list[list[int]] = []
    depth = 0
    for token in _tokens(statement):
        place = token.start[1]
        if token.string in ("(", "[", "{"):
            depth += 1
            if depth == 1:
                pairs.append([place])
        elif token.string in (")", "]", "}"):
            depth -= 1
            if depth == 0:
                pairs[-1].append(place)
        elif token.string == "," and depth == 1:
            pairs[-1].append(place)
    return max((pair for pair in pairs if pair[-1] - pair[0] > 1), key=lambda pair: pair[-1] - pair[0], default=[])


def _folded_text(statement: str, indent: int) -> str:
    """A long text as shorter ones that Python joins; code without text cannot be folded."""
    margin = " " * indent
    texts = [token for token in _tokens(statement) if token.type == tokenize.STRING]
    if not texts:
        return margin + statement
    start, end = texts[-1].start[1], texts[-1].end[1]
    lines = [margin + "    " + piece for piece in _pieces(ast.literal_eval(texts[-1].string), WIDTH - indent - 4)]
    return "\n".join((f"{margin}{statement[:start]}(", *lines, f"{margin}){statement[end:]}"))


def _pieces(text: str, room: int) -> Iterator[str]:
    """Literals no longer than `room` whose texts add up to `text`."""
    piece = ""
    for letter in text:
        if piece and len(literal(piece + letter)) > room:
            yield literal(piece)
            piece = ""
        piece += letter
    yield literal(piece)
