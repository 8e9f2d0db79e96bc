"""Steps of a denoiser of published block sizes on a device: un-offloaded, with stock offloading and with ours.

python -m benchmarks.gpu [--device cuda] [--output DIRECTORY] [--weights 8GiB] [--seconds 150]

Weights are random. With ``--device sim`` the simulated accelerator runs a narrow model, to rehearse.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import HookRegistry, apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.formatting import format_bytes, parse_bytes
from diffusers_offload_plus.offload.hooks.diffusers_api import HOOK_NAME, STOCK_HELPER_HOOKS
from tests.zoo.quantized import int8_weight_only

WARM, STEPS = 2, 5
TEXT, IMAGE = 512, 4096  # tokens: a prompt, and an image of 1024 x 1024
PARTS = (0.1, 0.25, 0.5, 0.75)  # of the weights, as `vram_budget`
DOUBLE_TO_SINGLE = 2  # single blocks for each double one, as in Flux.1


@dataclasses.dataclass(frozen=True)
class Row:
    """What one system does.

    Attributes:
        seconds: median of a step; None: it did not run, and ``note`` says why.
        allocated, reserved: most device bytes during the steps, of tensors and of the allocator.
        copied: bytes from host to device in a step, where the system tells.
    """

    system: str
    weights: str
    seconds: float | None
    allocated: int = 0
    reserved: int = 0
    copied: int | None = None
    note: str = ""


def build(nbytes: int, *, narrow: bool) -> nn.Module:
    """A Flux of bf16 with as many blocks as ``nbytes`` hold, filled with small random numbers."""
    heads, size = (4, 32) if narrow else (24, 128)

    def flux(double: int) -> nn.Module:
        with torch.device("meta"):
            return FluxTransformer2DModel(
                num_layers=double, num_single_layers=DOUBLE_TO_SINGLE * double, num_attention_heads=heads,
                attention_head_dim=size, joint_attention_dim=256 if narrow else 4096, pooled_projection_dim=768,
                axes_dims_rope=(8, 12, 12) if narrow else (16, 56, 56),
            ).to(torch.bfloat16)  # fmt: skip

    one, two = (sum(p.nbytes for p in flux(double).parameters()) for double in (1, 2))
    model = flux(max(1, int((nbytes - one) // (two - one) + 1))).to_empty(device="cpu").eval()
    chunk = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) * 0.02
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for start in range(0, flat.numel(), chunk.numel()):
            flat[start : start + chunk.numel()].copy_(chunk[: flat.numel() - start])
    return model


def inputs(model: Any, device: torch.device, *, narrow: bool) -> dict[str, torch.Tensor]:
    text, image = (4, 16) if narrow else (TEXT, IMAGE)

    def normal(*shape: int) -> torch.Tensor:
        numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        return numbers.to(device, torch.bfloat16)

    return {
        "hidden_states": normal(1, image, model.config.in_channels),
        "encoder_hidden_states": normal(1, text, model.config.joint_attention_dim),
        "pooled_projections": normal(1, model.config.pooled_projection_dim),
        "timestep": torch.ones(1, device=device, dtype=torch.bfloat16),
        "img_ids": torch.zeros(image, 3, device=device), "txt_ids": torch.zeros(text, 3, device=device),
    }  # fmt: skip


def bandwidth(device: torch.device) -> float:
    """Bytes a second of copies from pinned memory."""
    size = 256 << 20 if device.type == "cuda" else 1 << 20
    source, target = (
        torch.empty(size, dtype=torch.uint8, pin_memory=True),
        torch.empty(size, dtype=torch.uint8, device=device),
    )
    seconds = []
    for _ in range(5):
        torch.accelerator.synchronize(device)
        begin = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return size / min(seconds)


@contextmanager
def resident(model: nn.Module, device: torch.device) -> Iterator[None]:
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")


@contextmanager
def stock(model: nn.Module, device: torch.device, **settings: Any) -> Iterator[None]:
    apply_group_offloading(model, device, torch.device("cpu"), **settings)
    try:
        yield
    finally:
        for module in model.modules():
            if hasattr(module, "_diffusers_hook"):
                registry = HookRegistry.check_if_exists_or_initialize(module)
                for name in (HOOK_NAME, *STOCK_HELPER_HOOKS):
                    registry.remove_hook(name, recurse=False)
        model.to("cpu")


@contextmanager
def ours(model: nn.Module, device: torch.device, **settings: Any) -> Iterator[None]:
    dop.enable_group_offload(model, device, **settings)
    try:
        yield
    finally:
        dop.disable_group_offload(model)


def measure(
    name: str, weights: str, scope: Any, model: nn.Module, x: dict[str, torch.Tensor], device: torch.device
) -> Row:
    """The row of one system."""
    module: Any = torch.get_device_module(device.type)
    gc.collect()
    if hasattr(module, "empty_cache"):
        module.empty_cache()
    try:
        with scope, torch.inference_mode():
            for _ in range(WARM):
                model(**x)
            module.reset_peak_memory_stats(device)
            seconds, before = [], _copied(model)
            for _ in range(STEPS):
                torch.accelerator.synchronize(device)
                begin = time.perf_counter()
                model(**x)
                torch.accelerator.synchronize(device)
                seconds.append(time.perf_counter() - begin)
            after = _copied(model)
            copied = None if after is None or before is None else (after - before) // STEPS
            peaks = module.max_memory_allocated(device), module.memory_reserved(device)
            return Row(name, weights, statistics.median(seconds), *peaks, copied)
    except (RuntimeError, dop.OffloadPlusError) as error:
        return Row(name, weights, None, note=f"{type(error).__name__}: {error}".splitlines()[0][:100])


def _copied(model: nn.Module) -> int | None:
    try:
        return dop.offload_report(model).components[0].transferred_bytes
    except dop.OffloadPlusError:
        return None


def systems(model: nn.Module, device: torch.device, size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The systems by name, each with a function that makes its context; ``size``: bytes of the weights."""
    yield "un-offloaded", functools.partial(resident, model, device)
    for level, more in (("block", {"num_blocks_per_group": 1}), ("leaf", {})):
        settings: dict[str, Any] = {"offload_type": f"{level}_level", "use_stream": True, **more}
        yield f"stock, {level}, streams", functools.partial(stock, model, device, **settings)
        yield f"ours, {level}, streams", functools.partial(ours, model, device, **settings)
    for part in PARTS:
        yield f"ours, budget of {part:.0%}", functools.partial(ours, model, device, vram_budget=int(part * size))


