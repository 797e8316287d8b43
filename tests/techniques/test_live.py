from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from planner.techniques.live import in_reverse, modules, remember, tensors, undone_on_error


def test_remember_restores_and_removes() -> None:
    owner = SimpleNamespace(kept=1, changed=2)
    undo = remember(owner, "kept", "changed", "added")
    owner.changed, owner.added = 3, 4
    undo()
    assert vars(owner) == {"kept": 1, "changed": 2}
    undo()
    assert vars(owner) == {"kept": 1, "changed": 2}


def test_the_latest_is_undone_first() -> None:
    steps: list[int] = []
    in_reverse([lambda: steps.append(1), lambda: steps.append(2)])()
    assert steps == [2, 1]


def test_an_error_is_undone_and_goes_on() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt), undone_on_error(lambda: steps.append("undone")):
        raise KeyboardInterrupt
    assert steps == ["undone"]
    with undone_on_error(lambda: steps.append("never")):
        pass
    assert steps == ["undone"]


def test_tied_weights_count_once(wan: Any) -> None:
    assert set(modules(wan)) == {"text_encoder", "transformer", "vae"}
    found = [id(tensor) for tensor in tensors(wan)]
    assert len(found) == len(set(found))
    assert id(wan.text_encoder.shared.weight) in found
