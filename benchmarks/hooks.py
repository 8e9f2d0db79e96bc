"""What offloading costs the calling thread: hooks on the CPU, where nothing moves, and whole passes on the simulated
accelerator, beside stock's.

python -m benchmarks.hooks [--repeats 41]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import functools
import gc
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from tests.simulated import register
from tests.zoo.quantized import QUANTISERS

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks" / "hooks.md"
DOUBLE, SINGLE, WIDTH = 20, 40, 16
SHARE = {"fp32": 0.5, "int8": 0.25}  # of the bytes in fp32: the budget
TARGET, TARGET_BUDGET = 0.6, 0.7  # of what stock adds to the un-offloaded pass


def build(double: int = DOUBLE, single: int = SINGLE, width: int = WIDTH) -> nn.Module:
    """Blocks so small that what surrounds them is what takes time."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=double, num_single_layers=single, attention_head_dim=width,
        num_attention_heads=1, joint_attention_dim=width, pooled_projection_dim=width,
        axes_dims_rope=(width // 4, width // 4, width // 2),
    )  # fmt: skip
    return model.eval()


def inputs(width: int = WIDTH) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 4), "encoder_hidden_states": torch.randn(1, 4, width),
        "pooled_projections": torch.randn(1, width), "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(4, 3), "return_dict": False,
    }  # fmt: skip


# Whole passes


def narrow(weights: str) -> nn.Module:
    """30 blocks, in fp32 or with TorchAO int8 weights."""
    model = build(10, 20, 32)
    return model if weights == "fp32" else QUANTISERS["int8_weight_only"](model)


def pass_variants(weights: str, level: str, stream: bool, device: torch.device) -> dict[str, nn.Module]:
    found = {"un-offloaded": narrow(weights).to(device), "stock": narrow(weights), "ours": narrow(weights)}
    blocks = 1 if level == "block_level" else None
    apply_group_offloading(
        found["stock"], device, torch.device("cpu"), offload_type=level, num_blocks_per_group=blocks, use_stream=stream
    )
    dop.enable_group_offload(found["ours"], device, offload_type=level, use_stream=stream)
    if stream:
        found["budget"] = narrow(weights)
        budget = int(SHARE[weights] * sum(p.nbytes for p in build(10, 20, 32).parameters()))
        dop.enable_group_offload(found["budget"], device, offload_type=level, vram_budget=budget)
    return found