def rows(device: torch.device, nbytes: int, seconds: float) -> Iterator[Row]:
    """All systems, for bf16 and for int8, as long as there is time."""
    narrow, deadline = device.type != "cuda", time.monotonic() + seconds
    model = build(nbytes, narrow=narrow)
    for weights in ("bf16", "int8"):
        if weights == "int8":
            int8_weight_only(model)
        size = sum(p.numel() * p.element_size() for p in model.parameters()) // (1 if weights == "bf16" else 2)
        x = inputs(model, device, narrow=narrow)
        for name, scope in systems(model, device, size):
            if time.monotonic() > deadline:
                yield Row(name, weights, None, note="no time left")
                continue
            yield measure(name, weights, scope(), model, x, device)


def table(found: list[Row], link: float) -> str:
    """The rows as Markdown."""
    lines = [
        "| weights | system | seconds a step | of un-offloaded | bound | allocated | reserved | copied a step |",
        "|---" * 8 + "|",
    ]
    computing = {row.weights: row.seconds for row in found if row.system == "un-offloaded" and row.seconds}
    for row in found:
        if row.seconds is None:
            lines.append(f"| {row.weights} | {row.system} | {row.note} | | | | | |")
            continue
        base = computing.get(row.weights)
        ratio = "" if base is None else f"{row.seconds / base:.2f}"
        bound = "" if base is None or row.copied is None else f"{max(base, row.copied / link):.4f}"
        copied = "" if row.copied is None else format_bytes(row.copied)
        peaks = f"{format_bytes(row.allocated)} | {format_bytes(row.reserved)}"
        lines.append(f"| {row.weights} | {row.system} | {row.seconds:.4f} | {ratio} | {bound} | {peaks} | {copied} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("gpu-output"))
    parser.add_argument("--weights", default="8GiB", help="bytes of bf16 weights, in whole blocks")
    parser.add_argument("--seconds", type=float, default=150.0, help="no system is begun after that")
    options = parser.parse_args(arguments)
    if options.device == "sim":
        from tests.simulated import register

        register()
    device = torch.device(options.device, 0)
    link = bandwidth(device)
    found = list(rows(device, parse_bytes("--weights", options.weights), options.seconds))
    text = f"{link / 1e9:.1f} GB/s from pinned memory.\n\n{table(found, link)}\n"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "steps.md").write_text(text)
    (options.output / "steps.json").write_text(json.dumps([dataclasses.asdict(row) for row in found], indent=1))
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
