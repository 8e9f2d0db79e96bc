"""``offload-plus plan``: what budgets cache and stream of a checkpoint, from its configs and file headers alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidPolicyError
from ..offload.formatting import format_bytes, table
from . import quiet_libraries
from .arguments import add_options, comma_separated, size, words

if TYPE_CHECKING:
    from ..offload.api.preview import PipelinePlan

__all__ = ["add_arguments", "run"]

EVERYTHING = 1 << 60  # bytes; room for any model
HEAD = ("budget", "component", "level", "cached", "streamed a pass", "fixed", "groups cached", "ahead", "s a pass")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Plans group offloading for a local checkpoint. Models are built without weights, so this takes neither the "
        "device nor the memory. Times are of transfers alone. "
        "Exit code: 0; 1 if no budget works, or --ram is too little; 2 on wrong arguments."
    )
    budgets = {"required": True, "type": comma_separated(size), "metavar": "SIZE,..."}
    add_options(
        parser,
        (
            (
                "directory",
                {"type": Path, "metavar": "MODEL_DIR"},
                "a pipeline (with model_index.json), or a single model (with config.json)",
            ),
            ("--vram", budgets, "budgets, for example 8GiB,12GiB,24GiB"),
            ("--ram", {"type": size, "metavar": "SIZE"}, "host memory that the weights may rest in"),
            (
                "--bandwidth",
                {"metavar": "SIZE"},
                "bytes a second from host to device, such as 25GB, or 'auto' to measure it",
            ),
            (
                "--exclude",
                {"type": words, "metavar": "NAME,..."},
                "components to leave out: they are on the device whole",
            ),
            ("--onload-device", {"default": "cuda", "metavar": "DEVICE"}, "where to compute (default: cuda)"),
        ),
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plans."""
    quiet_libraries()

    from ..offload.api.blueprint import read_blueprint
    from ..offload.api.preview import plan_group_offload

    blueprint = read_blueprint(arguments.directory)

    def planned(budget: int) -> PipelinePlan:
        return plan_group_offload(
            blueprint,
            onload_device=arguments.onload_device,
            vram_budget=budget,
            bandwidth=arguments.bandwidth,
            exclude_modules=arguments.exclude,
        )

    whole = planned(EVERYTHING)
    weights = [(c.name, c.model, format_bytes(c.total_bytes)) for c in whole.components]
    print(*table([("component", "model", "weights"), *weights], text_columns=2), sep="\n")
    if blueprint.assumed:
        print(f"no safetensors files, dtype by config: {', '.join(blueprint.assumed)}")
    fits = arguments.ram is None or whole.host_bytes <= arguments.ram
    if not fits:
        print(
            f"--ram {format_bytes(arguments.ram)} is too little: the weights take {whole.host_bytes} bytes "
            f"({format_bytes(whole.host_bytes)}) of host memory, unless `offload_to_disk_path` is given"
        )
    print()
    plans, refused = [], []
    for budget in arguments.vram:
        try:
            plans.append(planned(budget))
        except InvalidPolicyError as error:
            refused.append(f"--vram {format_bytes(budget)} does not work: {error}")
    if plans:
        speed = f"{plans[0].bandwidth / 1e9:.1f} GB/s ({plans[0].source})"
        print(*table([HEAD, *(row for plan in plans for row in _rows(plan))], text_columns=3), sep="\n")
        print(f"at {speed}, transfers only; budgets are shared by all components")
    for reason in refused:
        print(reason)
    return 0 if plans and fits else 1


def _rows(plan: PipelinePlan) -> Iterator[tuple[str, ...]]:
    for c in plan.components:
        yield (
            format_bytes(plan.vram_budget),
            c.name,
            c.cut.removesuffix("_level"),
            format_bytes(c.cached_bytes),
            format_bytes(c.streamed_bytes),
            format_bytes(c.fixed_bytes),
            f"{len(c.cached)} of {c.groups}",
            str(c.depth),
            f"{c.seconds:.4f}",
        )