@torch.no_grad()
def measure_passes(
    weights: str, level: str, stream: bool, device: torch.device, repeats: int = 20
) -> dict[str, float]:
    """Median seconds of the calling thread a pass, interleaved."""
    models = pass_variants(weights, level, stream, device)
    given = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in inputs(32).items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with collections_put_off():
        for number in range(repeats + 4):
            for name, model in models.items():
                took = seconds(functools.partial(model, **given))
                if number >= 4:
                    times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def pass_table(device: torch.device) -> str:
    lines = [
        "| weights | level | streams | un-offloaded | stock | ours | ours adds / stock adds | with a budget |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for weights in SHARE:
        for level in ("leaf_level", "block_level"):
            for stream in (False, True):
                row = measure_passes(weights, level, stream, device)
                base, stock = row["un-offloaded"], row["stock"] - row["un-offloaded"]
                cells = [judged((row["ours"] - base) / stock, TARGET)]
                cells.append(judged((row["budget"] - base) / stock, TARGET_BUDGET) if stream else "")
                ms = [f"{row[name] * 1e3:.1f} ms" for name in ("un-offloaded", "stock", "ours")]
                lines.append(f"| {weights} | {level} | {'yes' if stream else 'no'} | {' | '.join([*ms, *cells])} |")
    return "\n".join(lines)


def judged(ratio: float, target: float) -> str:
    return f"{ratio:.2f}" if ratio <= target else f"{ratio:.2f}, not met"


# Hooks alone


class Nothing(ModelHook):
    """A hook that does nothing."""


def hooked_modules(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if "_diffusers_hook" in m.__dict__ and m.__dict__["_diffusers_hook"].hooks]


def with_nothing(like: nn.Module) -> nn.Module:
    """A model with a no-op hook wherever ``like`` has a hook of ours."""
    model = build()
    names = {name for name, m in like.named_modules() if any(m is hooked for hooked in hooked_modules(like))}
    for name, module in model.named_modules():
        if name in names:
            HookRegistry.check_if_exists_or_initialize(module).register_hook(Nothing(), "nothing")
    return model


def seconds(call: Callable[[], Any]) -> float:
    """Of this thread alone, so that a busy machine counts as little as can be."""
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


@contextlib.contextmanager
def collections_put_off() -> Iterator[None]:
    """A collection of garbage takes as long as a pass, and falls on whoever runs when it is due."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def build_variants(level: str) -> list[tuple[str, nn.Module]]:
    """Each variant twice, in an order and back: where in memory a model happens to lie is worth several µs a call."""
    ours = offloaded(level)
    makers: dict[str, Callable[[], nn.Module]] = {
        "un-hooked": build,
        "no-op hook": functools.partial(with_nothing, ours),
        "stock": functools.partial(with_stock, level),
        "ours": functools.partial(offloaded, level),
    }
    return [(name, makers[name]()) for name in (*makers, *reversed(makers))]


def offloaded(level: str) -> nn.Module:
    model = build()
    dop.enable_group_offload(model, "cpu", offload_type=level)
    return model


def with_stock(level: str) -> nn.Module:
    model = build()
    cpu = torch.device("cpu")
    blocks = 1 if level == "block_level" else None
    apply_group_offloading(model, cpu, cpu, offload_type=level, num_blocks_per_group=blocks)
    return model


@torch.no_grad()
def measure(level: str, repeats: int) -> dict[str, Any]:
    models = build_variants(level)
    given = inputs()
    calls = [(name, functools.partial(model, **given)) for name, model in models]
    times: dict[str, list[float]] = {name: [] for name, _ in models}
    with collections_put_off():
        for number in range(repeats + 3):
            first = number % len(calls)
            took: dict[str, float] = collections.defaultdict(float)
            for name, call in (*calls[first:], *calls[:first]):
                took[name] += seconds(call) / 2
            if number >= 3:
                for name, value in took.items():
                    times[name].append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    over = statistics.median(a - b for a, b in zip(times["ours"], times["no-op hook"], strict=True))
    hooked = len(hooked_modules(dict(models)["ours"]))
    return {"level": level, "hooked": hooked, "over": over, **medians}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| level | hooked modules | un-hooked | no-op hook | stock | ours "
        "| ours over no-op, a call | ours / un-hooked | stock / un-hooked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        over = row["over"] / row["hooked"] * 1e6
        base = row["un-hooked"]
        ms = [f"{row[name] * 1e3:.1f} ms" for name in ("un-hooked", "no-op hook", "stock", "ours")]
        lines.append(
            f"| {row['level']} | {row['hooked']} | {' | '.join(ms)} | {over:.1f} µs "
            f"| {row['ours'] / base:.2f} | {row['stock'] / base:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    text = table([measure(level, arguments.repeats) for level in ("block_level", "leaf_level")])
    register()
    passes = pass_table(torch.device("sim", 0))
    print(f"{text}\n\n{passes}")
    if arguments.write:
        PAGE.write_text(
            "# What offloading costs the calling thread\n\n"
            f"`python -m benchmarks.hooks --write`, {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} "
            f"cores, torch {torch.__version__}, diffusers {diffusers.__version__}. Processor time of\nthe one thread; "
            "medians of interleaved passes.\n\n"
            "## Whole passes\n\n"
            "A Flux of 30 tiny blocks on the simulated accelerator of the tests. What counts is what offloading adds "
            "to the\nun-offloaded pass, as a part of what stock adds: the target is "
            f"{TARGET} without a budget, and {TARGET_BUDGET} with one\n(half of the bytes in fp32, a quarter for "
            "int8; beside stock with streams). The copies and allocations of the simulator\nare in both, and a large "
            "part of what is left at leaf level: there a pass has 348 groups.\n"
            "With a budget, blocks are cut into layers unless they are small beside it (docs/budgets.md): so the rows "
            "of\nblocks with a budget are rows of layers.\n\n"
            f"{passes}\n\n"
            "## Hooks alone\n\n"
            f"A Flux of {DOUBLE + SINGLE} tiny blocks on the CPU, where nothing moves. What ours takes over the no-op "
            "hook is the median of\nthe differences within a repetition; of each kind there are two models, made in "
            "an order and back. The target is at most\n30 µs a hooked call over a hook that does nothing.\n\n"
            f"{text}\n"
        )


if __name__ == "__main__":
    main()
