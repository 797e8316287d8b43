"""Calls begin with an emptied cache where the one before was short of memory, and only there."""

from __future__ import annotations

import inspect

import pytest
import torch

from planner.refresh import refreshed


class Pipeline:
    """Called with a prompt; `short` are the requests that each call has to try again."""

    def __init__(self, short: list[int], stats: dict[str, int]) -> None:
        self.short, self.stats = short, stats

    def __call__(self, prompt: str) -> str:
        self.stats["num_alloc_retries"] += self.short.pop(0)
        return prompt.upper()


def test_the_cache_is_emptied_after_calls_that_were_short(monkeypatch: pytest.MonkeyPatch) -> None:
    stats, emptied = {"num_alloc_retries": 5}, list[int]()
    pipe = Pipeline([0, 2, 0, 0], stats)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: stats)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(pipe.short)))
    undo = refreshed(pipe)
    assert [pipe(prompt="a") for _ in range(4)] == ["A"] * 4
    assert emptied == [2]  # before the third
    assert type(pipe).__qualname__ == "Pipeline"
    assert inspect.signature(type(pipe).__call__) == inspect.signature(Pipeline.__call__)
    undo()
    assert type(pipe) is Pipeline


def test_without_a_card_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipe = Pipeline([], {})
    refreshed(pipe)()
    assert type(pipe) is Pipeline
