"""The hooks for pre-commit: they work, and bring no torch although the package depends on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from diffusers_offload_plus.cli import main

from ..toy import write

ROOT = Path(__file__).parents[3]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
CONFIGURATION = """\
repos:
  - repo: {source}
    rev: {revision}
    hooks:
      - id: {hook}
"""


def test_hooks_leave_out_dependencies() -> None:
    assert [hook["id"] for hook in HOOKS] == ["offload-plus-lint", "offload-plus-lint-fix"]
    for hook in HOOKS:
        assert hook["language"] == "python"
        assert hook["additional_dependencies"][0] == "--no-deps"
        assert not any("torch" in word for word in hook["additional_dependencies"])


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_the_entry_is_a_command_that_works(
    hook: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = hook["entry"].split()
    assert program == "offload-plus"
    text = (
        "from diffusers import FluxPipeline, ModularPipelineBlocks\n\n\nclass Step(ModularPipelineBlocks):\n    pass\n"
    )
    write(tmp_path, {"mine/blocks.py": text})
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "mine/blocks.py"]) == 1
    assert "MOD001" in capsys.readouterr().out


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("pre-commit") is None, reason="pre-commit is not installed")
@pytest.mark.parametrize("hook", [hook["id"] for hook in HOOKS])
def test_pre_commit_installs_and_runs_the_hook_without_torch(hook: str, tmp_path: Path) -> None:
    def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "home")}
        return subprocess.run(
            command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=check
        )

    step = (
        "import torch\nfrom diffusers import FluxPipeline\n"
        "from diffusers.modular_pipelines import ModularPipelineBlocks\n\n\n"
        "class Step(ModularPipelineBlocks):\n    def __call__(self, components, state):\n"
        "        block_state = self.get_block_state(state)\n        components.maybe_free_model_hooks()\n"
        "        self.set_block_state(state, block_state)\n        return components, state\n"
    )
    write(tmp_path / "work", {"mine/__init__.py": "", "mine/blocks.py": step})
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    write(
        tmp_path / "work",
        {".pre-commit-config.yaml": CONFIGURATION.format(source=ROOT, revision=revision, hook=hook)},
    )
    run("git", "init", "-q")
    run("git", "add", "-A")
    done = run("pre-commit", "run", "--all-files", check=False)
    assert done.returncode == 1, done.stderr
    assert "MOD001" in done.stdout, done.stdout
    fixed = "components.maybe_free_model_hooks()" not in (tmp_path / "work/mine/blocks.py").read_text()
    assert fixed is hook.endswith("-fix"), done.stdout
    installed = {path.name for path in (tmp_path / "home").glob("repo*/py_env*/lib*/python*/site-packages/*")}
    assert {"diffusers_offload_plus", "diffusers"} <= installed
    assert "torch" not in installed
