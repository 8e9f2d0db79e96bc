"""A disk that takes bytes into its cache and fails to write them: the weights in memory are not let go of."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from tests.offload.stores.disk.setup import assert_right, assert_usable, mounted, offload, save_checkpoint, twin_of
from tests.support.models import Stack, assert_plain, seeded


@contextlib.contextmanager
def overcommitted_disk(path: Path) -> Iterator[Path]:
    """A file system of 64 MiB on 8 MiB of room: what is written is accepted, and fails to reach the disk."""
    with mounted(path / "small", "-t", "tmpfs", "-o", "size=8m", "none") as small:
        image = small / "image"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        try:
            made = subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no `mkfs.ext4` here")
        assert made.returncode == 0, made.stderr
        with mounted(path / "disk", "-o", "loop,errors=continue", str(image)) as disk:
            yield disk


def large() -> Stack:
    """About 16 MB, so that a part of it cannot get onto that disk."""
    return Stack(4, lambda: nn.Sequential(nn.Linear(32, 16_000), nn.Linear(16_000, 32)))


def test_bytes_that_the_disk_fails_to_write_are_not_let_go_of(where: torch.device, tmp_path: Path) -> None:
    """They can be read back at first, from the cache; later they would be zeros."""
    model = seeded(large)
    twin = twin_of(model, where)
    with overcommitted_disk(tmp_path) as disk:
        for keep in (False, True):
            with pytest.raises(dop.DiskTierError, match="disk") as caught:
                offload(model, where, disk / "store", keep=keep)
            assert caught.value.errno is not None
            assert_plain(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")


@pytest.mark.parametrize("use", ["set-up", "stored anew", "copy"])
def test_every_way_to_write_waits_for_the_disk(
    use: str, where: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with an injected error: nothing of the model is lost, and without the error it goes on."""
    model = seeded(Stack)
    file = save_checkpoint(model, tmp_path / "model.safetensors")
    if use == "stored anew":
        offload(model, where, tmp_path / "store")
        model.blocks[1].up.weight.data = torch.ones(64, 32)  # type: ignore[union-attr]
    twin = seeded(Stack)
    twin.load_state_dict(model.state_dict())
    twin = twin.to(where)
    failed = []

    def failing(descriptor: int) -> None:
        failed.append(os.fstat(descriptor).st_size)
        raise OSError(5, os.strerror(5))

    options = {"checkpoint": str(file), "protect": "copy"} if use == "copy" else {}

    def again() -> None:
        if use == "stored anew":
            assert_right(model, twin, where, passes=1)
        else:
            offload(model, where, tmp_path / "store", **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(dop.DiskTierError, match="Input/output error") as caught:
            again()
    assert caught.value.errno == 5
    assert failed
    if use != "stored anew":
        assert_plain(model)
    again()
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_usable(model, twin, where, tmp_path / "elsewhere")
