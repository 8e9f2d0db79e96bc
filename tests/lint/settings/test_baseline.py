"""Known findings: robust to moved lines, and honest about what is resolved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffusers_offload_plus.lint.core.errors import LintError
from diffusers_offload_plus.lint.running.report import Report
from diffusers_offload_plus.lint.settings.baseline import Baseline

from ..toy import lint, places, settings, write

TEXT = """\
class Bad:
    def f(self):
        bad
        bad

    def g(self):
        bad
"""


def known(root: Path) -> Path:
    """A baseline of what is found below ``root`` now."""
    report = lint(root)
    path = root / "baseline.json"
    Baseline.of(path, report.findings, report.text).write()
    return path


def after(root: Path, text: str, baseline: Path) -> Report:
    write(root, {"a.py": text})
    return lint(root, baseline=baseline)


def test_known_findings_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": TEXT})
    report = after(tmp_path, TEXT, known(tmp_path))
    assert (list(report.findings), report.known, list(report.resolved)) == ([], 4, [])


def test_lines_may_move_and_change_their_spaces(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": TEXT})
    moved = "import x\n\n\n" + TEXT.replace("        bad\n\n", "        x = 1\n        bad   \n\n")
    assert list(after(tmp_path, moved, known(tmp_path)).findings) == []


def test_one_more_of_the_same_is_new(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": TEXT})
    baseline = known(tmp_path)
    report = after(tmp_path, TEXT.replace("        bad\n        bad\n", "        bad\n" * 3), baseline)
    assert places(report.findings) == ["a.py:5 MOD901"]
    report = after(tmp_path, TEXT + "    def h(self):\n        bad\n", baseline)
    assert places(report.findings) == ["a.py:9 MOD901"]


def test_what_is_gone_is_reported_as_resolved(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": TEXT, "b.py": "bad\n"})
    baseline = known(tmp_path)
    report = after(tmp_path, TEXT.replace("class Bad", "class Good").replace("def f", "def k"), baseline)
    assert places(report.findings) == ["a.py:3 MOD901", "a.py:4 MOD901", "a.py:7 MOD901"]
    assert [(one.scope, one.code) for one in report.resolved] == [
        ("Bad", "MOD902"),
        ("Bad.f", "MOD901"),
        ("Bad.f", "MOD901"),
        ("Bad.g", "MOD901"),
    ]


def test_only_what_was_looked_at_can_be_resolved(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": TEXT, "b.py": "bad\nwrong()\n"})
    baseline = known(tmp_path)
    write(tmp_path, {"a.py": "", "b.py": ""})
    assert {one.path for one in lint(tmp_path / "a.py", baseline=baseline).resolved} == {"a.py"}
    chosen = lint(tmp_path, baseline=baseline, using=settings(select=("MOD911",)))
    assert [one.code for one in chosen.resolved] == ["MOD911"]
    (tmp_path / "b.py").unlink()
    assert {one.path for one in lint(tmp_path / "a.py", baseline=baseline).resolved} == {"a.py", "b.py"}


def test_it_works_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"src/a.py": TEXT})
    baseline = known(tmp_path)
    assert '"src/a.py"' in baseline.read_text()
    monkeypatch.chdir(tmp_path / "src")
    assert not lint(Path("a.py"), baseline=Path("../baseline.json")).findings


def test_the_file_reads_well_in_a_diff(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": TEXT})
    lines = known(tmp_path).read_text().splitlines()
    assert json.loads(lines[4].rstrip(",")) == {
        "path": "a.py",
        "scope": "Bad.f",
        "code": "MOD901",
        "source": "bad",
        "count": 2,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file. Make it once with `--write-baseline"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "expected a baseline of version 1"),
        ('{"version": 2, "findings": []}', "expected a baseline of version 1"),
        ('{"version": 1, "findings": [1]}', "findings[0]: expected an object"),
        (
            '{"version": 1, "findings": [{"path": "", "scope": "", "code": "", "source": "", "count": true}]}',
            "count: expected a whole number of at least 1, got True",
        ),
    ],
)
def test_a_file_that_is_no_baseline(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LintError) as raised:
        Baseline.read(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["bad", "wrong()", "good", "def f(): bad", "class Bad: ..."]), max_size=8))
def test_a_baseline_holds_all_findings_and_survives_writing(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    root = tmp_path_factory.mktemp("baseline", numbered=True)
    write(root, {"a.py": "\n".join(lines)})
    report = lint(root, baseline=known(root))
    assert (list(report.findings), list(report.resolved)) == ([], [])
