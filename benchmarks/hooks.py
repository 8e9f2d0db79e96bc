"""What a hook costs: a Flux of 60 tiny blocks on the CPU, where nothing moves, beside a no-op hook and stock's.

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

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks" / "hooks.md"
DOUBLE, SINGLE, WIDTH = 20, 40, 16


def build() -> nn.Module:
    """60 blocks so small that what surrounds them is what takes time."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=WIDTH,
        num_attention_heads=1, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return model.eval()


def inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 4), "encoder_hidden_states": torch.randn(1, 4, WIDTH),
        "pooled_projections": torch.randn(1, WIDTH), "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(4, 3), "return_dict": False,
    }  # fmt: skip


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
    print(text)
    if arguments.write:
        PAGE.write_text(
            "# What a hook costs\n\n"
            f"`python -m benchmarks.hooks --write`, {datetime.date.today()}: a Flux of {DOUBLE + SINGLE} tiny blocks "
            f"on the CPU, where nothing moves;\nmedians of {arguments.repeats} interleaved passes, CPU time of the "
            f"one thread, {platform.machine()}, {os.cpu_count()} cores. What ours takes over the no-op hook is the\n"
            "median of the differences within a repetition; of each kind there are two models, made in an order and "
            f"back.\ntorch {torch.__version__}, diffusers {diffusers.__version__}. The target is at most 30 µs a "
            "hooked call over a hook that does nothing.\n\n"
            f"{text}\n"
        )


if __name__ == "__main__":
    main()
