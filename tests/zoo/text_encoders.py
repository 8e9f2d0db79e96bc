"""Tiny text encoders."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from .case import Device, Draw, ModelCase, built, flat

VOCABULARY = 96
"""The number of tokens of every text encoder but Qwen's; the tokenizers of the pipelines fit into it."""

QWEN_VOCABULARY = 320
"""Enough for a tokenizer of bytes with a few special tokens."""


def clip_text_config(**changes: Any) -> transformers.CLIPTextConfig:
    """Two layers of width 32 that read up to 16 tokens; the last token is the end of the text."""
    values = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    return transformers.CLIPTextConfig(**{**values, **changes})


def clip_text(seed: int = 0, **changes: Any) -> nn.Module:
    """The text encoder of Stable Diffusion."""
    return built(lambda: transformers.CLIPTextModel(clip_text_config(**changes)), seed)


def clip_text_projected(seed: int = 0, **changes: Any) -> nn.Module:
    """The second text encoder of SDXL: as `clip_text`, with a projection of the pooled output."""
    config = clip_text_config(**{"hidden_act": "gelu", **changes})
    return built(lambda: transformers.CLIPTextModelWithProjection(config), seed)


def clip(seed: int = 0) -> nn.Module:
    """The whole of CLIP: text and image towers with their projections."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = transformers.CLIPConfig(
        text_config=clip_text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=32
    )
    return built(lambda: transformers.CLIPModel(config), seed)


def t5(seed: int = 0, kind: type[nn.Module] = transformers.T5EncoderModel, **changes: Any) -> nn.Module:
    """The encoder half of T5, with gated feed-forward layers as in v1.1; `kind` may be that of UMT5."""
    values = dict(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
    )
    return built(lambda: kind(kind.config_class(**{**values, **changes})), seed)


def umt5(seed: int = 0, **changes: Any) -> nn.Module:
    """As T5, but each layer has a relative position bias of its own."""
    return t5(seed, transformers.UMT5EncoderModel, **changes)


def qwen_vl(seed: int = 0) -> nn.Module:
    """Qwen 2.5 VL: two text layers with shared keys, a vision tower of two layers, one of them windowed."""
    text = dict(
        vocab_size=QWEN_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 4]},
        bos_token_id=0,
        eos_token_id=0,
    )
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        window_size=16,
        out_hidden_size=32,
        fullatt_block_indexes=[1],
    )
    special = dict(image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)
    return built(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config), seed)


def llama(seed: int = 0) -> nn.Module:
    """Llama, as HiDream and others use it: two layers with shared keys."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return built(lambda: transformers.LlamaModel(config), seed)


def gemma(seed: int = 0) -> nn.Module:
    """Gemma 2, as Sana and Lumina use it: one layer with a sliding window, one without."""
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        sliding_window=4,
    )
    return built(lambda: transformers.Gemma2Model(config), seed)


def clip_tokens(draw: Draw) -> torch.Tensor:
    """Two texts of eight tokens, each ended by the end-of-text token."""
    end = torch.full((2, 1), VOCABULARY - 1, device=draw.device)
    return torch.cat([draw.integers(0, VOCABULARY - 2, 2, 7), end], dim=1)


def clip_text_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """The last, the pooled and all hidden states."""
    return flat(model(clip_tokens(Draw(model, device, seed)), output_hidden_states=True))


def clip_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """Similarities and embeddings of two texts and two images."""
    draw = Draw(model, device, seed)
    return flat(model(input_ids=clip_tokens(draw), pixel_values=draw.normal(2, 3, 16, 16)))


def clip_text_features(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """The text tower, entered through its own method."""
    return flat(model.get_text_features(clip_tokens(Draw(model, device, seed))))


def clip_image_features(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """The image tower, entered through its own method."""
    return flat(model.get_image_features(Draw(model, device, seed).normal(2, 3, 16, 16)))


def masked_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """Two texts of eight tokens, the second one padded by three."""
    tokens = Draw(model, device, seed).integers(2, VOCABULARY, 2, 8)
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return flat(model(tokens, attention_mask=mask.to(device)))


def decoder_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """As `masked_forward`, with all hidden states and no cache."""
    tokens = Draw(model, device, seed).integers(5, VOCABULARY, 2, 8)
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return flat(model(tokens, attention_mask=mask.to(device), output_hidden_states=True, use_cache=False))


def qwen_vl_image_forward(model: nn.Module, device: Device, seed: int) -> list[torch.Tensor]:
    """A text around an image of 16x32 pixels: 4x8 patches, merged to eight tokens."""
    draw = Draw(model, device, seed)
    before = draw.integers(5, VOCABULARY, 1, 3)
    after = draw.integers(5, VOCABULARY, 1, 4)
    image = torch.tensor([[3] + [1] * 8 + [4]], device=device)
    tokens = torch.cat([before, image, after], dim=1)
    return flat(
        model(
            input_ids=tokens,
            mm_token_type_ids=(tokens == 1).long(),
            attention_mask=torch.ones_like(tokens),
            pixel_values=draw.normal(32, 3 * 2 * 4 * 4),
            image_grid_thw=torch.tensor([[1, 4, 8]], device=device),
            output_hidden_states=True,
            use_cache=False,
        )
    )


CASES = (
    ModelCase("clip_text", clip_text, {"forward": clip_text_forward}),
    ModelCase("clip_text_projected", clip_text_projected, {"forward": clip_text_forward}),
    ModelCase(
        "clip",
        clip,
        {
            "forward": clip_forward,
            "get_text_features": clip_text_features,
            "get_image_features": clip_image_features,
        },
    ),
    ModelCase("t5", t5, {"forward": masked_forward}),
    ModelCase("umt5", umt5, {"forward": masked_forward}),
    ModelCase("qwen_vl", qwen_vl, {"forward": decoder_forward, "forward with image": qwen_vl_image_forward}),
    ModelCase("llama", llama, {"forward": decoder_forward}),
    ModelCase("gemma", gemma, {"forward": decoder_forward}),
)
