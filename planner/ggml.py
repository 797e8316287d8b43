"""Ggml: what tensors a GGUF file holds, from its header alone (ggml/docs/gguf.md, versions 2 and 3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from planner.errors import UnknownModel

MAGIC = b"GGUF"
NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the kinds of metadata that are numbers."""
TEXT, ARRAY = 8, 9
"""The two others."""
MOST = 2**20
"""Tensors, entries of metadata, or letters of a name above which a header is taken to be broken."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file."""

    name: str
    kind: int
    """ggml's number for how it is packed."""
    shape: tuple[int, ...]
    """As torch has it: the numbers that lie together come last."""


def read(file: Path) -> tuple[Stored, ...]:
    """The tensors of a file; its weights stay on disk.  Raises UnknownModel."""
    try:
        with file.open("rb") as stream:
            return tuple(_tensors(stream))
    except FileNotFoundError as error:
        raise UnknownModel(f"There is no file {file}; name a GGUF file of this machine.") from error
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise UnknownModel(f"{file} has no readable GGUF header ({error}): fetch the file again.") from error


def _tensors(stream: BinaryIO) -> list[Stored]:
    if stream.read(4) != MAGIC:
        raise ValueError("it begins otherwise")
    version, tensors, entries = struct.unpack("<IQQ", stream.read(20))
    if version not in (2, 3) or max(tensors, entries) > MOST:
        raise ValueError(f"version {version}, {tensors} tensors")
    for _ in range(entries):
        _text(stream)
        _skip(stream, *struct.unpack("<I", stream.read(4)))
    return [_stored(stream) for _ in range(tensors)]


def _stored(stream: BinaryIO) -> Stored:
    name = _text(stream)
    (ranks,) = struct.unpack("<I", stream.read(4))
    *shape, kind, _ = struct.unpack(f"<{ranks}QIQ", stream.read(8 * ranks + 12))
    return Stored(name, kind, tuple(reversed(shape)))


def _text(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > MOST:
        raise ValueError(f"a name of {length} bytes")
    return stream.read(length).decode("utf-8")


def _skip(stream: BinaryIO, kind: int) -> None:
    """Pass over a value of metadata."""
    if kind == ARRAY:
        inner, count = struct.unpack("<IQ", stream.read(12))
        if inner in NUMBERS:
            stream.seek(NUMBERS[inner] * count, 1)
            return
        for _ in range(count):
            _skip(stream, inner)
    elif kind == TEXT:
        (length,) = struct.unpack("<Q", stream.read(8))
        stream.seek(length, 1)
    elif kind in NUMBERS:
        stream.seek(NUMBERS[kind], 1)
    else:
        raise ValueError(f"metadata of kind {kind}")
