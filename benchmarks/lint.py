"""How long linting takes, whole process, start-up included: all modular pipelines of diffusers, a family, one file.

Nothing is kept between runs but the compiled modules of the package, which a run before the first one makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

from diffusers_offload_plus.lint.reading.location import installed_diffusers

ROOT = Path(__file__).parents[1]
LIMITS = {"all": 1.5, "wan": 0.3, "wan/encoders.py": 0.3}  # seconds on two cores with nothing else to do


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds of one process: on the clock, and of a processor in it and in the system on its behalf."""

    wall: float
    processor: float


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.lint", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the page there as well")
    options = parser.parse_args(argv)
    diffusers = installed_diffusers()
    if diffusers is None:
        parser.error("diffusers is not installed")
    text = page(diffusers / "modular_pipelines", options.repeat)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


def page(tree: Path, repeat: int) -> str:
    """The measurement as Markdown."""
    targets = {name: tree if name == "all" else tree / name for name in LIMITS}
    measure(targets["wan"])
    runs: dict[str, list[Run]] = {name: [] for name in targets}
    for _ in range(repeat):
        for name, path in targets.items():
            runs[name].append(measure(path))
    about = (
        f"`python -m benchmarks.lint --repeat {repeat} --output docs/benchmarks/linter.md`, {datetime.date.today()}, "
        f"{os.cpu_count()} CPU cores ({platform.machine()}), Linux {'.'.join(platform.release().split('.')[:2])}, "
        f"Python {platform.python_version()}, diffusers {version('diffusers')}. Medians of {repeat} whole processes, "
        "start-up included, with no results kept from earlier ones; the fastest in brackets. What else the machine "
        f"does lengthens both times; its load average at the end was {os.getloadavg()[0]:.1f}, of which 1 is the "
        "benchmark's."
    )
    header = [
        "| | files | lines | on the clock, s | of processor, s | limit when quiet, s |",
        "|---|---|---|---|---|---|",
    ]
    rows = [row(name, path, runs[name]) for name, path in targets.items()]
    return "\n".join(["# How long linting takes", "", textwrap.fill(about, 118), "", *header, *rows])


def measure(path: Path) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_offload_plus.lint", "--isolated", str(path)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):  # 1: there are findings
        raise RuntimeError(f"linting {path} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Run(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def row(name: str, path: Path, runs: list[Run]) -> str:
    files = [path] if path.is_file() else path.rglob("*.py")
    texts = [file.read_text(encoding="utf-8") for file in files]
    lines = sum(text.count("\n") for text in texts)
    title = (
        "all of `modular_pipelines`" if name == "all" else f"one {'file' if path.is_file() else 'family'}, `{name}`"
    )
    wall, processor = [run.wall for run in runs], [run.processor for run in runs]
    return f"| {title} | {len(texts)} | {lines:,} | {times(wall)} | {times(processor)} | {LIMITS[name]} |"


def times(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f})"


if __name__ == "__main__":
    main(sys.argv[1:])
