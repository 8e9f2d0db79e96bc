"""Tiny image autoencoders."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import nn

from .autoencoder_calls import REPEATS, doors
from .case import ModelCase, configured


def kl(seed: int = 0, **changes: Any) -> nn.Module:
    """The autoencoder of Stable Diffusion: two levels, attention in the middle."""
    return configured(
        diffusers.AutoencoderKL,
        seed,
        changes,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )


def tiny(seed: int = 0, **changes: Any) -> nn.Module:
    """The small stand-in for `kl` that previews use; four levels, since its tiling takes the scale to be eight."""
    model = configured(
        diffusers.AutoencoderTiny,
        seed,
        changes,
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = 32, 4, 0.5
    return model


def dc(seed: int = 0, **changes: Any) -> nn.Module:
    """The deep compression autoencoder of Sana: linear attention, and BatchNorm statistics in its encoder."""
    return configured(
        diffusers.AutoencoderDC,
        seed,
        changes,
        latent_channels=4,
        attention_head_dim=16,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )


CASES = (
    ModelCase("autoencoder_kl", kl, doors((3, 16, 16), (4, 8, 8), (3, 28, 28), (4, 14, 14)), repeats=REPEATS),
    ModelCase(
        "autoencoder_tiny",
        tiny,
        doors((3, 16, 16), (4, 2, 2), (3, 48, 48), (4, 6, 6)),
        repeats=REPEATS,
        float32_only=frozenset({"forward"}),
    ),
    ModelCase(
        "autoencoder_dc",
        dc,
        doors(
            (3, 16, 16),
            (4, 8, 8),
            (3, 24, 24),
            (4, 12, 12),
            tiles=dict(
                tile_sample_min_height=16,
                tile_sample_min_width=16,
                tile_sample_stride_height=12,
                tile_sample_stride_width=12,
            ),
        ),
        repeats=REPEATS,
    ),
)
