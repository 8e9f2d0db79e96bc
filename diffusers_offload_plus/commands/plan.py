"""``offload-plus plan``: what budgets cache and stream of a checkpoint, from its configs and file headers alone."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidPolicyError
from ..offload.formatting import format_bytes, parse_bytes

if TYPE_CHECKING:
    from ..offload.api.blueprint import Blueprint
    from ..offload.api.preview import PipelinePlan

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "what is cached on the device, what streams and what a pass takes, for several budgets of device memory"

EVERYTHING = 1 << 60  # bytes; more than any model has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Plans group offloading for a local checkpoint. Models are built without weights, so this takes neither the "
        "device nor the memory. Times are of transfers alone. "
        "Exit code: 0; 1 if no budget works, or --ram is too little; 2 on wrong arguments."
    )
    parser.add_argument(
        "directory",
        type=Path,
        metavar="MODEL_DIR",
        help="a pipeline (with model_index.json), or a single model (with config.json)",
    )
    parser.add_argument(
        "--vram", required=True, type=_sizes, metavar="SIZE,...", help="budgets, for example 8GiB,12GiB,24GiB"
    )
    parser.add_argument("--ram", type=_size, metavar="SIZE", help="host memory that the weights may take")
    parser.add_argument(
        "--bandwidth", metavar="SIZE", help="bytes a second from host to device, such as 25GB, or 'auto' to measure it"
    )
    parser.add_argument(
        "--exclude",
        type=_names,
        metavar="NAME,...",
        help="components to leave out: they are on the device whole",
    )
    parser.add_argument("--onload-device", default="cuda", metavar="DEVICE", help="where to compute (default: cuda)")


def run(arguments: argparse.Namespace) -> int:
    """Print the plans."""
    # Messages about optional libraries that are not installed would hide the figures.
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    logging.getLogger("torchao").setLevel(logging.ERROR)

    from ..offload.api.blueprint import read_blueprint

    blueprint = read_blueprint(arguments.directory)
    whole = _plan(blueprint, EVERYTHING, arguments)
    for line in _weights(blueprint, whole):
        print(line)
    fits = arguments.ram is None or whole.host_bytes <= arguments.ram
    if not fits:
        print(
            f"--ram {format_bytes(arguments.ram)} is too little: the weights take {whole.host_bytes} bytes "
            f"({format_bytes(whole.host_bytes)}) of host memory, unless `offload_to_disk_path` is given"
        )
    print()
    plans, refused = _plans(blueprint, arguments)
    for line in _lines(plans):
        print(line)
    for budget, reason in refused:
        print(f"--vram {format_bytes(budget)} does not work: {reason}")
    return 0 if plans and fits else 1


def _plan(blueprint: Blueprint, budget: int, arguments: argparse.Namespace) -> PipelinePlan:
    from ..offload.api.preview import plan_group_offload

    return plan_group_offload(
        blueprint,
        onload_device=arguments.onload_device,
        vram_budget=budget,
        bandwidth=arguments.bandwidth,
        exclude_modules=arguments.exclude,
    )


def _plans(blueprint: Blueprint, arguments: argparse.Namespace) -> tuple[list[PipelinePlan], list[tuple[int, str]]]:
    """The plans for budgets that work, and the other budgets with the reason."""
    plans, refused = [], []
    for budget in arguments.vram:
        try:
            plans.append(_plan(blueprint, budget, arguments))
        except InvalidPolicyError as error:
            refused.append((budget, str(error)))
    return plans, refused


def _weights(blueprint: Blueprint, whole: PipelinePlan) -> list[str]:
    from ..offload.formatting import table

    rows = [("component", "model", "weights")]
    rows += [(c.name, c.model, format_bytes(c.total_bytes)) for c in whole.components]
    lines = table(rows, text_columns=2)
    if blueprint.assumed:
        lines.append(f"no safetensors files, dtype by config: {', '.join(blueprint.assumed)}")
    return lines


def _lines(plans: list[PipelinePlan]) -> list[str]:
    from ..offload.formatting import table

    if not plans:
        return []
    rows = [
        ("budget", "component", "level", "cached", "streamed a pass", "fixed", "groups cached", "ahead", "s a pass")
    ]
    for plan in plans:
        for c in plan.components:
            sizes = (c.cached_bytes, c.streamed_bytes, c.fixed_bytes)
            rows.append(
                (
                    *(format_bytes(plan.vram_budget), c.name, c.cut.removesuffix("_level")),
                    *map(format_bytes, sizes),
                    *(f"{len(c.cached)} of {c.groups}", str(c.depth), f"{c.seconds:.4f}"),
                )  # type: ignore[arg-type]
            )
    first = plans[0]
    note = (
        f"at {first.bandwidth / 1e9:.1f} GB/s ({first.source}), transfers only; budgets are shared by all components"
    )
    return [*table(rows, text_columns=3), note]


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_size(part) for part in text.split(","))


def _names(text: str) -> list[str]:
    return text.split(",")


def _size(text: str) -> int:
    try:
        return parse_bytes("size", text)
    except InvalidPolicyError:
        raise argparse.ArgumentTypeError(f"expected a size such as 12GiB, got {text!r}") from None
