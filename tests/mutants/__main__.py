"""``python -m tests.mutants``: break the engine in each of the ways of :mod:`tests.mutants.changes` and run the suite.

A mutant that survives is printed and makes the exit code 1. Works on a copy; the tree is not touched.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tests.mutants.changes import MUTANTS, Mutant

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Quick and broad first: most mutants die in the first file.
SUITE = [
    "test_figures", "test_budgets", "test_auto_budget", "test_inputs", "test_broken_engines", "test_buffers",
    "test_ties_and_views", "test_user_changes", "test_entry_doors", "test_failures",
    "test_copies_and_state", "test_tensor_subclasses", "test_training",
    "test_claims_and_copies", "test_other_hooks", "test_pipelines", "test_stalls",
]  # fmt: skip


def copy_tree(target: pathlib.Path) -> None:
    for name in ("diffusers_offload_plus", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)


def run(mutant: Mutant, timeout: float) -> tuple[str, float]:
    """``killed by ...`` or ``SURVIVED``, and the seconds it took."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        copy_tree(tree)
        file = tree / "diffusers_offload_plus" / "offload" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"STALE: its text occurs {text.count(mutant.old)} times in {mutant.file}", 0.0
        file.write_text(text.replace(mutant.old, mutant.new))
        files = [path for name in SUITE if (path := tree / "tests" / "offload" / f"{name}.py").exists()]
        of_ranks = mutant.file.startswith(("stores/shared", "stores/meeting", "stores/steward"))
        folders = [tree / "tests" / name for name in ("disk", "store")]
        folders.insert(0 if of_ranks else 2, tree / "tests" / "distributed")
        on_disk = mutant.file.startswith("stores/") or mutant.file in ("reader.py", "staging.py", "plan.py")
        files = [*folders, *files] if on_disk else [*files, *folders]
        files.append(tree / "tests" / "twin")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            *map(str, files),
        ]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            # Each test has a time limit of its own, so this says that the machine is slow, not that a test noticed.
            return f"UNDECIDED: no test has failed within {timeout:.0f} s", time.perf_counter() - begin
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 0:
        return "SURVIVED", time.perf_counter() - begin
    if not failed or "::" not in failed[0]:
        return f"STALE: the suite did not run: {(done.stdout + done.stderr)[-300:]}", time.perf_counter() - begin
    return f"killed by {failed[0].split(' - ')[0].split('tests/')[-1]}", time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the mutants whose name contains this")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one mutant")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda mutant: run(mutant, options.timeout), chosen)
        for number, (mutant, (verdict, seconds)) in enumerate(zip(chosen, results, strict=True), 1):
            bad += not verdict.startswith("killed")
            print(f"[{number}/{len(chosen)}] {mutant.name}: {verdict} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants killed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
