"""Tiny real pipelines: the libraries' own classes at a few thousand weights, seeded, computing on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

PROMPT = "a cat"


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A real CLIP tokenizer that knows the letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=16)


def ddim() -> DDIMScheduler:
    return DDIMScheduler(steps_offset=1, clip_sample=False)


def clip(kind: type = CLIPTextModel) -> Any:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    return kind(config).eval()


def image_vae(**changes: Any) -> AutoencoderKL:
    defaults: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 512,
    }
    return AutoencoderKL(**(defaults | changes)).eval()


def unet(**changes: Any) -> UNet2DConditionModel:
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**(defaults | changes)).eval()


def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=image_vae(), text_encoder=clip(), tokenizer=tokenizer(folder), unet=unet(), scheduler=ddim(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "cross_attention_dim": 32,
    }
    words = tokenizer(folder)
    return StableDiffusionXLPipeline(
        vae=image_vae(force_upcast=True), text_encoder=clip(), text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer=words, tokenizer_2=words, unet=unet(**added), scheduler=ddim(),
        add_watermarker=False,
    )  # fmt: skip


def flux(folder: Path) -> FluxPipeline:
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=True)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxPipeline(
        vae=image_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0),
        text_encoder=clip(), tokenizer=tokenizer(folder), text_encoder_2=T5EncoderModel(t5).eval(), tokenizer_2=None,
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def wan(folder: Path) -> WanPipeline:
    torch.manual_seed(0)
    t5 = UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    return WanPipeline(
        tokenizer=None, text_encoder=UMT5EncoderModel(t5).eval(), transformer=transformer.eval(), vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


MAKERS: dict[str, Callable[[Path], Any]] = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "flux": flux,
    "wan": wan,
}


def arguments(pipe: Any, images: int = 1, edge: int = 32, seeds: tuple[int, ...] = ()) -> dict[str, Any]:
    """A small call: two steps, numpy out, seeded; one generator per image where `seeds` are given."""
    generator = [torch.Generator().manual_seed(seed) for seed in seeds] or torch.Generator().manual_seed(7)
    call = {"height": edge, "width": edge, "num_inference_steps": 2, "output_type": "np", "generator": generator}
    dtype = next(pipe.components[name].dtype for name in ("unet", "transformer") if name in pipe.components)
    noise = torch.Generator().manual_seed(1)
    words = torch.randn(1, 6, 16, generator=noise).to(dtype)
    if isinstance(pipe, (WanPipeline, CogVideoXPipeline)):
        return call | {"prompt_embeds": words, "negative_prompt_embeds": words * 0.5, "num_frames": 5}
    call["num_images_per_prompt"] = images
    if isinstance(pipe, FluxPipeline):
        return call | {"prompt_embeds": words, "pooled_prompt_embeds": words[:, 0]}
    if isinstance(pipe, StableDiffusion3Pipeline):
        pooled = torch.cat([words[:, 0], words[:, 1]], -1)
        rejected = {"negative_prompt_embeds": words * 0.5, "negative_pooled_prompt_embeds": pooled * 0.5}
        return call | {"prompt_embeds": words, "pooled_prompt_embeds": pooled, **rejected}
    return call | {"prompt": PROMPT}


def run(pipe: Any, **kwargs: Any) -> torch.Tensor:
    """Images or frames of a small call as one tensor."""
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**(arguments(pipe) | kwargs))
    return torch.as_tensor(output[0])


def stable_video(_: Path | None = None) -> StableVideoDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=2,
        cross_attention_dim=32, addition_time_embed_dim=32, projection_class_embeddings_input_dim=96,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    vision = CLIPVisionConfig(
        hidden_size=16, projection_dim=32, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56,
        intermediate_size=16,
    )  # fmt: skip
    return StableVideoDiffusionPipeline(
        vae=vae.eval(), unet=unet.eval(), image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        scheduler=EulerDiscreteScheduler(interpolation_type="linear", prediction_type="v_prediction"),
        feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip


def ltx(_: Path | None = None) -> LTXPipeline:
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=1, patch_size_t=1,
        spatio_temporal_scaling=(True, True, True, False), decoder_spatio_temporal_scaling=(True, True, True, False),
    )  # fmt: skip
    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=True)
    return LTXPipeline(
        transformer=transformer.eval(), vae=vae.eval(), text_encoder=T5EncoderModel(t5).eval(), tokenizer=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def cogvideox(_: Path | None = None) -> CogVideoXPipeline:
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=4,
        text_embed_dim=16, num_layers=2, sample_width=4, sample_height=4, sample_frames=5,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=True)
    return CogVideoXPipeline(
        transformer=transformer.eval(), vae=vae.eval(), text_encoder=T5EncoderModel(t5).eval(), tokenizer=None,
        scheduler=CogVideoXDDIMScheduler(),
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=True)
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=32,
    )  # fmt: skip
    words = tokenizer(folder)
    return StableDiffusion3Pipeline(
        vae=image_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0),
        text_encoder=clip(CLIPTextModelWithProjection), tokenizer=words,
        text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer_2=words,
        text_encoder_3=T5EncoderModel(t5).eval(), tokenizer_3=None, transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def hunyuan_video(_: Path | None = None) -> HunyuanVideoPipeline:
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )  # fmt: skip
    return HunyuanVideoPipeline(
        transformer=transformer.eval(), vae=vae.eval(), text_encoder=None, tokenizer=None, text_encoder_2=clip(),
        tokenizer_2=None, scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
