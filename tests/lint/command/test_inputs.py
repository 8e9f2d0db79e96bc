"""What people hand to the command: standard input, notebooks, odd files, files with settings of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_offload_plus.cli import main

BLOCK = """\
from diffusers.modular_pipelines import ModularPipelineBlocks


class Step(ModularPipelineBlocks):
    model_name = "toy"

    def __call__(self, components, state):
        state.set("a", 1)
        return components, state
"""
SET = "MOD014"


def codes(shown: str) -> list[tuple[int, str]]:
    return [(finding["line"], finding["code"]) for finding in json.loads(shown)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def standard_input(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    standard_input(monkeypatch, BLOCK)
    assert main(["lint", "-", "--format", "json"]) == 1
    (finding,) = [one for one in json.loads(capsys.readouterr().out) if one["code"] == SET]
    assert (finding["path"], finding["line"]) == ("stdin.py", 8)


def test_standard_input_stands_for_a_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "pack").mkdir()
    (here / "pack" / "base.py").write_text(BLOCK.replace("Step", "Base"))
    (here / "pyproject.toml").write_text('[tool.diffusers-offload-plus.lint]\nselect = ["MOD014", "MOD020"]\n')
    method = "    def __call__(self, components, state):\n        return state\n"
    edited = f"from .base import Base\n\n\nclass Heir(Base):\n{method}"
    (here / "pack" / "heir.py").write_text("what is on disk is not what the editor shows")
    standard_input(monkeypatch, edited)
    assert main(["lint", "-", "--stdin-filename", "pack/heir.py", "--format", "json"]) == 1
    assert codes(capsys.readouterr().out) == [(6, "MOD020")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "other.py"], "expected no other paths"),
        (["-", "--fix"], "--fix: cannot be combined with -"),
        (["-", "--write-baseline", "x"], "--write-baseline: cannot be combined with -"),
        (["--stdin-filename", "x.py"], "expected the path - with it"),
    ],
)
def test_what_standard_input_cannot_do(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_standard_input_that_is_no_text(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standard_input(monkeypatch, b"\xff\xfe\x00")
    assert main(["lint", "-"]) == 2
    assert "standard input cannot be read" in capsys.readouterr().err


def notebook(*cells: str | tuple[str, str], language: str = "python") -> str:
    """A notebook of code cells; a pair is the kind of a cell and its text."""
    made = []
    for cell in cells:
        kind, text = cell if isinstance(cell, tuple) else ("code", cell)
        more = {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append({"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True), **more})
    metadata = {"kernelspec": {"language": language, "name": "x"}}
    return json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


CELLS = (
    ("markdown", "# Toy"),
    "%pip install diffusers\n!ls\nfrom diffusers.modular_pipelines import ModularPipelineBlocks\nx?",
    "%%bash\nthis is not Python",
    "%%time\nx = 1",
    'class Step(ModularPipelineBlocks):\n    model_name = "toy"\n\n    def __call__(self, components, state):\n'
    '        state.set("a", 1)\n        state.set("b", 1)  # noqa: MOD014\n        return components, state',
)


def test_a_notebook_is_linted_by_cell(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.ipynb").write_text(notebook(*CELLS))
    assert main(["lint", "toy.ipynb"]) == 1
    shown = capsys.readouterr().out
    assert "cell 5, 5:9" in shown
    assert '5 | state.set("a", 1)' in shown
    assert main(["lint", "toy.ipynb", "--format", "json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [(one["cell"], one["line"], one["code"]) for one in findings if one["code"] == SET] == [(5, 5, SET)]
    assert main(["lint", "toy.ipynb", "--format", "sarif"]) == 1
    results = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    assert [one["message"]["text"][:7] for one in results if one["ruleId"] == SET] == ["cell 5:"]
    assert main(["lint", "toy.ipynb", "--format", "github"]) == 1
    assert "line=5,endLine=5" in capsys.readouterr().out


def test_a_cell_that_is_wrong_hides_no_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.ipynb").write_text(notebook(*CELLS, "x = 1\nif x:\n"))
    assert main(["lint", "toy.ipynb", "--format", "json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {(one["cell"], one["code"]) for one in findings} >= {(5, SET), (6, "MOD000")}


def test_notebooks_are_not_changed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = notebook(*CELLS[:2], BLOCK.replace('    model_name = "toy"\n\n', "    model_name = 'toy'\n"))
    (here / "toy.ipynb").write_text(text)
    main(["lint", "toy.ipynb", "--fix"])
    assert (here / "toy.ipynb").read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", "is no notebook"),
        ("[]", "expected a list of cells"),
        ('{"worksheets": []}', "expected a list of cells"),
        (notebook("x <- 1", language="R"), "is a notebook of R"),
    ],
)
def test_what_is_no_notebook(text: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.ipynb").write_text(text)
    assert main(["lint", "toy.ipynb"]) == 1
    assert message in capsys.readouterr().out


def test_a_named_pipe_in_the_tree_is_skipped_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(here / "pipe.py")
    (here / "x.py").write_text("x = 1\n")
    assert main(["lint", "."]) == 1
    assert "is a named pipe, not a file: skipped" in capsys.readouterr().out
    assert main(["lint", "pipe.py"]) == 2
    assert "expected a file or a directory, got a named pipe" in capsys.readouterr().err
    assert main(["lint", "/dev/null"]) == 2
    assert "got a device" in capsys.readouterr().err


def test_no_file_is_an_error_unless_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    (here / "build").mkdir()
    assert main(["lint", "empty"]) == 2
    assert "no Python files there" in capsys.readouterr().err
    assert main(["lint", "empty", "--allow-no-files"]) == 0
    (here / "left_out.py").write_text("x = 1\n")
    assert main(["lint", "left_out.py", "--exclude", "left_out.py"]) == 0


@pytest.mark.parametrize(
    ("line", "column", "hint"),
    [
        ("def f(:", 7, "read as Python"),
        ("x = = 1", 5, "read as Python"),
        ("lazy import x", 6, "needs Python 3.15"),
        ("x = t'{y}'", 6, "needs Python 3.14"),
        ("try:\n    pass\nexcept A, B:\n    pass", 8, "needs Python 3.14"),
    ],
)
def test_a_syntax_error_has_its_place(
    line: str, column: int, hint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "x.py").write_text(line + "\n")
    if "needs" in hint and sys.version_info >= tuple(int(part) for part in hint.rpartition(" ")[2].split(".")):
        hint = "No findings"  # this Python is new enough
    main(["lint", "x.py"])
    shown = capsys.readouterr().out
    assert hint in shown
    if "needs" not in hint and "No" not in hint:
        assert f":{column}  error" in shown


def test_settings_do_not_depend_on_the_other_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, ignored in {"one": "MOD014", "two": "MOD021", "one/inner": "MOD020"}.items():
        (here / name).mkdir()
        (here / name / "step.py").write_text(BLOCK)
        table = f'[tool.diffusers-offload-plus.lint]\nselect = ["MOD014", "MOD020"]\nignore = ["{ignored}"]\n'
        (here / name / "pyproject.toml").write_text(table)
    (here / "bare").mkdir()
    (here / "bare" / "step.py").write_text(BLOCK)
    found = {}
    for paths in (["one", "two", "bare"], ["."], ["two"], ["one/inner", "bare"]):
        main(["lint", *paths, "--format", "json"])
        for finding in json.loads(capsys.readouterr().out):
            found.setdefault(finding["path"], set()).add((" ".join(paths), finding["code"]))
    assert {code for _, code in found.get("one/step.py", ())} == set()
    assert {code for _, code in found["two/step.py"]} == {SET}
    assert {code for _, code in found["one/inner/step.py"]} == {SET}
    assert SET in {code for _, code in found["bare/step.py"]}
    main(["lint", "one", "--select", "MOD014", "--format", "json"])
    assert codes(capsys.readouterr().out) != []  # the command line wins


def test_excludes_are_those_of_the_nearest_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "one" / "generated").mkdir(parents=True)
    (here / "one" / "generated" / "step.py").write_text(BLOCK)
    (here / "one" / "pyproject.toml").write_text('[tool.diffusers-offload-plus.lint]\nexclude = ["generated"]\n')
    (here / "x.py").write_text("x = 1\n")
    assert main(["lint", "."]) == 0


@pytest.mark.parametrize("command", ["lint step.py", "lint step.py --format sarif", "rule", "rule MOD003"])
@pytest.mark.parametrize(
    ("redirected", "message"),
    [
        (">/dev/full", "standard output cannot be written: No space left on device"),
        (">&-", "standard output is closed"),
    ],
)
def test_an_output_that_takes_nothing_gives_one_line(command: str, redirected: str, message: str, here: Path) -> None:
    (here / "step.py").write_text(BLOCK)
    shell = f"{sys.executable} -m diffusers_offload_plus {command} {redirected}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_a_missing_libcst_is_said_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "x.py").write_text("x = 1\n")
    monkeypatch.setitem(sys.modules, "libcst", None)
    assert main(["lint", "x.py", "--fix"]) == 2
    assert "need libcst" in capsys.readouterr().err


def test_what_is_not_checked_is_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "blocks.py").write_text(
        "from diffusers.modular_pipelines import SequentialPipelineBlocks\nfrom company import Base, Other\n\n\n"
        "class One(Base):\n    expected_components = []\n\n\nclass Two(One):\n    pass\n\n\n"
        "class Both(SequentialPipelineBlocks):\n    block_classes = [One, Other]\n    block_names = ['one', 'other']\n"
    )
    main(["lint", "blocks.py", "--ignore", "ALL"])
    shown = capsys.readouterr().out
    assert "2 classes not checked: a base is not found (MOD101)" in shown
    assert "1 class checked in part: a block is not found (MOD101:step)" in shown
    main(["lint", "blocks.py", "--format", "sarif"])
    counts = json.loads(capsys.readouterr().out)["runs"][0]["properties"]
    assert counts == {"classesNotChecked": 2, "classesCheckedInPart": 1}
    main(["lint", "blocks.py", "--select", "MOD101", "--level", "MOD101:step=info", "--format", "json"])
    assert [(one["line"], one["kind"]) for one in json.loads(capsys.readouterr().out)] == [(5, ""), (13, "step")]
