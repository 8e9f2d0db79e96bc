"""Whatever lies in the tree: a finding or a message, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffusers_offload_plus.cli import main
from diffusers_offload_plus.lint.reporting.formats import FORMATS, formatter
from diffusers_offload_plus.lint.rules.registry import catalogue
from diffusers_offload_plus.lint.running.run import Request, run_lint
from diffusers_offload_plus.lint.settings.layers import Settings

from ..toy import write

FAMILY = "diffusers/modular_pipelines/toy"
BLOCKS = "from ..modular_pipeline import ModularPipelineBlocks\n"

FILES: dict[str, bytes] = {
    "empty.py": b"",
    "syntax.py": b"def f(:\n",
    "indentation.py": b"def f():\n        x\n    y\n",
    "latin.py": "x = 'é'\n".encode("latin-1"),
    "declared.py": "# coding: latin-1\nx = 'é'\n".encode("latin-1"),
    "unknown.py": b"# coding: nonsense\n",
    "bom.py": b"\xef\xbb\xbfx = 1\n",
    "utf16.py": "x = 1\n".encode("utf-16"),
    "null.py": b"x = 1\0\n",
    "surrogate.py": b"x = '\\ud800'\n",
    "deep.py": b"x = " + b"(" * 5000 + b")" * 5000,
    "nested.py": b"x = " + b"[" * 90 + b"]" * 90 + b"\n",
    "additions.py": b"x = " + b"1 + " * 20000 + b"1\n",
    "attributes.py": b"x = a" + b".b" * 20000 + b"\n",
    "long.py": b"".join(b"x%d = %d\n" % (i, i) for i in range(10_000)),
    "longline.py": b"x = '" + b"a" * 200_000 + b"'  # noqa: MOD003\n",
    "cr.py": b"x = 1\ry = 2\r",
    "formfeed.py": b"x = 1\n\x0cfrom diffusers.pipelines import y  # noqa: MOD999\n",
    "digits.py": b"x = " + b"9" * 5000 + b"\n",
    "one.py": b"from .two import B\nclass A(B): pass\n",
    "two.py": b"from .one import A\nclass B(A): pass\n",
    "itself.py": b"from .itself import *\nfrom . import itself\nclass C(C): pass\n",
    "unfinished.py": b"x = '''\n# noqa: MOD003",
}


def write_all(root: Path) -> None:
    write(root, {f"{FAMILY}/__init__.py": "", f"{FAMILY}/steps.py": BLOCKS + "class A(ModularPipelineBlocks): pass\n"})
    for name, data in FILES.items():
        (root / FAMILY / name).write_bytes(data)


def test_odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / FAMILY / "broken.py").symlink_to("nowhere.py")
    (tmp_path / FAMILY / "loop").symlink_to(".")
    (tmp_path / FAMILY / "folder.py").mkdir()
    assert main(["lint", "."]) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    for name in ("syntax", "latin", "unknown", "utf16", "null", "deep", "broken", "unfinished"):
        assert f"{FAMILY}/{name}.py\n" in shown.out, name
    assert shown.out.count("MOD000") >= 8
    for name in FORMATS[1:]:
        assert main(["lint", ".", "--format", name]) == 1
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read everything")
def test_files_that_must_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"a.py": "x = 1\n", "d/b.py": "x = 1\n"})
    (tmp_path / "a.py").chmod(0)
    (tmp_path / "d").chmod(0)
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["lint", "."]) == 1
    finally:
        (tmp_path / "d").chmod(0o700)
    assert "cannot be read: Permission denied" in capsys.readouterr().out


def test_a_file_that_vanishes_or_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"a.py": "x = 1\n"})

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert main(["lint", str(tmp_path), "--isolated"]) == 1
    assert "cannot be read: Permission denied" in capsys.readouterr().out


def test_fixing_leaves_odd_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {name: (tmp_path / FAMILY / name).read_bytes() for name in FILES}
    assert main(["lint", ".", "--fix"]) == 1
    assert {name: (tmp_path / FAMILY / name).read_bytes() for name in FILES} == before


PIECES = st.sampled_from(
    [
        "class A(ModularPipelineBlocks):",
        "class B(A, metaclass=M):",
        "    model_name = 'toy'",
        "    def __call__(self, components, state):",
        "        block_state = self.get_block_state(state)",
        "        block_state.x = getattr(components, 'vae', None)",
        "        return components, state",
        "    @property",
        "    def inputs(self): return [InputParam('guidance_scale', default=1)]",
        "from diffusers.pipelines import x",
        "import torch as t; t.randn(1, device=d)",
        "# noqa: MOD001",
        "x = 1  # noqa: MOD001, MOD777",
        "if x:",
        "    pass",
        "'''",
        "\f",
        "\\",
        "é = '漢'",
    ]
)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=14))
def test_any_text_is_linted_and_shown(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    root = tmp_path_factory.mktemp("any", numbered=True)
    text = BLOCKS + "\n".join(lines)
    write(root, {f"{FAMILY}/denoise.py": text})
    request = Request(paths=[root], settings=Settings(catalogue()))
    report = run_lint(request)
    assert report.findings == sorted(report.findings)
    assert run_lint(request).findings == report.findings
    for name in FORMATS:
        formatter(name)(report)
    for finding in report.findings:
        assert (finding.line, finding.column) <= (finding.end_line, finding.end_column)
        assert finding.line <= text.count("\n") + 2
