"""What becomes of a mutant, told by a pytest that only says what it would come to."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Iterable

import pytest

from tests.mutants.edits import Body
from tests.mutants.mutant import Mutant
from tests.mutants.trial import Outcome, run_pytest, stages, verdict

GOOD, BAD = "def total(values):\n    return sum(values)\n", "def total(values):\n    return 0\n"
MUTANT = Mutant("nothing is added", "total", Body("return 0"))
FAILED = Outcome(False, "tests/room/test_sums.py::test_total[a b]", "")
PASSED = Outcome(True, "", "")


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    files = {
        "diffusers_offload_plus/sums.py": GOOD,
        "tests/room/test_sums.py": "",
        "tests/test_others.py": "",
        "tests/helper.py": "",
        "tests/lint/test_sums.py": "",
        "tests/mutants/test_mutants.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def judged(tree: pathlib.Path, *outcomes: Outcome, mutant: Mutant = MUTANT) -> tuple[str, list[tuple[str, list[str]]]]:
    """The verdict, and of each run the source that it saw and what was asked for."""
    runs = []
    coming = iter(outcomes)

    def fake(tree: pathlib.Path, tests: Iterable[str], seconds: float) -> Outcome:
        runs.append(((tree / "diffusers_offload_plus" / "sums.py").read_text(), list(tests)))
        return next(coming)

    return verdict(mutant, ["test_sums", "test_gone"], tree, fake, 60), runs


def test_files_are_found_by_name_and_all_others_follow(tree: pathlib.Path) -> None:
    assert stages(tree, ["test_sums", "test_gone"]) == [["tests/room/test_sums.py"], ["tests/test_others.py"]]
    assert stages(tree, []) == [["tests/room/test_sums.py", "tests/test_others.py"]]


def test_a_kill_counts_if_the_test_passes_without_the_mutant(tree: pathlib.Path) -> None:
    said, runs = judged(tree, FAILED, PASSED)
    assert said == "killed by room/test_sums.py::test_total[a b]"
    assert runs == [(BAD, ["tests/room/test_sums.py"]), (GOOD, [FAILED.failed])]


def test_a_test_that_fails_anyway_decides_nothing(tree: pathlib.Path) -> None:
    said, _ = judged(tree, FAILED, FAILED)
    assert said == "UNDECIDED: room/test_sums.py::test_total[a b] fails without the mutant too"


def test_a_mutant_survives_all_stages(tree: pathlib.Path) -> None:
    said, runs = judged(tree, PASSED, PASSED)
    assert said == "SURVIVED"
    assert [tests for _, tests in runs] == [["tests/room/test_sums.py"], ["tests/test_others.py"]]


def test_a_mutant_that_does_not_apply_is_stale(tree: pathlib.Path) -> None:
    said, runs = judged(tree, mutant=MUTANT._replace(where="sums"))
    assert said.startswith("STALE: no function of the package is called sums")
    assert runs == []


def test_a_suite_that_cannot_run_decides_nothing(tree: pathlib.Path) -> None:
    said, _ = judged(tree, Outcome(False, "tests/room/test_sums.py", "ImportError"))
    assert said == "UNDECIDED: the suite did not run: ImportError"


def test_running_out_of_time_decides_nothing(tree: pathlib.Path) -> None:
    def slow(tree: pathlib.Path, tests: Iterable[str], seconds: float) -> Outcome:
        raise subprocess.TimeoutExpired("pytest", seconds)

    assert verdict(MUTANT, [], tree, slow, 60) == "UNDECIDED: no test has failed within 60 s"


def test_the_first_failure_is_read_from_what_pytest_prints(tree: pathlib.Path) -> None:
    (tree / "tests" / "test_others.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('x', ['a b'])\ndef test_total(x):\n    assert x == 'c', 'x - y'\n"
    )
    outcome = run_pytest(tree, ["tests/test_others.py"], 60)
    assert (outcome.passed, outcome.failed) == (False, "tests/test_others.py::test_total[a b]")
