"""The page that ``make gpu`` writes, on commands that take no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_page
from benchmarks.gpu_page import Part, main


def test_what_failed_and_what_was_stopped_is_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(text: str, code: int = 0) -> tuple[str, ...]:
        return "-c", f"print({text!r}); raise SystemExit({code})"

    chosen = [
        Part("good", say("3 passed | all"), 0.4),
        Part("bad", say("FAILED tests/one.py::two", 1), 0.4),
        Part("slow", ("-c", "import time; print('begun', flush=True); time.sleep(600)"), 0.2),
        Part("elsewhere", say("never"), 0.1, only_cuda=True),
    ]
    monkeypatch.setattr(gpu_page, "parts", lambda *_: chosen)
    (tmp_path / "steps.md").write_text("a table")
    assert main(["--device", "sim", "--output", str(tmp_path), "--minutes", "0.2"]) == 1
    page = (tmp_path / "page.md").read_text()
    assert page.strip() == capsys.readouterr().out.strip()
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    assert "passed" in rows["good"]
    assert "3 passed / all" in rows["good"]
    assert "failed with exit code 1" in rows["bad"]
    assert "stopped" in rows["slow"]
    assert "elsewhere" not in rows
    assert "- `FAILED tests/one.py::two`" in page
    assert "a table" in page


def test_only_some_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [Part(name, ("-c", "print('done')"), 0.5) for name in ("one", "two")]
    monkeypatch.setattr(gpu_page, "parts", lambda *_: chosen)
    assert main(["--device", "sim", "--output", str(tmp_path), "--only", "two"]) == 0
    assert not (tmp_path / "one.txt").exists()
    assert (tmp_path / "two.txt").read_text() == "done\n"
