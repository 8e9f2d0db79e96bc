"""``--introspect`` and the assertion for pytest: what blocks declare at run time decides."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_offload_plus.cli import main
from diffusers_offload_plus.lint.core.errors import LintError
from diffusers_offload_plus.lint.introspection import asking
from diffusers_offload_plus.testing import assert_block_conventions

from ..toy import write

ROOT = Path(__file__).parents[3]

# What is declared is read from a file, which no reading of the source can follow.
DYNAMIC = """\
import json
import pathlib

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

NAMES = json.loads((pathlib.Path(__file__).parent / "names.json").read_text())


class ScaleStep(ModularPipelineBlocks):
    model_name = "mine"

    @property
    def description(self):
        return "Scales."

    @property
    def expected_components(self):
        return [ComponentSpec("vae", torch.nn.Module)]

    @property
    def inputs(self):
        return [InputParam(name, type_hint=float, description="Read from a file.") for name in NAMES]

    @property
    def intermediate_outputs(self):
        return [OutputParam("scaled", type_hint=torch.Tensor, description="Scaled.")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.scaled = block_state.strength * components.vae(block_state.missing)
        self.set_block_state(state, block_state)
        return components, state


class OtherStep(ModularPipelineBlocks):
    model_name = "mine"

    def __init__(self, size):
        super().__init__()
"""
COMPOSED = '''\
from diffusers.modular_pipelines import SequentialPipelineBlocks

from .steps import ScaleStep


# auto_docstring
class MyBlocks(SequentialPipelineBlocks):
    """Scales."""

    model_name = "mine"
    block_classes = [ScaleStep]
    block_names = ["scale"]

    @property
    def description(self):
        return "Scales."
'''


def package(root: Path, name: str, steps: str = DYNAMIC) -> None:
    write(root, {f"{name}/__init__.py": "", f"{name}/steps.py": steps, f"{name}/names.json": '["strength"]'})
    write(root, {f"{name}/modular_blocks_mine.py": COMPOSED})


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[tuple[str, str, int, str]]:
    main(["lint", "--isolated", "--format", "json", *arguments])
    shown = json.loads(capsys.readouterr().out)
    return [(Path(one["path"]).name, one["code"], one["line"], one["origin"]) for one in shown]


def test_run_time_knows_more_than_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(tmp_path, "mine_a")
    line = DYNAMIC.split("\n").index(next(one for one in DYNAMIC.split("\n") if "missing" in one)) + 1
    assert ("steps.py", "MOD031", line, "static") not in found(capsys, str(tmp_path))
    asked = found(capsys, str(tmp_path), "--introspect")
    assert [one for one in asked if one[1] in ("MOD000", "MOD031")] == [("steps.py", "MOD031", line, "introspection")]


def test_what_both_find_is_said_once_and_called_static(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(tmp_path, "mine_b", DYNAMIC.replace("for name in NAMES", 'for name in ("strength",)'))
    static = found(capsys, str(tmp_path))
    assert any(one[1] == "MOD031" for one in static)
    assert found(capsys, str(tmp_path), "--introspect") == static


def test_it_is_said_that_code_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"a.py": "x = 1\n"})
    assert main(["lint", str(tmp_path), "--introspect"]) == 0
    assert "--introspect: importing the linted files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('no such device')\n", "cannot be imported: ValueError: no such device"),
        ("import sys\nsys.exit(3)\n", "cannot be imported: SystemExit: 3"),
        ("import nowhere_to_be_found\n", "cannot be imported: ModuleNotFoundError"),
        ("import os\nos._exit(3)\n", "importing it ended the importing process"),
    ],
)
def test_what_cannot_be_imported_is_a_finding(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package(tmp_path, "mine_c", text + DYNAMIC)
    assert main(["lint", "--isolated", str(tmp_path / "mine_c/steps.py"), "--introspect"]) == 1
    shown = capsys.readouterr()
    assert message in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_what_never_ends_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package(tmp_path, "mine_k", "import time\ntime.sleep(600)\n" + DYNAMIC)
    monkeypatch.setattr(asking, "_SECONDS", 3)
    assert main(["lint", "--isolated", str(tmp_path / "mine_k/steps.py"), "--introspect"]) == 1
    assert "or took more than 3 seconds" in capsys.readouterr().out


def test_a_block_whose_constructor_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(
        tmp_path, "mine_d", DYNAMIC.replace("__init__(self, size)", "__init__(self)") + "        raise KeyError('x')\n"
    )
    main(["lint", "--isolated", str(tmp_path), "--introspect"])
    assert "OtherStep cannot be instantiated: KeyError: 'x'" in capsys.readouterr().out


def test_printing_does_not_disturb_the_findings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    package(tmp_path, "mine_e", "print('[')\n" + DYNAMIC)
    main(["lint", "--isolated", "--format", "json", str(tmp_path), "--introspect"])
    assert json.loads(capfd.readouterr().out)


def test_without_introspection_nothing_is_executed(tmp_path: Path) -> None:
    package(tmp_path, "mine_f", f"open({str(tmp_path / 'executed')!r}, 'w')\n" + DYNAMIC)
    assert main(["lint", "--isolated", "--fail-on", "warning", str(tmp_path)]) == 0
    assert not (tmp_path / "executed").exists()


def imported(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(root)
    importlib.invalidate_caches()
    return importlib.import_module(f"{name}.modular_blocks_mine")


def test_the_assertion_looks_at_all_that_a_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "mine_g")
    module = imported(tmp_path, "mine_g", monkeypatch)
    with pytest.raises(AssertionError) as raised:
        assert_block_conventions(module.MyBlocks)  # type: ignore[attr-defined]
    message = str(raised.value)
    assert message.startswith("MyBlocks: conventions of modular pipelines are not kept.\n\n")
    assert "MOD031  ScaleStep reads `block_state.missing`" in message
    assert "components.vae(block_state.missing)" in message
    assert_block_conventions(module.MyBlocks, ignore=["MOD031"])  # type: ignore[attr-defined]
    assert_block_conventions(module.MyBlocks, select=["MOD001"])  # type: ignore[attr-defined]


def test_other_classes_of_the_file_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = DYNAMIC.replace("block_state.missing", "block_state.strength")
    package(
        tmp_path,
        "mine_h",
        clean + "        self.expected = getattr\n\n    def __call__(self, components, state):\n"
        "        state.set('x', 1)\n        return components, state\n",
    )
    module = imported(tmp_path, "mine_h", monkeypatch)
    assert_block_conventions(module.MyBlocks)  # type: ignore[attr-defined]
    other = importlib.import_module("mine_h.steps").OtherStep
    with pytest.raises(AssertionError, match="MOD014"):
        assert_block_conventions(other)


def test_comments_and_settings_hold_in_the_assertion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(
        tmp_path,
        "mine_i",
        DYNAMIC.replace("(block_state.missing)", "(block_state.missing)  # noqa: MOD031 set by hand"),
    )
    module = imported(tmp_path, "mine_i", monkeypatch)
    assert_block_conventions(module.MyBlocks)  # type: ignore[attr-defined]
    package(tmp_path, "mine_j")
    (tmp_path / "pyproject.toml").write_text("[tool.diffusers-offload-plus.lint]\nlevels = {MOD031 = 'info'}\n")
    module = imported(tmp_path, "mine_j", monkeypatch)
    assert_block_conventions(module.MyBlocks)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="MOD031"):
        assert_block_conventions(module.MyBlocks, fail_on="info")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((), {}, "expected at least one class"),
        ((3,), {}, "expected classes of blocks, got 3"),
        ((int,), {}, "expected blocks, that is subclasses of ModularPipelineBlocks"),
        ((int,), {"fail_on": "warn"}, "fail_on: expected a level"),
        ((int,), {"fail_on": "off"}, "nothing to assert"),
    ],
)
def test_wrong_arguments(arguments: tuple[type, ...], keywords: dict[str, str], message: str) -> None:
    with pytest.raises(LintError, match=message):
        assert_block_conventions(*arguments, **keywords)  # type: ignore[arg-type]


def test_a_class_without_a_file() -> None:
    from diffusers.modular_pipelines import ModularPipelineBlocks

    made = type("Made", (ModularPipelineBlocks,), {"__module__": "no_such_module"})
    with pytest.raises(LintError, match="no source file"):
        assert_block_conventions(made)


def test_importing_the_helper_imports_neither_torch_nor_pytest() -> None:
    code = (
        "import sys, diffusers_offload_plus.testing; sys.exit(str({'torch', 'diffusers', 'pytest'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
