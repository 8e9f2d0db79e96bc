"""``--fix``: files keep what is theirs, and fixing is idempotent, verified and goes on until nothing is left."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffusers_offload_plus.lint.core.errors import LintError
from diffusers_offload_plus.lint.core.finding import Finding
from diffusers_offload_plus.lint.fixes.apply import fix_files
from diffusers_offload_plus.lint.fixes.edits import Edits
from diffusers_offload_plus.lint.fixes.fixers import FIXERS
from diffusers_offload_plus.lint.rules.registry import catalogue
from diffusers_offload_plus.lint.running.run import examine

from ..running.test_changes import git
from .fixing import FAMILY, INPUTS, NOISE, READ, STRENGTH, block, findings_in, fix, request


def test_encoding_newlines_mode_and_links_stay(tmp_path: Path) -> None:
    text = "# -*- coding: latin-1 -*-\n" + block(
        "vae = getattr(components, 'vae', None)  # é\nblock_state.noise = vae(1)"
    )
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    real = tmp_path / "real.txt"
    data = text.replace("\n", "\r\n").encode("latin-1")
    real.write_bytes(data)
    real.chmod(0o640)
    path.symlink_to(real)
    fixed = fix_files(request(tmp_path, "MOD012"))
    assert [file.path for file in fixed.files] == [path.as_posix()]
    fixed.files[0].write()
    assert real.read_bytes() == data.replace(b"getattr(components, 'vae', None)", b"components.vae")
    assert real.stat().st_mode & 0o777 == 0o640
    assert path.is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["diffusers", "real.txt"]


def test_a_file_that_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(block("vae = getattr(components, 'vae', None)\nblock_state.noise = vae(1)"))
    fixed = fix_files(request(tmp_path, "MOD012"))
    path.write_text("# somebody was faster\n")
    with pytest.raises(LintError, match="has changed while it was being linted"):
        fixed.files[0].write()
    assert path.read_text() == "# somebody was faster\n"


TWO = block(
    "vae = getattr(components, 'vae', None)\n"
    "other = getattr(components, 'scheduler', None)\n"
    "block_state.noise = vae(other)"
)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda edits: edits.module.code, "did not make the finding go away"),
        (lambda edits: "def f(:", "could not be parsed"),
        (lambda edits: edits.module.code + "\n\nfrom ...pipelines import x\n", "would bring MOD001"),
    ],
)
def test_a_fix_that_does_not_help_is_dropped(
    wrong: Callable[[Edits], str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FIXERS["MOD012"]

    def sometimes(edits: Edits, finding: Finding) -> None:
        if "scheduler" in finding.message:
            monkeypatch.setattr(edits, "code", lambda: wrong(edits))
        else:
            right(edits, finding)

    monkeypatch.setitem(FIXERS, "MOD012", sometimes)
    after, fixed = fix(tmp_path, TWO, "MOD012")
    assert "vae = components.vae\n" in after
    assert "getattr(components, 'scheduler', None)" in after
    assert "def f(:" not in after
    assert fixed.fixed == 1
    assert reason in fixed.notes[0]


def test_only_what_is_reported_is_fixed(tmp_path: Path) -> None:
    text = TWO.replace("'scheduler', None)", "'scheduler', None)  # noqa: MOD012")
    after, fixed = fix(tmp_path, text, "MOD012")
    assert fixed.fixed == 1
    assert "getattr(components, 'scheduler', None)  # noqa: MOD012" in after


STATEMENTS = st.sampled_from(
    [
        "vae = getattr(components, 'vae', None)",
        "x = getattr(getattr(components, 'vae', None), 'config', getattr(block_state, 'generator', None))",
        "block_state.device = components._execution_device",
        "block_state.device, size = components._execution_device, block_state.device",
        "block_state.seed = block_state.seed + 1",
        "if block_state.generator is None:\n    block_state.generator = 1",
        "if block_state.strength is None:\n    block_state.strength = 0.5",
        "components.maybe_free_model_hooks()",
        "for i in range(2):\n    components.maybe_free_model_hooks()",
        "if size:\n    return components, state",
        "noise = torch.randn((1, 2), generator=block_state.generator, device=block_state.device)",
        "noise = torch.randn(*size, 1, device=block_state.device, generator=block_state.generator)",
        "components.unet.to(getattr(block_state, 'device', None))",
        "self.set_block_state(state, block_state)",
    ]
)


@hypothesis_settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.lists(STATEMENTS, max_size=7), st.booleans())
def test_fixing_twice_is_fixing_once(
    tmp_path_factory: pytest.TempPathFactory, statements: list[str], ends: bool
) -> None:
    text = block("\n".join([NOISE, *statements]), INPUTS + STRENGTH.format(", required=True"))
    if not ends:
        text = text.replace("        self.set_block_state(state, block_state)\n        return", "        return")
    root = tmp_path_factory.mktemp("fix", numbered=True)
    before = Counter(finding.code for finding in findings_in(root, text))
    fix(root, text)  # fixes a second time and sees that nothing changes
    after = Counter(finding.code for finding in examine(request(root)).findings)
    assert after <= before


OFFLOAD = "components.maybe_free_model_hooks(block_state.strength)\n"
DEFAULT = "if block_state.strength is None:\n    block_state.strength = 0.5\n"


def test_a_diff_is_fixed_until_nothing_more_can_be(tmp_path: Path) -> None:
    old = block(OFFLOAD + READ, INPUTS + STRENGTH.format(""))
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(old)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    # Only without the call that reads the input can its default move to the declaration, which is above the new lines.
    new = block(OFFLOAD + DEFAULT + READ, INPUTS + STRENGTH.format("")).split("class ToyStep")[1]
    path.write_text(f"{old}\n\nclass ToyNewStep{new}")
    select = ("MOD019", "MOD042")
    fixed = fix_files(request(tmp_path, *select, diff="HEAD"))
    assert [file.after for file in fixed.files] == [
        f"{old}\n\nclass ToyNewStep" + block(READ, INPUTS + STRENGTH.format(", default=0.5")).split("class ToyStep")[1]
    ]
    assert fixed.fixed == 2


def test_every_fixable_rule_has_a_fix() -> None:
    fixable = {rule.code for rule in catalogue().rules if rule.fixable}
    assert fixable <= set(FIXERS)


def test_without_libcst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FAMILY / "before_denoise.py"
    path.parent.mkdir(parents=True)
    path.write_text(TWO)
    monkeypatch.setitem(sys.modules, "libcst", None)
    with pytest.raises(LintError, match=r"pip install 'diffusers-offload-plus\[fix\]'"):
        fix_files(request(tmp_path))
    path.write_text("x = 1\n")  # said at once, whether or not there is something to fix
    with pytest.raises(LintError, match="need libcst"):
        fix_files(dataclasses.replace(request(tmp_path), paths=[path]))
