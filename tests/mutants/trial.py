"""One mutant against the suite, in a copy of the tree."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.mutants.functions import Package
from tests.mutants.mutant import Mutant, mutated
from tests.mutants.patterns import Stale

__all__ = ["Outcome", "run_pytest", "stages", "try_in_copy", "verdict"]

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "diffusers_offload_plus"
# Folders of tests that have nothing to notice: the linter's, and those of the mutants, which fail for every mutant.
APART = {"lint", "mutants"}
_NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "build", "dist", "*.egg-info", "demo-output", "bench-output", "offload-plus-demo"
)
_NO_TESTS = 5  # pytest's exit code where all are deselected


class Outcome(NamedTuple):
    """What a run of pytest came to; ``failed`` is the first test that did, ``said`` the end of what was printed."""

    passed: bool
    failed: str
    said: str


Pytest = Callable[[pathlib.Path, Iterable[str], float], Outcome]  # raises subprocess.TimeoutExpired


def try_in_copy(mutant: Mutant, first: Iterable[str], seconds: float) -> tuple[str, float]:
    """The verdict, and the seconds it took."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=_NOT_COPIED, symlinks=True)
        said = verdict(mutant, first, tree, run_pytest, seconds)
    return said, time.perf_counter() - begin


def verdict(mutant: Mutant, first: Iterable[str], tree: pathlib.Path, pytest: Pytest, seconds: float) -> str:
    """``killed by ...``, ``SURVIVED``, ``STALE: ...`` or ``UNDECIDED: ...``. Changes ``tree``."""
    try:
        file, text = mutated(mutant, Package(tree / PACKAGE))
    except Stale as error:
        return f"STALE: {error}"
    original = file.read_bytes()
    file.write_bytes(text.encode())
    deadline = time.perf_counter() + seconds
    try:
        for files in stages(tree, first):
            outcome = pytest(tree, files, deadline - time.perf_counter())
            if outcome.passed:
                continue
            if "::" not in outcome.failed:
                return f"UNDECIDED: the suite did not run: {outcome.said}"
            # One that fails now and then, or on this machine, has noticed nothing.
            file.write_bytes(original)
            if pytest(tree, [outcome.failed], seconds).passed:
                return f"killed by {outcome.failed.removeprefix('tests/')}"
            return f"UNDECIDED: {outcome.failed.removeprefix('tests/')} fails without the mutant too"
    except subprocess.TimeoutExpired:
        # Each test has a time limit of its own, so this says that the machine is slow, not that a test noticed.
        return f"UNDECIDED: no test has failed within {seconds:.0f} s"
    return "SURVIVED"


def stages(tree: pathlib.Path, first: Iterable[str]) -> list[list[str]]:
    """The test files whose names come first, in that order, and all others that may notice something. Names that no
    file has any more are left out."""
    folder = tree / "tests"
    files = [path for path in sorted(folder.rglob("*.py")) if APART.isdisjoint(path.relative_to(folder).parts)]
    named = [path for name in first for path in files if path.stem == name]
    others = [path for path in files if path.stem.startswith("test_") and path not in named]
    return [[str(path.relative_to(tree)) for path in part] for part in (named, others) if part]


def run_pytest(tree: pathlib.Path, tests: Iterable[str], seconds: float) -> Outcome:
    """Run ``tests`` up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    # Built once, not in each copy.
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=max(1.0, seconds), check=False
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    name = failed[0].split(" ", 1)[1].split(" - ")[0].strip() if failed else ""
    return Outcome(done.returncode in (0, _NO_TESTS), name, (done.stdout + done.stderr)[-300:])
