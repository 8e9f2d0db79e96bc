"""``offload-plus demo``: one pipeline un-offloaded, with stock offloading and with ours, side by side."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from . import CommandError
from .plugins import add_import_argument, import_plugins

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "run one pipeline un-offloaded, with stock and with our offloading, and compare"

DTYPES = ("bf16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the demonstration."""
    parser.description = (
        "Runs one pipeline un-offloaded, with the group offloading of diffusers and with that of this package, from "
        "the same seed; compares the images bit for bit, and reports time, memory and bytes moved. Then shows two "
        "faults of the stock disk offloading. The pipeline is a Flux at reduced width with random weights, built in "
        "code; nothing is downloaded. Exit code: 0 if our images are those of the un-offloaded pipeline, 1 if not, 2 "
        "on wrong arguments."
    )
    parser.add_argument(
        "--device",
        help="torch device that computes, such as cuda, cuda:1 or cpu (default: the accelerator if there is one)",
    )
    add_import_argument(parser)
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="use the diffusers checkpoint in this local directory instead"
    )
    parser.add_argument(
        "--steps",
        type=_at_least_two,
        metavar="N",
        help="denoising steps that are measured (default: 5; 3 with --small)",
    )
    parser.add_argument(
        "--height",
        type=_positive,
        metavar="PIXELS",
        help="of the image (default: 128; 32 with --small; with --model its own)",
    )
    parser.add_argument("--width", type=_positive, metavar="PIXELS", help="of the image (default: as --height)")
    parser.add_argument("--prompt", default="a lighthouse in a storm", metavar="TEXT")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the weights and of the noise (default: 0)"
    )
    parser.add_argument(
        "--dtypes",
        type=_dtypes,
        default=DTYPES,
        metavar="LIST",
        help="bf16, int8 (TorchAO, weights only) or both, separated by commas (default: bf16,int8)",
    )
    parser.add_argument("--small", action="store_true", help="a pipeline of a few MB: for a quick look")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("offload-plus-demo"),
        metavar="DIR",
        help="where files go (default: ./offload-plus-demo)",
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
    _set_environment_defaults()
    import_plugins(arguments.imports)

    from ..demo.options import DemoOptions
    from ..demo.run import run_demo

    options = DemoOptions.from_arguments(
        device=arguments.device,
        model=arguments.model,
        small=arguments.small,
        steps=arguments.steps,
        height=arguments.height,
        width=arguments.width,
        prompt=arguments.prompt,
        seed=arguments.seed,
        dtypes=arguments.dtypes,
        output=arguments.output,
    )
    return run_demo(options)


def _set_environment_defaults() -> None:
    """Set environment variables that libraries read at import, unless the user has set them."""
    # Threads that spin at a barrier slow down the threads they wait for: on a busy machine by a factor of 20.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Messages about optional libraries that are not installed would hide the figures.
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _positive(text: str) -> int:
    return _integer(text, least=1)


def _at_least_two(text: str) -> int:
    # The time of a step is taken between the ends of two steps.
    return _integer(text, least=2)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return value


def _dtypes(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected {' or '.join(DTYPES)}, or both separated by a comma, got {text!r}")
    return names
