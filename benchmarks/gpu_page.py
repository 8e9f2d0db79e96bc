"""``make gpu``: all that a GPU can prove, in a few minutes, on one page.

python -m benchmarks.gpu_page [--device cuda] [--output gpu-output] [--minutes 8]

The engine's tests and the twin test on the device, some of them under torch's CUDA sanitizer, the demonstration, and
steps of a denoiser of published block sizes. Each part has its share of the time; one that needs more is stopped, and
the page says so. With ``--device sim`` it is rehearsed on the simulated accelerator.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PYTEST = ("-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-W", "ignore")


@dataclasses.dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        share: of the time for all parts.
        only_cuda: it shows nothing on another device.
    """

    name: str
    command: tuple[str, ...]
    share: float
    environment: tuple[tuple[str, str], ...] = ()
    only_cuda: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a part. ``code`` is None if it was stopped for want of time."""

    part: Part
    code: int | None
    seconds: float
    text: str

    @property
    def said(self) -> str:
        """What the page says of it."""
        return {None: "stopped: no time left", 0: "passed"}.get(self.code, f"failed with exit code {self.code}")


def parts(device: str, output: Path, workers: int) -> list[Part]:
    """All parts, the most telling first."""
    small = device != "cuda"
    spread = ("-n", str(workers)) if workers > 1 else ()
    demo = ("-m", "diffusers_offload_plus", "demo", "--output", str(output / "demo"))
    demo += () if not small else ("--device", "sim", "--import", "tests.simulated:register")
    steps = ("-m", "benchmarks.gpu", "--device", device, "--output", str(output))
    return [
        Part(
            "steps", (*steps, "--weights", "24MiB" if small else "8GiB", "--seconds", "40" if small else "110"), 0.27
        ),
        Part("engine", (*PYTEST, *spread, "tests/offload"), 0.35),
        Part("twin", (*PYTEST, "tests/twin", "-s"), 0.18, (("OFFLOAD_PLUS_SEQUENCES", "40"),)),
        Part(
            "sanitizer",
            (*PYTEST, "tests/offload/transfer", "tests/offload/groups", "-k", "streams or holders"),
            0.1,
            (("TORCH_CUDA_SANITIZER", "1"),),
            only_cuda=True,
        ),
        Part("demo", demo, 0.1),
    ]


def run(part: Part, seconds: float, folder: Path) -> Result:
    """Run one part for ``seconds`` at most, and keep what it prints in ``folder``."""
    begin = time.monotonic()
    environment = os.environ | dict(part.environment)
    file = folder / f"{part.name}.txt"
    code: int | None
    with file.open("w") as output:
        process = subprocess.Popen(
            (sys.executable, *part.command),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Result(part, code, time.monotonic() - begin, file.read_text(errors="replace"))


def page(results: list[Result], device: str, output: Path) -> str:
    """The page as Markdown."""
    module: Any = torch.get_device_module(device) if device == "cuda" else None
    name = module.get_device_name() if module is not None and module.is_available() else "simulated accelerator"
    versions = ", ".join(f"{package} {_version(package)}" for package in ("torch", "diffusers", "torchao"))
    lines = [
        f"# On a device: {name}", "",
        f"{datetime.date.today().isoformat()}, Python {platform.python_version()}, {versions}.", "",
        "| part | result | seconds | last line |", "|---|---|---|---|",
    ]  # fmt: skip
    for result in results:
        last = next((line.strip() for line in reversed(result.text.splitlines()) if line.strip()), "")
        lines.append(f"| {result.part.name} | {result.said} | {result.seconds:.0f} | {last[:100].replace('|', '/')} |")
    for result in results:
        failed = [line for line in result.text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if failed:
            lines += ["", f"## Failures of {result.part.name}", "", *(f"- `{line[:200]}`" for line in failed[:60])]
    steps = output / "steps.md"
    if steps.exists():
        lines += ["", "## Steps", "", steps.read_text().strip()]
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "sim"])
    parser.add_argument("--output", type=Path, default=Path("gpu-output"))
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--only", help="names of parts, separated by commas")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device sim rehearses on the simulated accelerator")
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = parts(options.device, options.output, min(6, os.cpu_count() or 1))
    if options.only:
        chosen = [part for part in chosen if part.name in options.only.split(",")]
    results: list[Result] = []
    deadline, whole = time.monotonic() + 60 * options.minutes, sum(part.share for part in chosen)
    for part in chosen:
        if part.only_cuda and options.device != "cuda":
            continue
        # A part that ended early leaves its time to the next ones.
        seconds = min(deadline - time.monotonic(), 1.5 * 60 * options.minutes * part.share / whole)
        results.append(run(part, max(1.0, seconds), options.output))
        text = page(results, options.device, options.output)
        (options.output / "page.md").write_text(text)  # whatever comes next, this is kept
    print(text)
    return 0 if all(result.code == 0 for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
