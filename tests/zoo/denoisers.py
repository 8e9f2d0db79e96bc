"""Tiny diffusion transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from .case import Device, Draw, ModelCase, configured, flat


def flux(seed: int = 0, **changes: Any) -> nn.Module:
    """Flux: three double and four single blocks, 168 parameters, 765,968 bytes in float32."""
    return configured(
        diffusers.FluxTransformer2DModel,
        seed,
        changes,
        in_channels=4,
        num_layers=3,
        num_single_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def flux_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """A 4x4 grid of packed latents and seven text tokens, batch of two."""
    draw = Draw(model, device, seed)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    image_ids = torch.stack([torch.zeros(4, 4), rows, columns], dim=-1).reshape(16, 3)
    return flat(
        model(
            hidden_states=draw.normal(2, 16, 4),
            encoder_hidden_states=draw.normal(2, 7, 32),
            pooled_projections=draw.normal(2, 32),
            timestep=draw.uniform(2),
            img_ids=draw.put(image_ids),
            txt_ids=draw.put(torch.zeros(7, 3)),
        )
    )


def sd3(seed: int = 0, **changes: Any) -> nn.Module:
    """Stable Diffusion 3.5: the first of two joint blocks has a second attention, queries and keys are normed."""
    return configured(
        diffusers.SD3Transformer2DModel,
        seed,
        changes,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def sd3_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """Latents of 8x8 and seven text tokens, batch of two."""
    draw = Draw(model, device, seed)
    return flat(
        model(
            hidden_states=draw.normal(2, 4, 8, 8),
            encoder_hidden_states=draw.normal(2, 7, 64),
            pooled_projections=draw.normal(2, 64),
            timestep=draw.uniform(2, high=1000.0),
        )
    )


def qwen_image(seed: int = 0, **changes: Any) -> nn.Module:
    """Qwen-Image: two double-stream blocks."""
    return configured(
        diffusers.QwenImageTransformer2DModel,
        seed,
        changes,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def qwen_image_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """A 4x4 grid of packed latents and seven text tokens, the second text padded by two."""
    draw = Draw(model, device, seed)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    return flat(
        model(
            hidden_states=draw.normal(2, 16, 16),
            encoder_hidden_states=draw.normal(2, 7, 32),
            encoder_hidden_states_mask=draw.put(mask),
            timestep=draw.uniform(2),
            img_shapes=[[(1, 4, 4)]] * 2,
        )
    )


def wan(seed: int = 0, **changes: Any) -> nn.Module:
    """Wan: two blocks of self and cross attention."""
    return configured(
        diffusers.WanTransformer3DModel,
        seed,
        changes,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
    )


def wan_image(seed: int = 0, **changes: Any) -> nn.Module:
    """The image-to-video form of Wan 2.1, which also reads an image embedding."""
    return wan(seed, **{"image_dim": 32, "added_kv_proj_dim": 32, **changes})


def wan_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """Latents of two frames of 8x8 and seven text tokens, batch of two."""
    draw = Draw(model, device, seed)
    return flat(
        model(
            hidden_states=draw.normal(2, 4, 2, 8, 8),
            timestep=draw.integers(0, 1000, 2),
            encoder_hidden_states=draw.normal(2, 7, 32),
        )
    )


def wan_image_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """As `wan_forward`, with five image tokens; the model counts the text as the last 512 tokens of the context."""
    draw = Draw(model, device, seed)
    return flat(
        model(
            hidden_states=draw.normal(2, 4, 2, 8, 8),
            timestep=draw.integers(0, 1000, 2),
            encoder_hidden_states=draw.normal(2, 512, 32),
            encoder_hidden_states_image=draw.normal(2, 5, 32),
        )
    )


def ltx_video(seed: int = 0, **changes: Any) -> nn.Module:
    """LTX-Video: two blocks of self and cross attention."""
    return configured(
        diffusers.LTXVideoTransformer3DModel,
        seed,
        changes,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )


def ltx_video_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """Latents of two frames of 4x4 and seven text tokens, the second text padded by two."""
    draw = Draw(model, device, seed)
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return flat(
        model(
            hidden_states=draw.normal(2, 32, 8),
            encoder_hidden_states=draw.normal(2, 7, 32),
            timestep=draw.integers(0, 1000, 2, 1),
            encoder_attention_mask=draw.put(mask),
            num_frames=2,
            height=4,
            width=4,
        )
    )


LAST_TEXT = "the last block's text output is dropped, and its text queries with it"

CASES = (
    ModelCase("flux", flux, {"forward": flux_forward}),
    ModelCase(
        "sd3",
        sd3,
        {"forward": sd3_forward},
        unused={
            "transformer_blocks.1.attn.add_q_proj.*": LAST_TEXT,
            "transformer_blocks.1.attn.norm_added_q.*": LAST_TEXT,
        },
    ),
    ModelCase(
        "qwen_image",
        qwen_image,
        {"forward": qwen_image_forward},
        unused={
            "transformer_blocks.1.attn.add_q_proj.*": LAST_TEXT,
            "transformer_blocks.1.attn.norm_added_q.*": LAST_TEXT,
            "transformer_blocks.1.attn.to_add_out.*": LAST_TEXT,
            "transformer_blocks.1.txt_mlp.*": LAST_TEXT,
        },
    ),
    ModelCase("wan", wan, {"forward": wan_forward}),
    ModelCase("wan_image", wan_image, {"forward": wan_image_forward}),
    ModelCase("ltx_video", ltx_video, {"forward": ltx_video_forward}),
)
