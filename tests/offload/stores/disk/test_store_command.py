"""``offload-plus store``: list, verify, gc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.cli import main
from tests.support.models import Stack, noise, seeded


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that keeps one model, which no process uses any more."""
    keep(seeded(Stack), tmp_path / "store")
    return tmp_path / "store"


def keep(model: nn.Module, store: Path) -> None:
    dop.enable_group_offload(model, "cpu", offload_to_disk_path=store, keep=True)
    dop.disable_group_offload(model)


def flip(path: Path, offset: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def only_object(store: Path) -> Path:
    (found,) = (store / "objects").iterdir()
    return found


def test_list(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "list", str(store)]) == 0
    said = capsys.readouterr().out
    assert "(Stack): " in said
    assert "in 1 file, stored on 20" in said
    assert f"objects/{only_object(store).name}" in said
    assert main(["store", "list", str(store.parent)]) == 0
    assert "nothing is stored here" in capsys.readouterr().out


def test_list_names_what_is_missing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = only_object(store).name
    only_object(store).unlink()
    (store / "manifests" / "torn.json").write_text('{"label": ')
    assert main(["store", "list", str(store)]) == 1
    said = capsys.readouterr().out
    assert f"MISSING: {name}" in said
    assert "torn.json: not a manifest" in said


def test_verify(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(store)]) == 0
    assert "1 whole, 0 wrong" in capsys.readouterr().out
    flip(only_object(store), only_object(store).stat().st_size // 2)
    assert main(["store", "verify", str(store)]) == 1
    said = capsys.readouterr().out
    assert "0 whole, 1 wrong" in said
    assert only_object(store).name in said


def test_verify_of_files_that_are_none_of_ours(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "objects" / "strange.safetensors").write_bytes(b"nothing of the kind")
    assert main(["store", "verify", str(store)]) == 1
    assert "strange.safetensors: not a whole safetensors file" in capsys.readouterr().out


def test_gc_keeps_what_is_needed_and_removes_the_rest(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed = only_object(store)
    (store / "objects" / ".left.tmp").write_bytes(b"x" * 100)
    (store / "objects" / "needed-by-nobody.safetensors").write_bytes(b"x" * 1000)
    assert main(["store", "gc", str(store), "--dry-run"]) == 0
    assert "would free 1.1 KiB" in capsys.readouterr().out
    assert len(list((store / "objects").iterdir())) == 3
    assert main(["store", "gc", str(store)]) == 0
    assert "freed 1.1 KiB" in capsys.readouterr().out
    assert list((store / "objects").iterdir()) == [needed]
    next((store / "manifests").iterdir()).unlink()
    assert main(["store", "gc", str(store)]) == 0
    assert not list((store / "objects").iterdir())


def test_gc_leaves_what_a_live_process_uses(store: Path) -> None:
    model, x = seeded(Stack), noise(torch.device("cpu"))
    want = seeded(Stack)(x)
    dop.enable_group_offload(model, "cpu", offload_to_disk_path=store, keep=True)
    next((store / "manifests").iterdir()).unlink()
    collecting = [sys.executable, "-m", "diffusers_offload_plus", "store", "gc", str(store)]
    assert "freed 0 B" in subprocess.run(collecting, capture_output=True, text=True, check=True).stdout
    assert only_object(store)
    assert torch.equal(model(x), want)
    dop.disable_group_offload(model)
    del model
    assert "freed 0 B" not in subprocess.run(collecting, capture_output=True, text=True, check=True).stdout
    assert not list((store / "objects").iterdir())


def test_a_wrong_file_is_not_used_again(store: Path) -> None:
    model, x = seeded(Stack), noise(torch.device("cpu"))
    want = seeded(Stack)(x)
    for share in (3, 2):
        flip(only_object(store), only_object(store).stat().st_size * share // 4)
    dop.enable_group_offload(model, "cpu", offload_to_disk_path=store)
    report = dop.offload_report(model).components[0]
    assert report.disk_written_bytes > 0
    assert torch.equal(model(x), want)
    assert "of which written" in str(dop.offload_report(model))
    dop.disable_group_offload(model)


@pytest.mark.parametrize("action", ["list", "verify", "gc"])
def test_no_directory(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", action, str(tmp_path / "none")]) == 2
    assert "DIR must be an existing directory" in capsys.readouterr().err
