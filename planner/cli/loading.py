"""Pipelines with their weights, for the commands that run them."""

from __future__ import annotations

from typing import Any

from planner import profiles
from planner.cli import output
from planner.loading import missing


def loaded(model: str, dtype: str) -> Any:
    """The pipeline with its weights, from a folder or from hub files that are on this machine.  Raises BadRequest."""
    import torch
    from diffusers import DiffusionPipeline

    profile = profiles.resolve(model)
    output.hide_bars()
    try:
        return DiffusionPipeline.from_pretrained(
            profile.hub_id or model, torch_dtype=getattr(torch, dtype), local_files_only=True
        )
    except OSError as error:
        raise missing(model, profile) from error
