"""The pipelines of the demonstration: Flux at reduced width with random weights, or a checkpoint from a directory."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import nn

from ..offload.model.tensors import default_dtype, plain_tensors
from . import DemoError
from .options import DemoOptions

__all__ = [
    "FULL",
    "SMALL",
    "Image",
    "build_pipeline",
    "describe",
    "flux_transformer",
    "models_of",
    "run_pipeline",
    "weight_bytes",
]

Image = npt.NDArray[np.float32]
"""Height, width, three channels."""

CLIP_TOKENS = 77
T5_TOKENS = 32
# Narrower than the other models: without AVX-512, bfloat16 convolutions are much slower than other operations.
VAE_CHANNELS = (16, 16, 32, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The widths and depths of a reduced Flux. All other settings are those of the published model."""

    blocks: int
    single_blocks: int
    axes: tuple[int, int, int]
    clip_layers: int
    t5_layers: int
    width: int


# The published depths: 19 double and 38 single blocks, 12 and 24 encoder layers. The width of 256 was 3072.
FULL = Scale(blocks=19, single_blocks=38, axes=(16, 56, 56), clip_layers=12, t5_layers=24, width=256)
SMALL = Scale(blocks=2, single_blocks=3, axes=(8, 12, 12), clip_layers=2, t5_layers=2, width=64)


def build_pipeline(options: DemoOptions, dtype: str) -> Any:
    """The pipeline in host memory: in ``bf16``, or with the weights of its linear layers in ``int8``.

    Equal options give equal weights, bit for bit.

    Raises:
        DemoError: the checkpoint cannot be loaded.
    """
    scale = SMALL if options.small else FULL
    pipeline = _flux(scale, options.seed) if options.model is None else _loaded(options.model)
    pipeline.set_progress_bar_config(disable=True)
    if dtype == "int8":
        _quantize(pipeline)
    return pipeline


def describe(options: DemoOptions) -> str:
    """The pipeline in words."""
    if options.model is not None:
        return f"the checkpoint in {options.model}"
    if options.small:
        return "a tiny FluxPipeline, random weights"
    return "a FluxPipeline of published depth and reduced width, random weights"


def models_of(pipeline: Any) -> dict[str, nn.Module]:
    """The components that have weights."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def weight_bytes(pipeline: Any) -> int:
    """Bytes of all parameters and buffers; what is shared counts once."""
    storages: dict[int, int] = {}
    for model in models_of(pipeline).values():
        for tensor in (*model.parameters(), *model.buffers()):
            storages.update((plain.data_ptr(), plain.nbytes) for _, plain in plain_tensors(tensor))
    return sum(storages.values())


def run_pipeline(pipeline: Any, options: DemoOptions, steps: int, on_step: Callable[[], None]) -> Image:
    """From the prompt to an image; ``on_step`` is called at the end of each denoising step.

    The noise comes from a generator on the CPU: the same for every device.
    """

    def ended(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return tensors

    wanted: dict[str, Any] = {
        "prompt": options.prompt,
        "height": options.height,
        "width": options.width,
        "num_inference_steps": steps,
        "generator": torch.Generator("cpu").manual_seed(options.seed),
        "output_type": "np",
        "callback_on_step_end": ended,
    }
    if options.model is None:
        wanted["max_sequence_length"] = T5_TOKENS
    known = inspect.signature(type(pipeline).__call__).parameters
    for name in ("prompt", "num_inference_steps", "callback_on_step_end"):
        if name not in known:
            raise DemoError(f"{type(pipeline).__name__} takes no `{name}`, so the demonstration cannot drive it.")
    output = pipeline(**{name: value for name, value in wanted.items() if name in known and value is not None})
    made = output.images if hasattr(output, "images") else output.frames
    image = np.asarray(made[0], dtype=np.float32)
    # A video has one axis more: its first frame is the image.
    return image if image.ndim == 3 else image[0]


def flux_transformer(scale: Scale, seed: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Flux's transformer with random weights, under which each step changes the latents visibly."""
    with _fresh(seed, dtype):
        transformer: Any = diffusers.FluxTransformer2DModel(
            num_layers=scale.blocks,
            num_single_layers=scale.single_blocks,
            num_attention_heads=2,
            attention_head_dim=sum(scale.axes),
            axes_dims_rope=scale.axes,
            joint_attention_dim=scale.width,
            pooled_projection_dim=scale.width,
        )
        # Initial weights of linear layers shrink the activations. Larger weights in the last layer make up for it.
        nn.init.normal_(transformer.proj_out.weight, std=1.5 * transformer.inner_dim**-0.5)
    return transformer.eval()


def _flux(scale: Scale, seed: int) -> Any:
    clip_tokenizer, t5_tokenizer = _clip_tokenizer(), _t5_tokenizer()
    with _fresh(seed + 1):
        clip = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(clip_tokenizer),
                hidden_size=scale.width,
                intermediate_size=4 * scale.width,
                num_hidden_layers=scale.clip_layers,
                num_attention_heads=scale.width // 32,
                bos_token_id=clip_tokenizer.bos_token_id,
                eos_token_id=clip_tokenizer.eos_token_id,
                pad_token_id=clip_tokenizer.pad_token_id,
            )
        )
    with _fresh(seed + 2):
        t5 = transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=len(t5_tokenizer),
                d_model=scale.width,
                d_ff=4 * scale.width,
                num_layers=scale.t5_layers,
                num_heads=scale.width // 32,
                feed_forward_proj="gated-gelu",
            )
        )
    with _fresh(seed + 3):
        vae: Any = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=VAE_CHANNELS,
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=8,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        # A random decoder makes faint grey images. More contrast shows more of the latents.
        nn.init.normal_(vae.decoder.conv_out.weight, std=0.5 * (9 * VAE_CHANNELS[0]) ** -0.5)
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        text_encoder=clip.eval(),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5.eval(),
        tokenizer_2=t5_tokenizer,
        transformer=flux_transformer(scale, seed),
        vae=vae.eval(),
    )


def _clip_tokenizer() -> Any:
    symbols = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_TOKENS)


def _t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(symbol, -4.0) for symbol in string.ascii_letters + string.digits + string.punctuation]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _loaded(directory: Path) -> Any:
    diffusers.utils.logging.disable_progress_bar()
    try:
        return diffusers.DiffusionPipeline.from_pretrained(str(directory), dtype=torch.bfloat16, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise DemoError(f"The checkpoint in {directory} cannot be loaded: {error}") from error


def _quantize(pipeline: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for name, model in models_of(pipeline).items():
        # The autoencoder is nearly all convolutions, and is usually not quantized.
        if not name.startswith("vae"):
            config = Int8WeightOnlyConfig(set_inductor_config=False)
            quantize_(model, config, filter_fn=lambda part, _: type(part) is nn.Linear)


@contextlib.contextmanager
def _fresh(seed: int, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Modules made within start from ``seed``, in ``dtype``; the caller's random state and default dtype come back."""
    with torch.random.fork_rng(devices=[]), default_dtype(dtype):
        torch.default_generator.manual_seed(seed)
        yield
