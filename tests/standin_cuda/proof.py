"""Runs the project's tests on the stand-in for CUDA, and writes the page that says what came out.

``python -m tests.standin_cuda.proof --output docs/proofs/cuda_standin.md [part ...]``

Reports of earlier runs are kept: the page is of the newest run of each part.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from .known import reason_for

__all__ = ["main"]

_LATE, _RANDOM = {"STANDIN_CUDA_SEED": "-1"}, {"STANDIN_CUDA_SEED": "1"}
_REPORTS = Path(".cache", "standin_cuda_reports")


class Part(NamedTuple):
    """A run of pytest; or of a command, where there is one."""

    title: str
    environment: dict[str, str]
    tests: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


PARTS = {
    "standin": Part("The stand-in's own tests", _LATE, ("tests/standin_cuda",)),
    "engine": Part("Engine, all work as late as possible", _LATE, ("tests/offload",)),
    "orders": Part("Engine, work in a random order", _RANDOM, ("tests/offload",)),
    "twin": Part(
        "Twins: 1,000 random sequences, in a random order",
        {**_RANDOM, "OFFLOAD_PLUS_SEQUENCES": "1000"},
        ("tests/twin", "--timeout=20000"),
    ),
    "pipelines": Part("Pipelines", _LATE, ("tests/zoo",)),
    "demo": Part("Tests of the demonstration", _LATE, ("tests/test_demo.py",)),
    "command": Part("The demonstration", _LATE, command=("-m", "diffusers_offload_plus", "demo", "--output")),
}


class Result(NamedTuple):
    """What a run of a part gave."""

    title: str
    commit: str
    day: str
    seconds: float
    counts: Counter[str]
    failures: dict[str, str]
    """Id of each test that failed or gave an error, with the first line of what it said."""
    skipped: Counter[str]
    """How often each reason to skip was given."""


def run(name: str, part: Part, reports: Path) -> None:
    """Run a part and keep its report."""
    begin = time.monotonic()
    launcher = [sys.executable, "-m", "tests.standin_cuda"]
    environment = os.environ | part.environment
    report = reports / f"{name}.xml"
    report.unlink(missing_ok=True)
    if part.command:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*launcher, *part.command, folder], env=environment)
        report.write_text(_report_of_a_command(" ".join(part.command[1:-1]), done.returncode))
    else:
        words = ["-m", "pytest", "-q", "--tb=short", "--show-capture=no", f"--junitxml={report}", *part.tests]
        subprocess.run([*launcher, *words], env=environment)
    facts = {"seconds": time.monotonic() - begin, "commit": _commit(), "day": str(datetime.date.today())}
    report.with_suffix(".json").write_text(json.dumps(facts))


def _report_of_a_command(name: str, code: int) -> str:
    suite = ElementTree.Element("testsuite")
    case = ElementTree.SubElement(suite, "testcase", classname="command", name=name)
    if code:
        ElementTree.SubElement(case, "failure", message=f"exit code {code}")
    return ElementTree.tostring(suite, encoding="unicode")


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def read(name: str, reports: Path) -> Result | None:
    """The newest result of a part; None if it has not been run."""
    report = reports / f"{name}.xml"
    if not report.exists():
        return None
    outcomes: dict[str, dict[str, str]] = defaultdict(dict)  # a test may pass, and its teardown fail
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('classname')}.{case.get('name')}"
        outcomes[test] |= {child.tag: (child.get("message") or "").strip().split("\n")[0] for child in case}
    counts: Counter[str] = Counter()
    failures: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    for test, found in outcomes.items():
        if "failure" in found or "error" in found:
            failures[test] = found.get("failure") or found["error"]
            counts["failed"] += 1
        elif "skipped" in found:
            skipped[found["skipped"]] += 1
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    facts = json.loads(report.with_suffix(".json").read_text())
    return Result(PARTS[name].title, facts["commit"], facts["day"], facts["seconds"], counts, failures, skipped)


def page(results: list[Result]) -> str:
    """The page, in Markdown."""
    lines = [
        "# PyTorch's CUDA backend without a GPU",
        "",
        f"Written by `make test-cuda`. On the stand-in of `tests/standin_cuda`: torch {version('torch')} with its own",
        f"allocator, streams, events and graphs, and diffusers {version('diffusers')}.",
        "",
        "| | passed | failed | skipped | minutes | commit | day |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        counts = " | ".join(f"{result.counts[outcome]:,}" for outcome in ("passed", "failed", "skipped"))
        lines.append(f"| {result.title} | {counts} | {result.seconds / 60:.0f} | {result.commit} | {result.day} |")
    return "\n".join([*lines, *_of_failures(results), *_of_skips(results), ""])


def _of_failures(results: list[Result]) -> list[str]:
    by_reason: dict[str, dict[str, str]] = defaultdict(dict)
    for result in results:
        for test, message in result.failures.items():
            by_reason[reason_for(test) or "Not explained"][test] = message
    lines = ["", "## What failed, and why"]
    for reason, tests in by_reason.items():
        lines += ["", f"{reason}:", ""]
        lines += [f"* `{test}`: {message[:120]}" for test, message in tests.items()]
    return lines if by_reason else [*lines, "", "Nothing."]


def _of_skips(results: list[Result]) -> list[str]:
    reasons: Counter[str] = Counter()
    for result in results:
        reasons |= result.skipped
    lines = ["", "## What was skipped", "", "| tests | reason |", "|---|---|"]
    return [*lines, *(f"| {times} | {reason} |" for reason, times in reasons.most_common())] if reasons else []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"what to run: {', '.join(PARTS)}; all if left out")
    parser.add_argument("--output", type=Path, required=True, help="where the page goes")
    parser.add_argument("--reports", type=Path, default=_REPORTS, help="where reports are kept")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    chosen.reports.mkdir(parents=True, exist_ok=True)
    for name in chosen.parts or PARTS:
        run(name, PARTS[name], chosen.reports)
    results = [result for name in PARTS if (result := read(name, chosen.reports)) is not None]
    chosen.output.write_text(page(results))
    unexplained = sorted({test for result in results for test in result.failures if reason_for(test) is None})
    for test in unexplained:
        print(f"failed, and no reason is known: {test}", file=sys.stderr)
    return int(bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
