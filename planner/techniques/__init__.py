"""The techniques, in order of rewriting and of applying: what changes weights first, what wraps modules last."""

from __future__ import annotations

from planner.techniques.attention import AttentionBackend
from planner.techniques.base import Option, Technique, Undo
from planner.techniques.channels_last import ChannelsLast
from planner.techniques.decode_chunks import DecodeChunks
from planner.techniques.expandable_segments import ExpandableSegments
from planner.techniques.forward_chunks import ForwardChunks
from planner.techniques.fused_qkv import FusedQkv
from planner.techniques.layerwise_casting import LayerwiseCasting
from planner.techniques.micro_batch import MicroBatch
from planner.techniques.offload import Offload
from planner.techniques.placement import Placement
from planner.techniques.precision import Precision
from planner.techniques.quantization import Quantization
from planner.techniques.split import Split
from planner.techniques.step_cache import StepCache
from planner.techniques.streaming import Streaming
from planner.techniques.tracing import Tracing
from planner.techniques.vae_frames import VaeFrames
from planner.techniques.vae_on_host import VaeOnHost
from planner.techniques.vae_slicing import VaeSlicing
from planner.techniques.vae_tiling import VaeTiling

DEFAULT: tuple[Technique, ...] = (
    ExpandableSegments(),
    Precision(),
    FusedQkv(),
    LayerwiseCasting(),
    Quantization(),
    ChannelsLast("denoiser"),
    ChannelsLast("autoencoder"),
    VaeSlicing(),
    VaeTiling(),
    VaeFrames(),
    DecodeChunks(),
    AttentionBackend(),
    VaeOnHost(),
    ForwardChunks(),
    StepCache(),
    MicroBatch(),
    Streaming(),
    Offload(),
    Placement(),
    Tracing(),
    Split(),
)


def default_techniques() -> tuple[Technique, ...]:
    """All techniques of this package, in order of rewriting and of applying; hand in your own beside them."""
    return DEFAULT


__all__ = ["DEFAULT", "Option", "Technique", "Undo", "default_techniques"]
