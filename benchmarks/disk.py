"""The disk tier: set-up, pass and memory on a CPU onload device, beside stock diffusers in the same run, and passes
over a cold page cache beside reading the file. Writes a page of the documentation.

Each set-up is a process of its own, so that one leaves no memory or page tables to the next.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

CASES = {
    "un-offloaded": "in memory",
    "stock": "stock diffusers, disk",
    "fresh": "ours, written",
    "checkpoint": "ours, from checkpoint",
    "kept": "ours, kept: first run",
    "restart": "ours, kept: restart",
}
# Each with the un-offloaded one it is compared with.
PASSES = {
    "un-offloaded": ("un-offloaded, weights in memory of their own", "un-offloaded"),
    "stock": ("stock diffusers, disk", "un-offloaded"),
    "copied": ("ours, aligned copies (see below)", "un-offloaded"),
    "mapped": ("un-offloaded, weights where `from_pretrained` mapped them", "mapped"),
    "checkpoint": ("ours, likewise", "mapped"),
}
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "disk.md"
Rows = list[dict[str, Any]]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.disk", description=__doc__)
    parser.add_argument("--layers", type=int, default=18, help="single blocks of the Flux (default: 18, about 1 GB)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the current directory)")
    parser.add_argument("--output", type=Path, default=PAGE, help="default: docs/benchmarks/disk.md")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="offload-plus-bench-", dir=options.directory or Path.cwd()) as folder:
        lines = report(Path(folder), options.layers, options.repeat)
    text = "\n".join(lines) + "\n"
    print(text)
    options.output.write_text(text)


def report(work: Path, layers: int, repeat: int) -> list[str]:
    run("make", work, layers)
    size = sum(file.stat().st_size for file in (work / "model").glob("*.safetensors"))
    rows: dict[str, Rows] = {case: [] for case in CASES}
    for _ in range(repeat):
        shutil.rmtree(work / "kept", ignore_errors=True)
        for case in CASES:
            rows[case].append(run(case, work))
    took = run("passes", work, 2 * repeat)
    cold = {way: run(f"cold {way}", work, 2 * repeat, layers) for way in ("computed with", "staged")}
    return [
        *introduction(work, size, repeat),
        *set_up_table(rows),
        *pass_table(took),
        *cold_table(cold),
        *VERDICT_HEAD,
        *verdicts(rows, took, cold),
    ]


def introduction(work: Path, size: int, repeat: int) -> list[str]:
    load = os.getloadavg()[2]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "safetensors"))
    return [
        "# The disk tier beside stock diffusers",
        "",
        f"`python -m benchmarks.disk`, {datetime.date.today()}, {os.cpu_count()} CPU cores ({platform.machine()}), "
        f"Linux {platform.release().split('-')[0]}, {file_system(work)}, Python {platform.python_version()}, "
        f"{versions}. A Flux of {size / 1e6:.0f} MB (bf16, random weights, 64 tokens), onload device `cpu`, block "
        f"level, warm page cache; medians of {repeat} interleaved repetitions, of {2 * repeat} for passes. The load "
        f"of the machine, other work included, was {load:.1f} on average; processor time says more than time on "
        "the clock then.",
        "",
    ]


def file_system(path: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if str(path.resolve()).startswith(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1]


def set_up_table(rows: dict[str, Rows]) -> list[str]:
    lines = [
        "| set-up | s | x stock | processor s | written MB | then anonymous MB | file-backed MB |",
        "|---|---|---|---|---|---|---|",
    ]
    stock = middle(rows["stock"], "setup")
    for case, text in CASES.items():
        row = rows[case]
        ratio = "" if case == "un-offloaded" else f"{middle(row, 'setup') / stock:.2f}"
        lines.append(
            f"| {text} | {middle(row, 'setup'):.2f} | {ratio} | {middle(row, 'setup cpu'):.2f} "
            f"| {middle(row, 'written') / 1e6:.0f} | {middle(row, 'anonymous') / 1e6:.0f} "
            f"| {middle(row, 'file') / 1e6:.0f} |"
        )
    return [*lines, ""]


def pass_table(took: dict[str, list[list[float]]]) -> list[str]:
    lines = ["| a pass | s | x un-offloaded | processor s | x un-offloaded |", "|---|---|---|---|---|"]
    for case, (text, _) in PASSES.items():
        wall, cpu = (statistics.median(pair[i] for pair in took[case]) for i in (0, 1))
        lines.append(
            f"| {text} | {wall:.2f} | {against_unoffloaded(took, case, 0):.3f} | {cpu:.2f} "
            f"| {against_unoffloaded(took, case, 1):.3f} |"
        )
    about = (
        "Ratios are medians of the ratios within a repetition. The checkpoint's weights lie 8 bytes past a multiple "
        "of 16. Ours computes with them there if the model did before; for one that had them aligned in memory they "
        "are copied to aligned memory in each pass, since some CPU kernels would give other last bits. That takes as "
        "long as reading all weights from memory once more, and counts the more the less there is to compute."
    )
    return [*lines, "", about, ""]


def against_unoffloaded(took: dict[str, list[list[float]]], case: str, which: int) -> float:
    _, base = PASSES[case]
    pairs = zip(took[case], took[base], strict=True)
    return statistics.median(mine[which] / plain[which] for mine, plain in pairs)


def cold_table(cold: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "A stack of linear layers, leaf level; before each measurement the file is dropped from the page cache. "
        '"Computed with": a pass with one row of input on the CPU, which uses weights where they are mapped. '
        '"Staged": brought to staging buffers, as for an accelerator.',
        "",
        "| cold, MB/s | MB | pass | sequential read | x the read | warm pass s |",
        "|---|---|---|---|---|---|",
    ]
    for way, row in cold.items():
        rates = [row["bytes"] / statistics.median(row[name]) / 1e6 for name in ("pass", "read")]
        lines.append(
            f"| {way} | {row['bytes'] / 1e6:.0f} | {rates[0]:.0f} | {rates[1]:.0f} "
            f"| {share(row):.2f} | {statistics.median(row['warm']):.2f} |"
        )
    return [*lines, ""]


def share(row: dict[str, Any]) -> float:
    """Rate of a pass over that of the sequential read of its repetition: a disk that others use changes its rate by
    the second."""
    return statistics.median(read / mine for mine, read in zip(row["pass"], row["read"], strict=True))


VERDICT_HEAD = ["| target | measured | |", "|---|---|---|"]


def verdicts(rows: dict[str, Rows], took: dict[str, list[list[float]]], cold: dict[str, dict[str, Any]]) -> list[str]:
    written = middle(rows["checkpoint"], "written")
    setup = middle(rows["checkpoint"], "setup") / middle(rows["stock"], "setup")
    wall, cpu = (against_unoffloaded(took, "checkpoint", which) for which in (0, 1))
    found = [
        ("set-up from a checkpoint writes 0 bytes", f"{written:.0f}", written == 0),
        ("it takes at most 0.25 x stock's set-up on disk", f"{setup:.2f}", setup <= 0.25),
        ("a pass takes at most 1.05 x one un-offloaded", f"{wall:.3f}; processor time {cpu:.3f}", wall <= 1.05),
    ]
    for way, row in cold.items():
        text = f"cold weights, {way}, come with at least 0.9 x the rate of a sequential read"
        found.append((text, f"{share(row):.2f}", share(row) >= 0.9))
    return [f"| {target} | {value} | {'met' if met else '**not met**'} |" for target, value, met in found]


def middle(rows: Rows, name: str) -> float:
    return statistics.median(row[name] for row in rows)


def run(case: str, work: Path, number: int = 0, layers: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.disk_cases", case, str(work), str(number)]
    # Threads that spin at a barrier take time from those they wait for, on a busy machine.
    environment = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "BENCH_LAYERS": str(layers),
        "DIFFUSERS_VERBOSITY": "error",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
