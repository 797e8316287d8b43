"""Components of shipped profiles with few weights, for what hangs on their classes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner import profiles
from planner.profiles import ComponentProfile

FEW = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
PARTS: dict[tuple[str, str], dict[str, Any]] = {
    ("wan2.1-t2v-1.3b", "transformer"): {
        **FEW, "attention_head_dim": 24, "ffn_dim": 32, "text_dim": 16, "freq_dim": 16,
    },
    ("pixart-sigma", "transformer"): {**FEW, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 8},
    ("sd3-medium", "transformer"): {
        **FEW, "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16,
        "pos_embed_max_size": 16, "sample_size": 8,
    },
    ("cogvideox-2b", "transformer"): {
        **FEW, "text_embed_dim": 16, "time_embed_dim": 16, "sample_width": 8, "sample_height": 8,
    },
    ("sana", "text_encoder"): {
        "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32,
    },
}  # fmt: skip


def part(name: str, component: str) -> ComponentProfile:
    """A component of a profile, little."""
    (found,) = (each for each in profiles.find(name).components if each.name == component)
    return replace(found, config={**found.config, **PARTS[name, component]})
