"""Adapters of a live pipeline are in its ghost: their bytes and operations are in the program, and so in the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    T2IAdapter,
)
from PIL import Image
from techniques import tiny
from techniques.programs import device
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import planner
from planner.events import Call, Enter, Run
from planner.ghost import ghost_of
from planner.offload import resident
from planner.program import Program, Variant
from planner.rehearsal import rehearse
from planner.request import Request
from planner.settings import Settings
from planner.snapshot import snapshot
from planner.techniques.base import Option
from planner.trace import Tracer

SMALL = Request(height=64, width=64, steps=2, prompt_tokens=4)
RANK = 4


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ghostly(pipe: Any) -> Program:
    """The program that the ghost of a live pipeline gives."""
    pipe.set_progress_bar_config(disable=True)
    ghost = ghost_of(pipe)
    return Tracer(ghost, Settings(ghost)).trace(SMALL, Variant())


def weights(program: Program) -> dict[str, int]:
    return {component.name: sum(component.weights) for component in program.components}


def phases(program: Program) -> list[str]:
    events = program.recordings[program.course].events
    return [event.module for event in events if isinstance(event, (Call, Enter)) and event.module]


def work(program: Program) -> int:
    """Kernels of one call of the denoiser."""

    def of(index: int) -> int:
        events = program.recordings[index].events
        return sum(of(e.recording) if isinstance(e, Call) else isinstance(e, Run) for e in events)

    course = program.recordings[program.course].events
    return of(next(e.recording for e in course if isinstance(e, Call) and e.module == "unet"))


def lora(part: Any, name: str, rank: int = RANK) -> int:
    """Give a denoiser a LoRA on its attention; the bytes it adds."""
    peft = pytest.importorskip("peft")
    before = sum(p.nbytes for p in part.parameters())
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    part.add_adapter(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter_name=name)
    torch.manual_seed(1)
    for key, weight in part.named_parameters():
        if "lora_B" in key:  # peft begins them at zero
            torch.nn.init.normal_(weight, std=0.1)
    return int(sum(p.nbytes for p in part.parameters()) - before)


def with_lora(folder: Path) -> Any:
    pipe = tiny.stable_diffusion(folder)
    lora(pipe.unet, "one")
    return pipe


def with_image_adapter(folder: Path) -> Any:
    """An IP-Adapter as `load_ip_adapter` would load it, from weights at hand."""
    pipe = tiny.stable_diffusion(folder)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(2)
    encoder = CLIPVisionModelWithProjection(config).eval()
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=size, crop_size=size)
    pipe.register_modules(image_encoder=encoder, feature_extractor=processor)
    pipe.unet._load_ip_adapter_weights([_image_adapter(pipe.unet)])
    return pipe


def _image_adapter(unet: Any, tokens: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(tokens * width, 16), "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    keys: dict[str, torch.Tensor] = {}
    crossed = [m for n, m in unet.named_modules() if n.endswith("attn2")]
    for index, attention in enumerate(crossed):
        inner = attention.to_k.out_features
        keys |= {f"{2 * index + 1}.{k}.weight": torch.randn(inner, width) for k in ("to_k_ip", "to_v_ip")}
    return {"image_proj": projection, "ip_adapter": keys}


def controlled(folder: Path, nets: int = 1) -> Any:
    base = tiny.stable_diffusion(folder)
    torch.manual_seed(3)
    several = [ControlNetModel.from_unet(base.unet).eval() for _ in range(nets)]
    return StableDiffusionControlNetPipeline(
        **base.components, controlnet=several if nets > 1 else several[0], requires_safety_checker=False
    )


def adapted(folder: Path) -> Any:
    base = tiny.stable_diffusion(folder)
    torch.manual_seed(4)
    adapter = T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter").eval()
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"} | {
        "unet": tiny.unet(**blocks)
    }
    return StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)


def inverted(folder: Path) -> Any:
    pipe = tiny.stable_diffusion(folder)
    pipe.load_textual_inversion({"<new>": torch.zeros(3, 16)}, token="<new>")
    return pipe


def test_a_lora_adds_its_bytes_and_its_operations(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion(tmp_path)
    bare = ghostly(pipe)
    added = lora(pipe.unet, "one")
    one = ghostly(pipe)
    assert added > 0
    assert weights(one) == weights(bare) | {"unet": weights(bare)["unet"] + added}
    more = lora(pipe.unet, "two", rank=2 * RANK)
    pipe.unet.set_adapters(["one", "two"], [1.0, 0.5])
    both = ghostly(pipe)
    assert more == 2 * added
    assert weights(both)["unet"] == weights(bare)["unet"] + added + more
    assert work(bare) < work(one) < work(both)


def test_a_lora_that_is_switched_off_keeps_its_bytes_only(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion(tmp_path)
    bare = ghostly(pipe)
    added = lora(pipe.unet, "one")
    pipe.unet.disable_adapters()
    off = ghostly(pipe)
    assert weights(off)["unet"] == weights(bare)["unet"] + added
    assert work(off) == work(bare)


def test_a_fused_lora_costs_no_operation_and_an_unloaded_one_nothing(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion(tmp_path)
    bare = ghostly(pipe)
    added = lora(pipe.unet, "one")
    pipe.fuse_lora(components=["unet"])
    fused = ghostly(pipe)
    assert weights(fused)["unet"] == weights(bare)["unet"] + added
    assert work(fused) == work(bare)
    pipe.unload_lora_weights()
    gone = ghostly(pipe)
    assert weights(gone) == weights(bare)
    assert rehearse(resident(gone), device()) == rehearse(resident(bare), device())


def test_an_image_adapter_brings_its_encoder_and_its_attention(tmp_path: Path) -> None:
    bare = ghostly(tiny.stable_diffusion(tmp_path))
    pipe = with_image_adapter(tmp_path)
    program = ghostly(pipe)
    encoder = sum(t.nbytes for t in (*pipe.image_encoder.parameters(), *pipe.image_encoder.buffers()))
    assert weights(program)["image_encoder"] == encoder
    given = _image_adapter(pipe.unet)
    added = sum(t.nbytes for part in given.values() for t in part.values())
    assert weights(program)["unet"] == weights(bare)["unet"] + added
    assert "image_encoder" in phases(program), "its image is encoded though nobody named one"
    assert work(program) > work(bare)


@pytest.mark.parametrize("nets", [1, 2])
def test_controlnets_are_components_and_phases(nets: int, tmp_path: Path) -> None:
    pipe = controlled(tmp_path, nets)
    program = ghostly(pipe)
    assert weights(program)["controlnet"] == sum(p.nbytes for p in pipe.controlnet.parameters())
    assert phases(program).count("controlnet") == SMALL.steps
    single = ghostly(controlled(tmp_path / "other"))
    assert weights(program)["controlnet"] == nets * weights(single)["controlnet"]


def test_a_t2i_adapter_is_a_component_and_a_phase(tmp_path: Path) -> None:
    pipe = adapted(tmp_path)
    program = ghostly(pipe)
    assert weights(program)["adapter"] == sum(p.nbytes for p in pipe.adapter.parameters())
    assert phases(program).count("adapter") == 1


def test_textual_inversion_changes_the_embedding(tmp_path: Path) -> None:
    """It gets a row for each token there is now; that of the tiny encoder had some to spare."""
    bare, pipe = ghostly(tiny.stable_diffusion(tmp_path)), inverted(tmp_path)
    row = 16 * 4
    rows = len(pipe.tokenizer)
    assert rows == 54 + 3
    assert weights(ghostly(pipe))["text_encoder"] == weights(bare)["text_encoder"] + (rows - 64) * row


MAKERS: dict[str, Callable[[Path], Any]] = {
    "lora": with_lora,
    "image adapter": with_image_adapter,
    "controlnet": controlled,
    "two controlnets": lambda folder: controlled(folder, 2),
    "t2i adapter": adapted,
    "textual inversion": inverted,
}
PICTURE = Image.new("RGB", (64, 64), (120, 30, 200))
HANDED: dict[str, dict[str, Any]] = {
    "image adapter": {"ip_adapter_image": PICTURE},
    "controlnet": {"image": PICTURE},
    "two controlnets": {"image": [PICTURE, PICTURE]},
    "t2i adapter": {"image": PICTURE},
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("placement", ["resident", "model", "sequential"])
@pytest.mark.parametrize("name", MAKERS)
def test_with_adapters_too_nothing_of_an_exact_plan_stays(name: str, placement: str, tmp_path: Path) -> None:
    pipe = MAKERS[name](tmp_path)
    handed = {"height": 64, "width": 64, **HANDED.get(name, {})}
    before, output = snapshot(pipe), tiny.run(pipe, **handed)
    made = planner.plan(pipe, device=planner.card("rtx-3070"), fidelity="exact", cache=tmp_path, request=SMALL)
    assert made.promise.allocated > 0
    chosen = Option(technique="placement", value=placement, calls=())
    plan = replace(made, options=(*(o for o in made.options if o.technique != "placement"), chosen))
    plan.apply(pipe)
    torch.testing.assert_close(tiny.run(pipe, **handed), output, atol=1e-5, rtol=1e-5)
    plan.revert(pipe)
    assert before.difference(snapshot(pipe)) == ()
    assert torch.equal(tiny.run(pipe, **handed), output)


def test_the_plan_grows_by_the_adapters_bytes(tmp_path: Path) -> None:
    """With all on the card a phase holds the adapter's weights, each rounded to 512 bytes, and more while it works."""
    pipe = tiny.stable_diffusion(tmp_path)
    bare = planner.plan(pipe, device=planner.card("rtx-3070"), fidelity="exact", cache=tmp_path, request=SMALL)
    added = lora(pipe.unet, "one")
    parts = [p for key, p in pipe.unet.named_parameters() if "lora_" in key]
    assert sum(p.nbytes for p in parts) == added
    held = sum(-(-p.nbytes // 512) * 512 for p in parts)
    grown = planner.plan(pipe, device=planner.card("rtx-3070"), fidelity="exact", cache=tmp_path, request=SMALL)
    for less, more in zip(bare.baseline.phases, grown.baseline.phases, strict=True):
        assert more.weights == less.weights + held, less.name
