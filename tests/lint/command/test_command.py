"""``offload-plus lint`` and ``offload-plus rule`` as commands: exit codes, options, files, messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_offload_plus.cli import main
from diffusers_offload_plus.lint.rules.registry import catalogue

from ..toy import write

ROOT = Path(__file__).parents[3]
BAD = "from diffusers.pipelines.flux import FluxPipeline\n"
NOISY = """\
import torch

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam


class ToyStep(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def inputs(self):
        return [InputParam.template("generator")]

    @property
    def intermediate_outputs(self):
        return [OutputParam("noise", type_hint=torch.Tensor, description="Noise.")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.noise = torch.randn((1, 4), generator=block_state.generator, device=components._execution_device)
        self.set_block_state(state, block_state)
        return components, state
"""
FAMILY = "diffusers/modular_pipelines/toy"


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A family with one finding, in the current directory."""
    write(tmp_path, {f"{FAMILY}/denoise.py": BAD, f"{FAMILY}/decoders.py": "x = 1\n"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path


def lint(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["lint", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def found(text: str) -> list[str]:
    return [f"{one['code']}@{one['line']}" for one in json.loads(text)]


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(capsys, FAMILY)[0] == 1
    assert lint(capsys, f"{FAMILY}/decoders.py")[0] == 0
    code, out, err = lint(capsys, "nowhere.py")
    assert (code, out) == (2, "")
    assert err == "offload-plus lint: error: nowhere.py: no such file or directory.\n"


def test_without_a_path_the_current_directory_is_linted(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = lint(capsys, "--format", "json")
    assert (code, found(out)) == (1, ["MOD001@1"])
    assert json.loads(out)[0]["path"] == f"{FAMILY}/denoise.py"


def test_the_module_is_the_command(tree: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.run([sys.executable, *words, "."], cwd=tree, env=environment, capture_output=True, text=True)
        for words in (["-m", "diffusers_offload_plus.lint"], ["-m", "diffusers_offload_plus", "lint"])
    ]
    assert runs[0].stdout == runs[1].stdout
    assert [run.returncode for run in runs] == [1, 1]
    assert "MOD001" in runs[0].stdout


def test_the_standard_library_is_enough(tree: Path) -> None:
    # -S leaves out site-packages, -E all settings of the environment.
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from diffusers_offload_plus.cli import main; "
        "code = main(['lint', '.']); "
        "own = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names); "
        "sys.exit(str(own) if own - {'diffusers_offload_plus', '__main__', '__mp_main__'} else code)"
    )
    done = subprocess.run([sys.executable, "-S", "-E", "-c", code], cwd=tree, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "MOD001" in done.stdout


def test_levels_and_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(capsys, "--level", "MOD001=warning", "--fail-on", "error")[0] == 0
    code, out, _ = lint(capsys, "--level", "MOD001=warning", "--fail-on", "warning", "--format", "json")
    assert (code, json.loads(out)[0]["level"]) == (1, "warning")
    assert lint(capsys, "--level", "standard-pipeline-import=off") == (0, "No findings in 2 files.\n", "")


def test_the_command_line_wins_over_the_file(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "pyproject.toml").write_text("[tool.diffusers-offload-plus.lint]\nignore = ['MOD001']\n")
    assert lint(capsys)[0] == 0
    assert lint(capsys, "--extend-select", "MOD001")[0] == 1
    assert lint(capsys, "--isolated")[0] == 1
    (tree / "other.toml").write_text("exclude = ['denoise.py']\n")
    assert lint(capsys, "--config", "other.toml")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "a.toml", "--isolated"], "--config and --isolated"),
        (["--config", "gone.toml"], "gone.toml: cannot be read: No such file or directory."),
        (["--statistics", "--format", "sarif"], "--statistics: expected --format text or json with it, got sarif."),
        (["--fix", "--write-baseline", "b.json"], "--fix and --write-baseline: expected one of them at a time."),
        (["--checklist", FAMILY, "src"], "expected no further paths, got src."),
        (["--checklist", "nowhere"], "--checklist nowhere: expected the directory of a model family"),
        (["--write-baseline", "b.json", "--diff", "main"], "cannot be combined with --diff or --baseline"),
        (["--baseline", "b.json"], "--baseline b.json: no such file. Make it once with"),
        (["--select", "MOD9999"], "command line: select: 'MOD9999' is no rule."),
        (["--ignore", "cross-famly-import"], "Did you mean cross-family-import?"),
        (["--level", "MOD001=loud"], "--level MOD001: expected a level (error, warning, info, off), got 'loud'."),
        (["--diffusers", FAMILY], "expected the folder of the diffusers package"),
        (["--output", "no/such/dir/x.json"], "no/such/dir/x.json: cannot be written: No such file or directory."),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = lint(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "MOD001"], "expected RULE=LEVEL or RULE:KIND=LEVEL, got 'MOD001'"),
        (["--select", "MOD001,,"], "expected words separated by commas, got 'MOD001,,'"),
        (["--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["lint", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_output_goes_to_a_file(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(capsys, "--format", "json", "--output", "out.json") == (1, "", "")
    assert found((tree / "out.json").read_text()) == ["MOD001@1"]


def test_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = lint(capsys, "--statistics")
    assert out == "1  MOD001  error  standard-pipeline-import\n1  in 1 file\n"


def test_a_baseline_from_writing_to_resolving(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = lint(capsys, "--write-baseline", "known.json")
    assert (code, out) == (0, "")
    assert err == "1 finding listed in known.json; lint with --baseline known.json from now on.\n"
    assert lint(capsys, "--baseline", "known.json")[:2] == (
        0,
        "No findings in 2 files. 1 finding of the baseline left out.\n",
    )
    (tree / FAMILY / "denoise.py").write_text("")
    code, out, _ = lint(capsys, "--baseline", "known.json")
    assert code == 0
    assert out.splitlines()[2:] == [
        "Resolved entries of the baseline, which can be dropped by writing it anew:",
        f"  {FAMILY}/denoise.py: MOD001 {BAD.strip()}",
    ]


def test_fixing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tree / FAMILY / "denoise.py"
    path.write_text(NOISY)
    code, out, err = lint(capsys, "--select", "MOD017", "--diff-only")
    assert code == 1
    assert "+        block_state.noise = randn_tensor(" in out
    assert out.startswith(f"--- {FAMILY}/denoise.py\n+++ {FAMILY}/denoise.py\n@@ ")
    assert err == "1 finding in 1 file would be fixed.\n"
    assert path.read_text() == NOISY
    assert lint(capsys, "--select", "MOD017", "--fix", "--diff-only") == (code, out, err)
    assert path.read_text() == NOISY
    assert lint(capsys, "--select", "MOD017", "--fix") == (
        0,
        "No findings in 2 files.\n",
        "Fixed 1 finding in 1 file.\n",
    )
    assert "from ...utils.torch_utils import randn_tensor\n" in path.read_text()
    assert lint(capsys, "--select", "MOD017", "--diff-only") == (0, "", "0 findings in 0 files would be fixed.\n")


def test_a_named_file_is_read_with_its_siblings(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = NOISY.replace("ToyStep", "ToyBase").replace('    model_name = "toy"\n\n', "", 1)
    write(tree, {"mine/__init__.py": "", "mine/base.py": BAD + base})
    write(tree, {"mine/step.py": "from .base import ToyBase\n\n\nclass Own(ToyBase):\n    pass\n"})
    _, out, _ = lint(capsys, "mine/step.py", "--siblings", "--format", "json")
    assert {one["path"] for one in json.loads(out)} <= {"mine/step.py"}
    assert "1 file" in lint(capsys, "mine/step.py", "--siblings")[1]


def test_colour_and_width_on_a_terminal(tree: Path) -> None:
    pty = pytest.importorskip("pty")
    (tree / FAMILY / "denoise.py").write_text(BAD.replace("FluxPipeline", "FluxPipeline" + ", FluxPipeline" * 12))

    def run(**environment: str) -> str:
        parent, child = pty.openpty()
        command = [sys.executable, "-m", "diffusers_offload_plus", "lint", "."]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60", "TERM": "xterm", **environment}
        with subprocess.Popen(command, cwd=tree, env=env, stdout=child) as process:
            os.close(child)
            shown = b""
            while chunk := _read(parent):
                shown += chunk
            process.wait()
        os.close(parent)
        return shown.decode()

    painted = run()
    assert "\033[31merror" in painted
    assert max(map(len, run(NO_COLOR="1").splitlines())) <= 60
    assert "\033" not in run(NO_COLOR="1")
    assert "\033" not in run(TERM="dumb")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is gone
        return b""


def test_a_reader_that_leaves_is_no_error(tree: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "diffusers_offload_plus", "lint", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_the_terminal_cannot_show_is_spelled_out(tree: Path) -> None:
    (tree / FAMILY / "denoise.py").write_text(BAD.strip() + "  # é 漢\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_offload_plus", "lint", "."], cwd=tree, env=environment, capture_output=True
    )
    assert done.returncode == 1
    assert b"\\xe9 \\u6f22" in done.stdout


def test_rules_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rule"]) == 0
    listed = capsys.readouterr().out
    assert all(rule.code in listed and rule.name in listed for rule in catalogue().rules)
    for word in ("MOD003", "mod003", "guidance-scale-input"):
        assert main(["rule", word]) == 0
        shown = capsys.readouterr().out
        for title in ("MOD003 guidance-scale-input", "Why", "Instead", "Not flagged", "Flagged", "Fine", "gotcha"):
            assert title in shown
    assert main(["rule", "MOD03"]) == 2
    assert "no rule is called 'MOD03'. Did you mean MOD0" in capsys.readouterr().err
