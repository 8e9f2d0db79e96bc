"""Simulated seconds of a step at several budgets: ours, stock group offloading, and the bound, in virtual time.

python -m benchmarks.simulated_step [--output FILE]
"""

from __future__ import annotations

import argparse
import datetime
import gc
import math
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

import diffusers_offload_plus as dop
from tests import simulated

BLOCKS = 24
LAYERS = 4  # to a block
WIDTH = 64
BANDWIDTH = 16e6  # bytes a second: a block takes 4 ms
LATENCY = 10e-6  # seconds a copy
PARTS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RATIOS = (0.25, 1.0, 2.0)  # of the time a block computes to the time it travels
WARM, STEPS = 4, 8


class Block(nn.Module):
    """Layers whose kernels take as long as their weights are large."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    """A stack of blocks, cut as transformers of diffusers are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def seconds(enable: Callable[[nn.Module], object]) -> float:
    """Virtual seconds of a steady step."""
    torch.manual_seed(0)
    model = Model().eval()
    enable(model)
    begin, end = (torch.Event("sim", enable_timing=True) for _ in range(2))
    with torch.no_grad():
        x = torch.zeros(1, WIDTH, device="sim")
        for _ in range(WARM):
            model(x)
        begin.record()
        for _ in range(STEPS):
            model(x)
        end.record()
    end.synchronize()
    took = begin.elapsed_time(end) / 1e3 / STEPS
    del model
    gc.collect()
    return took


def ours(budget: int) -> Callable[[nn.Module], None]:
    return lambda model: dop.enable_group_offload(model, "sim", vram_budget=budget)


def stock(level: str) -> Callable[[nn.Module], None]:
    settings = {"offload_type": level, "use_stream": True}
    if level == "block_level":
        settings["num_blocks_per_group"] = 1
    return lambda model: apply_group_offloading(model, torch.device("sim"), **settings)


def unbudgeted(model: nn.Module) -> None:
    dop.enable_group_offload(model, "sim", use_stream=True)


def bound(budget: int, computing: float) -> float:
    """No schedule is below all computing, nor below all copying of what is not cached."""
    model = Model()
    dop.enable_group_offload(model, "sim", vram_budget=budget)
    report = dop.offload_report(model).components[0]
    streamed = report.streamed_bytes / BANDWIDTH + report.groups * LATENCY
    dop.disable_group_offload(model)
    return max(computing, streamed)


def rows() -> list[list[str]]:
    weights = sum(p.nbytes for p in Model().parameters())
    travelling = weights / BLOCKS / BANDWIDTH
    found = []
    for ratio in RATIOS:
        simulated.set_link(bandwidth=BANDWIDTH, latency=LATENCY)
        simulated.set_compute(launch=ratio * travelling / LAYERS)
        whole = seconds(lambda model: model.to("sim"))
        stocks = [seconds(stock(level)) for level in ("block_level", "leaf_level")]
        without = seconds(unbudgeted)
        for part in PARTS:
            budget = math.ceil(part * weights * 64 / 63)
            mine, least = seconds(ours(budget)), bound(budget, whole)
            times = [whole, *stocks, without, mine, least]
            found.append(
                [
                    f"{ratio:g}",
                    f"{part:.0%}",
                    *(f"{t * 1e3:.2f}" for t in times),
                    f"{mine / least:.3f}",
                    f"{min(stocks) / mine:.2f}",
                ]
            )
    return found


def page() -> str:
    """The table and what it holds, as Markdown."""
    head = (
        *("compute / copy", "budget", "all on the device, ms", "stock, blocks, ms", "stock, leaves, ms"),
        *("ours, no budget, ms", "ours, ms", "bound, ms", "ours / bound", "faster stock / ours"),
    )
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows()]
    travelling = LAYERS * WIDTH**2 * 4 / BANDWIDTH
    about = f"""
        `python -m benchmarks.simulated_step --output docs/benchmarks/simulated_step.md`, {datetime.date.today()},
        torch {version("torch")}, diffusers {version("diffusers")}. **These are simulated times, not measurements.**
        They are the virtual time of the simulated accelerator of the tests, in which kernels and copies take what is
        set here, the host takes no time but where it waits for the device, memory is always at hand, and copies and
        kernels do not slow one another down. They compare schedules, on any machine alike, and say nothing about the
        speed of a real device."""
    setting = f"""
        A model of {BLOCKS} blocks of {LAYERS} layers. A block travels in {travelling * 1e3:.2f} ms, each copy
        {LATENCY * 1e6:.0f} µs more; it computes in that time x the first column. The budget is given as a part of the
        weights, plus the 1/64 that a budget sets apart. Stock group offloading, and ours without a budget
        (`use_stream=True`, blocks), cache nothing and copy one group ahead from pinned memory. The bound is the larger
        of all computing and all copying of what our plan streams at that budget. A step is the mean of {STEPS} after
        {WARM}."""
    because = """
        Between two steps: ours without a budget starts the first copy of a step when all computing before is over, and
        waits for it in full. Stock starts it while the step before still computes, into new memory, which
        costs nothing here. With a budget ours does so into memory that is free, but waits for what is under way when a
        step ends, because weights on the device may then be written by anybody."""
    return "\n\n".join(
        [
            "# Simulated steps: ours, stock, and the bound",
            *(textwrap.fill(" ".join(text.split()), 119) for text in (about, setting)),
            "\n".join(lines),
            textwrap.fill(" ".join(because.split()), 119),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.simulated_step", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the page there as well")
    options = parser.parse_args(argv)
    simulated.register()
    with simulated.timing():
        text = page()
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
