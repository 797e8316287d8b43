"""Adapters on full-size live pipelines: what is predicted from the ghost is what PyTorch's allocator sees."""

from __future__ import annotations

from typing import Any

import pytest
import rig
from rig import Server

CASES = [
    ("sd15", "lora", 16),
    ("sd15", "lora", 64),
    ("sd15", "fused lora", 64),
    ("sd15", "image adapter", 0),
    ("sdxl", "lora", 64),
    ("sdxl", "fused lora", 64),
    ("sdxl", "image adapter", 0),
]


def adapted(model: str, adapter: str, rank: int) -> dict[str, Any]:
    """Sent to the virtual GPU: allocated peaks in bytes of a call with an adapter, foreseen and seen."""
    from dataclasses import replace

    import torch
    from inside import arguments, parts, pipelines, smallvalues
    from inside.peaks import Peaks
    from peft import LoraConfig
    from PIL import Image
    from transformers import CLIPImageProcessor

    from planner import card, profiles
    from planner.request import Request
    from planner.study import opened

    def lora(pipe: Any) -> None:
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter_name="one")
        if adapter == "fused lora":
            pipe.fuse_lora(components=["unet"])

    def image_adapter(pipe: Any) -> None:
        facts = next(part for part in profiles.find("svd").components if part.name == "image_encoder")
        encoder = parts.build(parts.find(facts.library, facts.kind), facts.config, torch.float16)
        pipe.register_modules(image_encoder=encoder, feature_extractor=CLIPImageProcessor())
        width = pipe.unet.config.cross_attention_dim
        crossed = [m for n, m in pipe.unet.named_modules() if n.endswith("attn2")]
        keys = {
            f"{2 * i + 1}.{key}.weight": torch.zeros(m.to_k.out_features, width)
            for i, m in enumerate(crossed) for key in ("to_k_ip", "to_v_ip")
        }  # fmt: skip
        shapes = {"proj.weight": (4 * width, 1024), "proj.bias": (4 * width,), "norm.weight": (width,)}
        projection = {name: torch.zeros(shape) for name, shape in (shapes | {"norm.bias": (width,)}).items()}
        pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}])

    mode = smallvalues.install()
    pipe = pipelines.shipped(model)
    before = sum(p.nbytes for p in pipe.unet.parameters())
    (image_adapter if adapter == "image adapter" else lora)(pipe)
    usual = profiles.find(model).defaults
    size = {"height": usual.height, "width": usual.width}
    device = replace(card("rtx-3090"), total=80 * 2**30, free=80 * 2**30)
    mode.__exit__(None, None, None)
    pricer = opened(pipe, Request(steps=2, **size)).pricer(device)
    foreseen = pricer.rehearse(pricer.baseline(), None)
    mode = smallvalues.install()
    pipe.to("cuda")
    peaks = Peaks(pipe)
    handed = {"ip_adapter_image": Image.new("RGB", (512, 512))} if adapter == "image adapter" else {}
    with torch.no_grad():
        pipe(**arguments.of(pipe, {"num_inference_steps": 2, **size, **handed}))
    seen = {"whole": peaks.whole["allocated"], **{name: peak["allocated"] for name, peak in peaks.phases.items()}}
    mode.__exit__(None, None, None)
    told = {"whole": foreseen.allocated, **{name: allocated for name, allocated, _ in foreseen.phases}}
    added = sum(p.nbytes for p in pipe.unet.parameters()) - before
    return {"seen": seen, "foreseen": told, "added": added}


@pytest.mark.parametrize(("model", "adapter", "rank"), CASES)
def test_an_adapter_takes_what_is_predicted(vgpu: Server, model: str, adapter: str, rank: int) -> None:
    arguments = {"model": model, "adapter": adapter, "rank": rank}
    answer = vgpu.script(adapted, arguments, **rig.card("rtx-3090") | {"vram": 80 * rig.GIB}, limit=900)
    assert answer["added"] > 10**6
    errors = {phase: answer["foreseen"][phase] / peak - 1 for phase, peak in answer["seen"].items()}
    assert abs(errors.pop("whole")) <= 0.003
    assert min(errors.values()) >= -0.005
