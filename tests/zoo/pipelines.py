"""Whole pipelines made of tiny components: from a prompt to an image or a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from . import autoencoders, denoisers, text_encoders, tokenizers, unets, video_autoencoders

PROMPT = "a cat on the mat, 2 dogs"


@dataclass(frozen=True)
class PipelineCase:
    """A pipeline and how to run it: `run` takes the pipeline, wherever its weights are, a prompt and a seed."""

    name: str
    build: Callable[[], Any]
    run: Callable[[Any, str, int], np.ndarray]


def seeded(seed: int) -> torch.Generator:
    """The noise source of a run: always on the CPU, so that it is the same for every device."""
    return torch.Generator("cpu").manual_seed(seed)


def quiet(pipeline: Any) -> Any:
    """The pipeline without its progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def array(images: Any) -> np.ndarray:
    """The result as one array of float32."""
    return np.asarray(images, dtype=np.float32)


def flow_scheduler() -> diffusers.FlowMatchEulerDiscreteScheduler:
    """The scheduler of Flux, Stable Diffusion 3 and Qwen-Image."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def flux_parts() -> dict[str, Any]:
    """Flux: two text encoders, one transformer, an autoencoder with one latent channel."""
    return dict(
        scheduler=flow_scheduler(),
        text_encoder=text_encoders.clip_text(seed=1),
        tokenizer=tokenizers.clip(),
        text_encoder_2=text_encoders.t5(seed=2),
        tokenizer_2=tokenizers.t5(),
        transformer=denoisers.flux(),
        vae=autoencoders.kl(
            latent_channels=1,
            scaling_factor=0.36,
            shift_factor=0.12,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    )


def flux() -> Any:
    """The pipeline of Flux."""
    return quiet(diffusers.FluxPipeline(**flux_parts()))


def run_flux(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """Two steps to an image of 16x16."""
    return array(
        pipeline(
            prompt,
            height=16,
            width=16,
            num_inference_steps=2,
            max_sequence_length=16,
            generator=seeded(seed),
            output_type="np",
        ).images
    )


def modular_flux() -> Any:
    """Flux as a modular pipeline."""
    pipeline = diffusers.FluxAutoBlocks().init_pipeline()
    pipeline.update_components(**flux_parts())
    return quiet(pipeline)


def run_modular_flux(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """Two steps to an image of 16x16."""
    return array(
        pipeline(
            prompt=prompt,
            height=16,
            width=16,
            num_inference_steps=2,
            max_sequence_length=16,
            generator=seeded(seed),
            output_type="np",
            output="images",
        )
    )


def sd3() -> Any:
    """Stable Diffusion 3: three text encoders, the widths of the first two add up to that of the third."""
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            scheduler=flow_scheduler(),
            text_encoder=text_encoders.clip_text_projected(seed=1, hidden_act="quick_gelu"),
            tokenizer=tokenizers.clip(),
            text_encoder_2=text_encoders.clip_text_projected(seed=2),
            tokenizer_2=tokenizers.clip(),
            text_encoder_3=text_encoders.t5(seed=3, d_model=64),
            tokenizer_3=tokenizers.t5(),
            transformer=denoisers.sd3(),
            vae=autoencoders.kl(
                scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False
            ),
        )
    )


def run_sd3(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """Two guided steps to an image of 16x16."""
    return array(
        pipeline(
            prompt,
            height=16,
            width=16,
            num_inference_steps=2,
            max_sequence_length=16,
            generator=seeded(seed),
            output_type="np",
        ).images
    )


def sdxl() -> Any:
    """Stable Diffusion XL: two text encoders and a UNet."""
    return quiet(
        diffusers.StableDiffusionXLPipeline(
            scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
            text_encoder=text_encoders.clip_text(seed=1),
            tokenizer=tokenizers.clip(),
            text_encoder_2=text_encoders.clip_text_projected(seed=2),
            tokenizer_2=tokenizers.clip(),
            unet=unets.sdxl_unet(),
            vae=autoencoders.kl(),
            add_watermarker=False,
        )
    )


def run_sdxl(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """Two guided steps to an image of 16x16."""
    return array(
        pipeline(prompt, height=16, width=16, num_inference_steps=2, generator=seeded(seed), output_type="np").images
    )


def wan() -> Any:
    """Wan 2.2: two transformers with different weights, of which the first one does the noisy steps."""
    return quiet(
        diffusers.WanPipeline(
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            text_encoder=text_encoders.umt5(seed=1),
            tokenizer=tokenizers.t5(),
            transformer=denoisers.wan(seed=2),
            transformer_2=denoisers.wan(seed=3),
            vae=video_autoencoders.wan(),
            boundary_ratio=0.8,
        )
    )


def run_wan(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """Three guided steps to a video of five frames of 16x16."""
    return array(
        pipeline(
            prompt,
            height=16,
            width=16,
            num_frames=5,
            num_inference_steps=3,
            max_sequence_length=16,
            generator=seeded(seed),
            output_type="np",
        ).frames
    )


def qwen_image_parts() -> dict[str, Any]:
    """Qwen-Image: a vision-language model as its text encoder."""
    return dict(
        scheduler=flow_scheduler(),
        text_encoder=text_encoders.qwen_vl(seed=1),
        tokenizer=tokenizers.qwen(),
        transformer=denoisers.qwen_image(),
        vae=video_autoencoders.qwen_image(),
    )


def qwen_image() -> Any:
    """The pipeline of Qwen-Image."""
    return quiet(diffusers.QwenImagePipeline(**qwen_image_parts()))


def run_qwen_image(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """Two guided steps to an image of 16x16."""
    return array(
        pipeline(
            prompt,
            negative_prompt="dogs",
            height=16,
            width=16,
            num_inference_steps=2,
            generator=seeded(seed),
            output_type="np",
        ).images
    )


def modular_qwen_image() -> Any:
    """Qwen-Image as a modular pipeline, guided by a component of its own."""
    pipeline = diffusers.QwenImageAutoBlocks().init_pipeline()
    pipeline.update_components(**qwen_image_parts())
    return quiet(pipeline)


def run_modular_qwen_image(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """Two guided steps to an image of 16x16."""
    return array(
        pipeline(
            prompt=prompt,
            negative_prompt="dogs",
            height=16,
            width=16,
            num_inference_steps=2,
            generator=seeded(seed),
            output_type="np",
            output="images",
        )
    )


PIPELINES: dict[str, PipelineCase] = {
    case.name: case
    for case in (
        PipelineCase("flux", flux, run_flux),
        PipelineCase("sd3", sd3, run_sd3),
        PipelineCase("sdxl", sdxl, run_sdxl),
        PipelineCase("wan", wan, run_wan),
        PipelineCase("qwen_image", qwen_image, run_qwen_image),
        PipelineCase("modular_flux", modular_flux, run_modular_flux),
        PipelineCase("modular_qwen_image", modular_qwen_image, run_modular_qwen_image),
    )
}
"""The pipeline cases by name."""


def save_and_load(case: PipelineCase, folder: Path) -> Any:
    """The pipeline of the case after `save_pretrained` and `from_pretrained`, from local files only.

    The weights are bit-equal; the output may differ in the last bits from that of the built pipeline, as weights
    that diffusers maps from a file are not aligned to 16 bytes, and some CPU kernels add up in another order then.
    `realign` removes that difference.
    """
    pipeline = case.build()
    modular = isinstance(pipeline, diffusers.ModularPipeline)
    pipeline.save_pretrained(str(folder), **({"overwrite_modular_index": True} if modular else {}))
    loaded = type(pipeline).from_pretrained(str(folder), local_files_only=True)
    if modular:
        loaded.load_components(local_files_only=True)
    return quiet(loaded)


def realign(pipeline: Any) -> Any:
    """The pipeline with every parameter copied to aligned memory of its own; tied parameters stay tied."""
    for model in models_of(pipeline).values():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return pipeline


def models_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The components of a pipeline that have weights."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
