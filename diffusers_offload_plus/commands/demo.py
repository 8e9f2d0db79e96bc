"""``offload-plus demo``: one pipeline un-offloaded, with stock offloading and with ours, side by side."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path

from . import CommandError, quiet_libraries
from .arguments import DIRECTORY, FLAG, add_options, comma_separated, expecting, whole_number

__all__ = ["add_arguments", "import_plugins", "run"]

DTYPES = ("bf16", "int8")
PIXELS = {"type": whole_number(1), "metavar": "PIXELS"}
PLUGIN = {"dest": "imports", "metavar": "MODULE[:FUNCTION]", "action": "append", "default": []}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the demonstration."""
    parser.description = (
        "Runs one pipeline un-offloaded, with the group offloading of diffusers and with that of this package, from "
        "the same seed; compares the images bit for bit, and reports time, memory and bytes moved. Then shows two "
        "faults of the stock disk offloading. The pipeline is a Flux at reduced width with random weights, built in "
        "code; nothing is downloaded. Exit code: 0 if our images are those of the un-offloaded pipeline, 1 if not, 2 "
        "on wrong arguments."
    )
    steps = {"type": whole_number(2), "metavar": "N"}  # the time of a step is taken between the ends of two steps
    dtypes = expecting(
        f"{' or '.join(DTYPES)}, or both separated by a comma",
        comma_separated(lambda name: DTYPES[DTYPES.index(name)]),
    )
    add_options(
        parser,
        (
            (
                "--device",
                {},
                "torch device that computes, such as cuda, cuda:1 or cpu (default: the accelerator if there is one)",
            ),
            (
                "--import",
                PLUGIN,
                "import MODULE first, and call its FUNCTION without arguments if one is named: for devices that are "
                "registered by a package of their own, such as torch_npu. Modules in the current directory are found "
                "too. May be repeated",
            ),
            ("--model", DIRECTORY, "use the diffusers checkpoint in this local directory instead"),
            ("--steps", steps, "denoising steps that are measured (default: 5; 3 with --small)"),
            ("--height", PIXELS, "of the image (default: 128; 32 with --small; with --model its own)"),
            ("--width", PIXELS, "of the image (default: as --height)"),
            ("--prompt", {"default": "a lighthouse in a storm", "metavar": "TEXT"}, "what the image is to show"),
            ("--seed", {"type": int, "default": 0, "metavar": "N"}, "of the weights and of the noise (default: 0)"),
            (
                "--dtypes",
                {"type": dtypes, "default": DTYPES, "metavar": "LIST"},
                "bf16, int8 (TorchAO, weights only) or both, separated by commas (default: bf16,int8)",
            ),
            ("--small", FLAG, "a pipeline of a few MB: for a quick look"),
            (
                "--output",
                {**DIRECTORY, "default": Path("offload-plus-demo")},
                "where files go (default: ./offload-plus-demo)",
            ),
        ),
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    if arguments.model is not None and arguments.small:
        raise CommandError("--small is about the pipeline that is built in code; it cannot be combined with --model.")
    if arguments.model is not None and not (arguments.model / "model_index.json").is_file():
        raise CommandError(
            f"--model {arguments.model}: no model_index.json in this directory. Name one that "
            "`DiffusionPipeline.save_pretrained` has written, or a snapshot of a checkpoint on the Hub."
        )
    needed = ["matplotlib", "rich", "transformers", *(["torchao"] if "int8" in arguments.dtypes else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"The demonstration needs {', '.join(missing)}: pip install {' '.join(missing)}")
    # Threads that spin at a barrier take time from those they wait for: a busy machine got 20 times slower by that.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_libraries()
    import_plugins(arguments.imports)

    from ..demo.options import DemoOptions
    from ..demo.run import run_demo

    return run_demo(DemoOptions.of(arguments))


def import_plugins(specifications: list[str]) -> None:
    """Import each ``MODULE[:FUNCTION]``, and call the function: it registers a torch device.

    Raises:
        CommandError: that does not work.
    """
    if specifications and os.getcwd() not in sys.path and "" not in sys.path:
        # Last, as with `python -m`, but behind what is installed: a local file must not stand in for a library.
        sys.path.append(os.getcwd())
    for specification in specifications:
        try:
            found = pkgutil.resolve_name(specification)
            if ":" in specification:
                found()
        except Exception as error:
            raise CommandError(
                f"--import {specification}: {type(error).__name__}: {error}. The module has to be installed or to lie "
                "below the current directory, and a function to be one of its own that takes no arguments."
            ) from error
