"""What people may ask for by name and no plan has, and why; facts of diffusers 0.42.1, torch 2.14 and their threads."""

from __future__ import annotations

import re
from collections.abc import Mapping

_VARLEN = "it packs each row of a batch by the length of its prompt, which no plan knows; name flash_attn or sage"
_GRAPHS = "CUDA graphs keep a pool of memory to themselves, which grows with each shape; name tracing=compile"
_ONE = "a plan is for 1 card; run one process on each, or plan for the largest"
_OTHER_CARDS = "its kernels are for other makers' devices, and plans are for CUDA; name another"
_BLACKWELL = (
    "torchao computes so on Blackwell alone, by kernels whose memory no recording shows; name float8, or nf4 before "
    "loading"
)

TECHNIQUES: Mapping[str, str] = {
    "autoencoder_tiny": "another autoencoder makes other pictures; put AutoencoderTiny into the pipeline and plan that",
    "freeu": "FreeU changes the picture, and neither memory nor time; call pipe.enable_freeu yourself",
    "multi_gpu": _ONE,
    "device_map": _ONE,
    "context_parallel": _ONE,
    "tensor_parallel": _ONE,
    "cudnn_benchmark": "cuDNN would try engines with workspaces of any size, and no peak could be promised; leave it",
    "cuda_malloc_async": "the driver would hand out memory by rules that no rehearsal knows; name expandable_segments",
    "max_autotune": _GRAPHS,
    "reduce_overhead": _GRAPHS,
    "cuda_graphs": _GRAPHS,
    "free_noise": "FreeNoise makes another, longer video; name decode_chunks to save memory in AnimateDiff",
    "components_manager": "it moves components by what is free with a margin of 3 GB; name placement=model, which is "
    "planned",
    "gguf": "a GGUF file is a source of weights; give it as --with transformer=FILE.gguf",
    "torchao": "torchao is a way to quantize; name quantization=int8 or float8",
    "bitsandbytes": "bitsandbytes is a way to quantize; name quantization=nf4, fp4 or llm_int8",
    "quanto": "diffusers' group offload breaks its weights (its issue 12610); name quantization=int8 or float8",
}  # fmt: skip
"""Why there is no technique of that name, in words that follow "cannot be had:"."""
VALUES: Mapping[str, Mapping[str, str]] = {
    "attention": {
        **dict.fromkeys(
            ("flash_varlen", "flash_varlen_hub", "flash_varlen_3", "flash_3_varlen_hub", "sage_varlen"), _VARLEN
        ),
        "flex": "uncompiled it writes out all scores, as math does; name efficient, which takes masks, too",
        "aiter": _OTHER_CARDS,
        "aiter_fa2_hub": _OTHER_CARDS,
        "native_npu": _OTHER_CARDS,
        "native_xla": _OTHER_CARDS,
        "sage_blackwell_hub": "what its kernels of 4 bits hold meanwhile is not known, so no peak could be promised; "
        "name sage_hub",
        "native": "it is torch's own choice, which a plan has where it names none; leave it out",
    },
    "quantization": {
        "int4": "torchao packs 4 bits for the kernels of 1 card, which cannot be recorded without it; name nf4 before "
        "loading",
        **dict.fromkeys(("nvfp4", "mxfp8", "mxfp4"), _BLACKWELL),
        "quanto": TECHNIQUES["quanto"],
        "modelopt": "ModelOpt calibrates a model by runs of it, which no recording can do; name int8, float8 or nf4",
        "nunchaku": "its weights are made for 1 model each, with kernels whose memory no recording shows; name nf4",
        "auto_round": "its weights come quantized and are not made while loading; name int8, float8 or nf4",
        "gguf": TECHNIQUES["gguf"],
    },
    "tracing": dict.fromkeys(("max_autotune", "reduce_overhead", "cuda_graphs"), _GRAPHS),
    "placement": {
        **dict.fromkeys(("device_map", "balanced", "auto", "multi_gpu"), _ONE),
        "components_manager": TECHNIQUES["components_manager"],
    },
}  # fmt: skip
"""The same of values of techniques that there are."""
ALIASES: Mapping[str, str] = {
    "taesd": "autoencoder_tiny", "tiny_vae": "autoencoder_tiny", "backend:cudaMallocAsync": "cuda_malloc_async",
    "sage_blackwell": "sage_blackwell_hub", "uint4": "int4", "int4_weight_only": "int4", "nunchaku_lite": "nunchaku",
    "flex_attention": "flex",
}  # fmt: skip
"""Further names for these."""


def reason(technique: str, value: str = "") -> str:
    """Why it cannot be had, in words that follow "cannot be had:"; empty for what is not known here."""
    if value:
        return next((why for name, why in VALUES.get(technique, {}).items() if _same(name, value)), "")
    return next((why for name, why in TECHNIQUES.items() if _same(name, technique)), "")


def _same(name: str, asked: str) -> bool:
    """Whether one is meant by the other, however its words are joined."""
    named = {_plain(name), *(_plain(alias) for alias, meant in ALIASES.items() if meant == name)}
    return _plain(asked) in named


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
