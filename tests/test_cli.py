"""The command line: what it imports, how it answers to mistakes, what its options reach."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_offload_plus import __version__
from diffusers_offload_plus.cli import main
from diffusers_offload_plus.commands import COMMANDS, CommandError, demo
from diffusers_offload_plus.commands.demo import import_plugins
from diffusers_offload_plus.errors import HookConflictError

ROOT = Path(__file__).parents[1]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_neither_the_command_line_nor_its_help_imports_torch() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'numpy', 'rich', 'matplotlib'}"
    code = f"""
import sys
from diffusers_offload_plus.cli import main
try:
    main(["demo", "--help"])
except SystemExit as end:
    assert end.code == 0
sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "--import" in done.stdout


def test_the_package_runs_as_a_module() -> None:
    done = python("-m", "diffusers_offload_plus", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"offload-plus {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "required: COMMAND"),
        (["demo", "--steps", "1"], "expected a whole number of at least 2, got '1'"),
        (["demo", "--height", "wide"], "expected a whole number of at least 1, got 'wide'"),
        (["demo", "--dtypes", "bf16,fp4"], "expected bf16 or int8, or both separated by a comma, got 'bf16,fp4'"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    written = capsys.readouterr()
    assert message in written.err
    assert "usage: offload-plus" in written.err
    assert written.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "nonsense"], "must name a torch device such as 'cuda'"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--model", "no/such/directory"], "no model_index.json"),
        (["--model", ".", "--small"], "cannot be combined with --model"),
        (["--import", "no_such_module"], "No module named 'no_such_module'"),
        (["--import", "string:no_such_function"], "has no attribute 'no_such_function'"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == 2
    written = capsys.readouterr()
    assert written.err.startswith("offload-plus demo: error: ")
    assert message in written.err
    assert written.err.count("\n") == 1
    assert written.out == ""


def test_an_output_that_is_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert main(["demo", "--small", "--device", "cpu", "--output", str(tmp_path / "taken")]) == 2
    assert f"--output {tmp_path / 'taken'}: cannot make this directory" in capsys.readouterr().err


def test_errors_of_the_package_have_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        raise HookConflictError("both at once")

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "offload-plus demo: error: both at once\n"


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run", run)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "offload-plus demo: interrupted\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_what_a_command_needs(name: str) -> None:
    command = importlib.import_module(f"diffusers_offload_plus.commands.{name}")
    assert callable(command.add_arguments)
    assert callable(command.run)


def test_a_plugin_in_the_current_directory_is_imported_and_its_function_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugged_in.py").write_text(
        "calls = []\ndef register():\n    calls.append(1)\ndef fail():\n    1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_plugins(["plugged_in"])
    import_plugins(["plugged_in:register"])
    assert sys.modules.pop("plugged_in").calls == [1]
    with pytest.raises(CommandError, match=r"plugged_in:fail: ZeroDivisionError: division by zero"):
        import_plugins(["plugged_in:fail"])
    sys.modules.pop("plugged_in")
