"""Runs the project's tests on the stand-in for CUDA, and writes the page that says what came out.

``python -m tests.standin_cuda.proof --output docs/proofs/cuda_standin.md [part ...]``
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from .known import KNOWN, reason_for

__all__ = ["main"]


class Part(NamedTuple):
    """A run of pytest; or of a command, where there is one."""

    title: str
    tests: tuple[str, ...] = ()
    environment: dict[str, str] = {}  # noqa: RUF012
    command: tuple[str, ...] = ()


LATE, RANDOM = {"STANDIN_CUDA_SEED": "-1"}, {"STANDIN_CUDA_SEED": "1"}
PARTS = {
    "standin": Part("The stand-in's own tests", ("tests/standin_cuda",)),
    "engine": Part("Engine, all work as late as possible", ("tests/offload",), LATE),
    "orders": Part("Engine, work in a random order", ("tests/offload",), RANDOM),
    "twin": Part("Twins: 1,000 random sequences", ("tests/twin",), {**RANDOM, "OFFLOAD_PLUS_SEQUENCES": "1000"}),
    "pipelines": Part("Pipelines", ("tests/zoo",), LATE),
    "demo": Part("Demonstration, its tests", ("tests/test_demo.py",), LATE),
    "command": Part("Demonstration, the command", (), LATE, ("-m", "diffusers_offload_plus", "demo", "--output")),
}


class Result(NamedTuple):
    part: Part
    seconds: float
    counts: Counter[str]
    failures: dict[str, str]
    """Id of each test that failed or gave an error, with the first line of what it said."""
    skipped: Counter[str]


def run(part: Part) -> Result:
    begin = time.monotonic()
    launcher = [sys.executable, "-m", "tests.standin_cuda"]
    environment = os.environ | part.environment
    with tempfile.TemporaryDirectory() as folder:
        if part.command:
            done = subprocess.run([*launcher, *part.command, folder], env=environment)
            failures = {} if done.returncode == 0 else {" ".join(part.command[1:-1]): f"exit code {done.returncode}"}
            counts = Counter(failed=len(failures), passed=1 - len(failures))
            return Result(part, time.monotonic() - begin, counts, failures, Counter())
        report = Path(folder, "report.xml")
        words = ["-m", "pytest", "-q", "--tb=short", "--show-capture=no", f"--junitxml={report}", *part.tests]
        subprocess.run([*launcher, *words], env=environment)
        counts, failures, skipped = read(report)
    return Result(part, time.monotonic() - begin, counts, failures, skipped)


def read(report: Path) -> tuple[Counter[str], dict[str, str], Counter[str]]:
    """Counts of outcomes, failures, and how often each reason to skip was given."""
    counts: Counter[str] = Counter()
    failures: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('classname')}.{case.get('name')}"
        outcomes = {child.tag: (child.get("message") or "").strip().split("\n")[0] for child in case}
        wrong = outcomes.get("failure") or outcomes.get("error")
        if wrong is not None:
            failures[test] = wrong
            counts["failed"] += 1
        elif "skipped" in outcomes:
            skipped[outcomes["skipped"]] += 1
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts, failures, skipped


def page(results: list[Result]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# PyTorch's CUDA backend without a GPU",
        "",
        f"Written by `make test-cuda`, {today}, at commit {commit}: torch {version('torch')} with its own allocator,",
        f"streams, events and graphs on the stand-in of `tests/standin_cuda`, diffusers {version('diffusers')}.",
        "",
        "| | passed | failed | skipped | minutes |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        counts = result.counts
        numbers = f"{counts['passed']:,} | {counts['failed']:,} | {counts['skipped']:,} | {result.seconds / 60:.0f}"
        lines.append(f"| {result.part.title} | {numbers} |")
    return "\n".join([*lines, *of_failures(results), *of_skips(results), ""])


def of_failures(results: list[Result]) -> list[str]:
    by_reason: dict[str, dict[str, str]] = defaultdict(dict)
    for result in results:
        for test, message in result.failures.items():
            by_reason[reason_for(test) or "Not explained"][test] = message
    lines = ["", "## What failed, and why"]
    for reason, tests in by_reason.items():
        lines += ["", f"{reason}:", ""]
        lines += [f"* `{test}`: {message[:200]}" for test, message in tests.items()]
    return lines if by_reason else [*lines, "", "Nothing."]


def of_skips(results: list[Result]) -> list[str]:
    reasons: Counter[str] = Counter()
    for result in results:
        reasons += result.skipped
    lines = ["", "## What was skipped", "", "| times | reason |", "|---|---|"]
    return [*lines, *(f"| {times} | {reason} |" for reason, times in reasons.most_common())] if reasons else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to run; all if left out")
    parser.add_argument("--output", type=Path, help="where the page goes; printed if left out")
    chosen = parser.parse_args()
    results = [run(PARTS[name]) for name in chosen.parts or PARTS]
    text = page(results)
    if chosen.output is None or chosen.parts:  # a page of some parts would hide the others
        print(text)
    else:
        chosen.output.write_text(text)
    failed = {test for result in results for test in result.failures}
    unexplained = sorted(test for test in failed if reason_for(test) is None)
    passing = (
        [] if chosen.parts else [pattern for pattern in KNOWN if not any(re.search(pattern, test) for test in failed)]
    )
    for test in unexplained:
        print(f"failed, and no reason is known: {test}", file=sys.stderr)
    for pattern in passing:
        print(f"known to fail, and nothing like it did: {pattern}", file=sys.stderr)
    return int(bool(unexplained or passing))


if __name__ == "__main__":
    sys.exit(main())
