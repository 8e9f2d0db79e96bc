"""Seconds of a denoiser's step over the device memory it takes: ours at several budgets, and others, in virtual time.

python -m benchmarks.budgets [--output DIRECTORY]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import math
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from tests import simulated
from tests.zoo.denoisers import flux, flux_forward, qwen_image, qwen_image_forward, wan, wan_forward
from tests.zoo.quantized import int8_weight_only

SCALE = 32  # widths are those of the published models divided by this, so bytes are divided by its square
BANDWIDTH = 25e9  # bytes a second from host to device, at full width
LATENCY = 10e-6  # seconds a copy
COMPUTE = 0.5  # of the time that bf16 weights take to travel
PARTS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
WARM, STEPS = 2, 1

Enable = Callable[[nn.Module], object]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A published architecture with all its blocks, narrow."""

    name: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, torch.device, int], Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """What one system does: seconds a step, and device bytes at most, both at full width."""

    system: str
    seconds: float
    peak: int


SHAPES = (
    Shape(
        "Flux.1-dev",
        lambda: flux(num_layers=19, num_single_layers=38, num_attention_heads=6, attention_head_dim=16),
        flux_forward,
    ),
    Shape(
        "Qwen-Image",
        lambda: qwen_image(num_layers=60, num_attention_heads=6, attention_head_dim=16),
        qwen_image_forward,
    ),
    Shape(
        "Wan 14B",
        lambda: wan(num_layers=40, num_attention_heads=10, attention_head_dim=16, ffn_dim=432),
        wan_forward,
    ),
)


def stock(level: str) -> Enable:
    settings: dict[str, Any] = {"offload_type": level, "use_stream": True}
    if level == "block_level":
        settings["num_blocks_per_group"] = 1
    return lambda model: apply_group_offloading(model, torch.device("sim"), **settings)


def systems(weights: int) -> Iterator[tuple[str, Enable]]:
    """Each system with a name for its curve, ours once for each budget."""
    yield "all on the device", lambda model: model.to("sim")
    yield "stock, blocks", stock("block_level")
    yield "stock, leaves", stock("leaf_level")
    yield "accelerate, sequential", lambda model: accelerate.cpu_offload(model, torch.device("sim", 0))
    for part in PARTS:
        budget = math.ceil(part * 1.005 * weights * 64 / 63)  # alignment, and what a budget sets apart
        yield (
            f"ours, {part:.0%}",
            lambda model, budget=budget: dop.enable_group_offload(model, "sim", vram_budget=budget),
        )


def build(shape: Shape, kind: str) -> nn.Module:
    model = shape.build().to(torch.bfloat16).eval()
    return int8_weight_only(model) if kind == "int8" else model


def device_module() -> Any:
    """What torch says of the simulated accelerator."""
    return torch.get_device_module("sim")


def inputs(shape: Shape, model: nn.Module) -> dict[str, Any]:
    """What the model is called with, drawn beforehand: drawing looks at weights, which brings them to the host."""
    found: dict[str, Any] = {}

    def forward(**given: Any) -> tuple[torch.Tensor]:
        found.update(given)
        return (torch.zeros(1),)

    model.forward = forward
    shape.run(model, torch.device("sim", 0), 0)
    del model.forward
    return found


def measured(shape: Shape, kind: str, system: str, enable: Enable) -> Point:
    model = build(shape, kind)
    given = inputs(shape, model)
    gc.collect()
    before = device_module().memory_allocated()
    device_module().reset_peak_memory_stats()
    enable(model)
    begin, end = (torch.Event("sim", enable_timing=True) for _ in range(2))
    with torch.no_grad():
        for _ in range(WARM):
            model(**given)
        begin.record()
        for _ in range(STEPS):
            model(**given)
        end.record()
    end.synchronize()
    peak = device_module().max_memory_allocated() - before
    dop.disable_group_offload(model, missing_ok=True)  # caches of some models hold parts of them for good
    return Point(system, begin.elapsed_time(end) / 1e3 / STEPS, peak * SCALE**2)


def weight_bytes(model: nn.Module) -> int:
    from diffusers_offload_plus.offload.model.tensors import plain_tensors

    return sum(t.nbytes for parameter in model.parameters() for _, t in plain_tensors(parameter))


def compared(shape: Shape, kind: str) -> tuple[int, list[Point], dict[str, str]]:
    """Bytes of the weights at full width, what runs, and why the rest does not."""
    weights = weight_bytes(build(shape, kind))
    simulated.set_compute(launch=1.0)
    kernels = measured(shape, kind, "", lambda model: model.to("sim")).seconds
    travelling = weight_bytes(build(shape, "bf16")) * SCALE**2 / BANDWIDTH
    simulated.set_compute(launch=COMPUTE * travelling / kernels)
    points, failed = [], {}
    for system, enable in systems(weights):
        try:
            points.append(measured(shape, kind, system, enable))
        except Exception as error:  # what stock and others do to a model is theirs
            if system.startswith("ours"):
                raise
            failed[system] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        gc.collect()
    return weights * SCALE**2, points, failed


