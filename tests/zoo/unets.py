"""A tiny SDXL UNet and the ControlNet that goes with it."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from .case import Device, Draw, ModelCase, configured, flat

SHARED: dict[str, Any] = dict(
    in_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=64,
    transformer_layers_per_block=(1, 2),
    attention_head_dim=(1, 2),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=80,
)
"""What the UNet and its ControlNet have in common: two levels, two attention layers on the lower one."""


def sdxl_unet(seed: int = 0, **changes: Any) -> nn.Module:
    """The UNet of SDXL, conditioned on a pooled text embedding and six sizes."""
    return configured(
        diffusers.UNet2DConditionModel,
        seed,
        changes,
        sample_size=8,
        out_channels=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **SHARED,
    )


def sdxl_controlnet(seed: int = 0, **changes: Any) -> nn.Module:
    """The ControlNet of SDXL; its conditioning image is twice as large as the latents."""
    return configured(diffusers.ControlNetModel, seed, changes, conditioning_embedding_out_channels=(8, 16), **SHARED)


def inputs(draw: Draw) -> dict[str, Any]:
    """Latents of 8x8, seven text tokens and the added conditions, batch of two."""
    return dict(
        sample=draw.normal(2, 4, 8, 8),
        timestep=draw.integers(0, 1000, 2),
        encoder_hidden_states=draw.normal(2, 7, 64),
        added_cond_kwargs={"text_embeds": draw.normal(2, 32), "time_ids": draw.uniform(2, 6, high=64.0)},
    )


def unet_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """One denoising step."""
    return flat(model(**inputs(Draw(model, device, seed))))


def controlnet_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """The residuals for one denoising step."""
    draw = Draw(model, device, seed)
    return flat(model(**inputs(draw), controlnet_cond=draw.uniform(2, 3, 16, 16)))


def unet_controlled(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """One denoising step with residuals from a ControlNet."""
    draw = Draw(model, device, seed)
    given = inputs(draw)
    shapes = ((2, 16, 8, 8), (2, 16, 8, 8), (2, 16, 4, 4), (2, 32, 4, 4))
    return flat(
        model(
            **given,
            down_block_additional_residuals=[draw.normal(*shape) for shape in shapes],
            mid_block_additional_residual=draw.normal(2, 32, 4, 4),
        )
    )


CASES = (
    ModelCase("sdxl_unet", sdxl_unet, {"forward": unet_forward, "controlled": unet_controlled}),
    ModelCase("sdxl_controlnet", sdxl_controlnet, {"forward": controlnet_forward}),
)
