"""Answers on disk: what was asked before of the same pipeline, card and software is not worked out again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from planner import cudnn, host
from planner.plain import plain
from planner.store import written_whole

KEPT = 1000
"""Answers that stay; of more the oldest go.  One takes about 20 kB."""


class Answers:
    """Those of one folder.  A question is whatever its answer hangs on, as values for JSON."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def find(self, *question: Any) -> Any:
        """What was kept for a question; None where nothing was, or nothing that can be read."""
        try:
            return json.loads(self._file(self._folder, question).read_bytes()) if self._folder else None
        except (OSError, ValueError):
            return None

    def keep(self, answer: Any, *question: Any) -> None:
        """Write an answer to disk, where answers are kept at all."""
        if self._folder:
            written_whole(self._file(self._folder, question), json.dumps(plain(answer), separators=(",", ":")))
            self._forget(self._folder)

    @staticmethod
    def _file(folder: Path, question: tuple[Any, ...]) -> Path:
        text = json.dumps([software(), plain(question)], sort_keys=True)
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    @staticmethod
    def _forget(folder: Path) -> None:
        files = [entry for entry in os.scandir(folder) if entry.name.endswith(".json")]
        if len(files) > KEPT:
            for entry in sorted(files, key=lambda entry: entry.stat().st_mtime)[: len(files) - KEPT]:
                Path(entry.path).unlink(missing_ok=True)


def software() -> tuple[object, ...]:
    """What an answer hangs on besides its question: this code, what is installed beside it, this machine's cores."""
    return _stamp(), cudnn.library() is not None, host.cores()


@cache
def _stamp() -> str:
    """Changes whenever a file of this package does, or packages come and go."""
    own = Path(__file__).parent
    texts = (f"{path} {seen.st_size} {seen.st_mtime_ns}" for path in sorted(own.rglob("*.py")) if (seen := path.stat()))
    return hashlib.sha256("\n".join((*texts, *_installed())).encode()).hexdigest()


def _installed() -> Iterator[str]:
    for folder in sys.path:
        if Path(folder).name in ("site-packages", "dist-packages") and Path(folder).is_dir():
            yield f"{folder} {Path(folder).stat().st_mtime_ns}"