def rows(shape: Shape, kind: str, weights: int, points: list[Point], failed: dict[str, str]) -> list[str]:
    whole = points[0]
    best = min((p for p in points if p.system.startswith("stock")), key=lambda p: p.seconds, default=None)
    lines = []
    for point in points:
        ours = point.system.startswith("ours")
        held = weights * float(point.system.split()[-1].rstrip("%")) / 100 if ours else 0
        least = max(whole.seconds, (weights - held) / BANDWIDTH)
        lines.append(
            f"| {shape.name} | {kind} | {point.system} | {point.peak / 1e9:.1f} | {point.seconds:.3f} "
            f"| {f'{point.seconds / least:.2f}' if ours else ''} "
            f"| {f'{best.seconds / point.seconds:.2f}' if ours and best else ''} |"
        )
    lines += [f"| {shape.name} | {kind} | {system} | | {reason} | | |" for system, reason in failed.items()]
    return lines


def plot(found: dict[tuple[str, str], list[Point]], file: Path) -> None:
    """Seconds a step over peak memory, a picture for each model and kind of weights, a curve for ours."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "budgets"
    from matplotlib import pyplot

    kinds, names = sorted({k for _, k in found}), [shape.name for shape in SHAPES]
    figure, axes = pyplot.subplots(len(kinds), len(names), figsize=(13, 7.5), squeeze=False)
    for (name, kind), points in found.items():
        axis = axes[kinds.index(kind)][names.index(name)]
        mine = [p for p in points if p.system.startswith("ours")]
        axis.plot([p.peak / 1e9 for p in mine], [p.seconds for p in mine], "o-", label="ours")
        for point in points:
            if point not in mine:
                axis.plot(point.peak / 1e9, point.seconds, "s", label=point.system)
        axis.set_title(f"{name}, {kind}")
        axis.set_xlabel("peak device memory, GB")
        axis.set_ylabel("simulated seconds a step")
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(file, metadata={"Date": None})


def page(found: list[str]) -> str:
    head = "| model | weights | system | peak, GB | s a step | over the bound | best stock / ours |"
    about = f"""
        `python -m benchmarks.budgets --output docs/benchmarks`, {datetime.date.today()}, torch {version("torch")},
        diffusers {version("diffusers")}, accelerate {version("accelerate")}, torchao {version("torchao")}. **These are
        simulated times, not measurements:** the virtual time of the simulated accelerator of the tests, see
        [simulated_step.md](simulated_step.md). On a CUDA device: not measured. mmgp and RamTorch run on CUDA alone,
        and are not measured either."""
    setting = f"""
        Published architectures with all their blocks, widths divided by {SCALE}; memory and seconds are given for full
        width. Copies take {LATENCY * 1e6:.0f} µs and their bytes at {BANDWIDTH / 1e9:.0f} GB/s; the
        kernels of a step take {COMPUTE:g} of the time that its weights in bf16 take to travel, each as long as the
        others. Budgets are parts of the weights. The bound is the
        larger of the step with all weights on the device and of copying what the budget does not hold. Peak is all
        that is on the device, activations included. Medians make no sense here: virtual time repeats exactly."""
    return "\n\n".join(
        [
            "# Steps over device memory: ours at several budgets, and others",
            *(textwrap.fill(" ".join(text.split()), 119) for text in (about, setting)),
            "![Simulated seconds a step over peak device memory](budgets.svg)",
            "\n".join([head, "|---|---|---|---|---|---|---|", *found]),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.budgets", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="write budgets.md and budgets.svg there")
    options = parser.parse_args(argv)
    simulated.register()
    lines: list[str] = []
    found: dict[tuple[str, str], list[Point]] = {}
    with simulated.timing():
        simulated.set_link(bandwidth=BANDWIDTH / SCALE**2, latency=LATENCY)
        for kind in ("bf16", "int8"):
            for shape in SHAPES:
                weights, points, failed = compared(shape, kind)
                found[shape.name, kind] = points
                lines += rows(shape, kind, weights, points, failed)
                print("\n".join(lines[-len(points) - len(failed) :]), flush=True)
                if options.output is not None:
                    (options.output / "budgets.md").write_text(page(lines) + "\n")
                    plot(found, options.output / "budgets.svg")


if __name__ == "__main__":
    main()
