"""Tiny autoencoders of videos, with causal convolutions in time."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import nn

from .autoencoder_calls import REPEATS, doors
from .case import Call, ModelCase, configured

MEAN = [0.1, -0.2, 0.3, -0.4]
DEVIATION = [1.1, 0.9, 1.2, 0.8]
TILES = dict(
    tile_sample_min_height=16, tile_sample_min_width=16, tile_sample_stride_height=12, tile_sample_stride_width=12
)


def wan(seed: int = 0, **changes: Any) -> nn.Module:
    """The autoencoder of Wan 2.1: two levels, the first of which halves time as well; caches frames as it goes."""
    return configured(
        diffusers.AutoencoderKLWan,
        seed,
        changes,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=MEAN,
        latents_std=DEVIATION,
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )


def wan_residual(seed: int = 0, **changes: Any) -> nn.Module:
    """The autoencoder of Wan 2.2: three levels with residual shortcuts around each, and patches."""
    config = dict(
        decoder_base_dim=8,
        dim_mult=[1, 2, 2],
        temperal_downsample=[False, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
    )
    return wan(seed, **{**config, **changes})


def qwen_image(seed: int = 0, **changes: Any) -> nn.Module:
    """The autoencoder of Qwen-Image: that of Wan, used for one frame."""
    return configured(
        diffusers.AutoencoderKLQwenImage,
        seed,
        changes,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=MEAN,
        latents_std=DEVIATION,
    )


def ltx_video(seed: int = 0, **changes: Any) -> nn.Module:
    """The autoencoder of LTX-Video 0.9.1: patches, two levels, a decoder that is told the timestep."""
    return configured(
        diffusers.AutoencoderKLLTXVideo,
        seed,
        changes,
        latent_channels=8,
        block_out_channels=(16, 32),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(16, 32),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(True, True),
        upsample_factor=(2, 2),
        timestep_conditioning=True,
        patch_size=2,
    )


def ltx_doors() -> dict[str, Call]:
    """All calls but the sliced decode: diffusers 0.42 fails to split the timesteps along with the latents."""
    calls = doors((3, 5, 16, 16), (8, 2, 2, 2), (3, 5, 24, 24), (8, 2, 3, 3), TILES, timed=True)
    del calls["sliced decode"]
    return calls


CASES = (
    ModelCase(
        "autoencoder_kl_wan",
        wan,
        doors((3, 5, 16, 16), (4, 3, 8, 8), (3, 1, 24, 24), (4, 1, 12, 12), TILES),
        repeats=REPEATS,
    ),
    ModelCase(
        "autoencoder_kl_wan_residual",
        wan_residual,
        doors((3, 5, 16, 16), (4, 3, 2, 2), (3, 1, 24, 24), (4, 1, 3, 3), TILES),
        repeats=REPEATS,
    ),
    ModelCase(
        "autoencoder_kl_qwen_image",
        qwen_image,
        doors((3, 5, 16, 16), (4, 3, 8, 8), (3, 1, 24, 24), (4, 1, 12, 12), TILES),
        repeats=REPEATS,
    ),
    ModelCase(
        "autoencoder_kl_ltx_video",
        ltx_video,
        ltx_doors(),
        repeats=REPEATS,
    ),
)
