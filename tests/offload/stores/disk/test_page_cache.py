"""Mapped files that the page cache holds, has lost, or that have become shorter: the same bytes, or a named error."""

from __future__ import annotations

import errno
import gc
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.stores.mapped_file import MappedFile
from diffusers_offload_plus.offload.stores.page_cache import PAGE, in_memory, residency_is_told
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    drop_cache,
    offload,
    on_disk,
    save_checkpoint,
    twin_of,
)
from tests.support.models import Stack, noise, seeded

SIZE = (4 << 20) + 777


@pytest.fixture
def file(tmp_path: Path) -> MappedFile:
    """A file of which the page cache holds nothing."""
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    drop_cache(path)
    mapped = MappedFile(str(path))
    if in_memory(mapped.address, SIZE):
        pytest.skip("this file system is in memory")
    return mapped


def test_a_range_is_in_memory_if_all_its_pages_are(file: MappedFile) -> None:
    file.bytes(0, 1).item()
    assert in_memory(file.address + 1, PAGE - 1)
    os.posix_fadvise(file.fileno(), SIZE // 2, 0, os.POSIX_FADV_DONTNEED)  # the system may have read far ahead
    assert not in_memory(file.address + 1, SIZE - 1)
    file.populate(0, SIZE)
    assert in_memory(file.address + 1, SIZE - 1)


@pytest.mark.parametrize("cold", [True, False])
def test_reading_at_any_offset(cold: bool, file: MappedFile) -> None:
    draw = random.Random(1)
    want = Path(file.path).read_bytes()
    for _ in range(20):
        if cold:
            drop_cache(Path(file.path))
        offset = draw.randrange(SIZE)
        target = torch.empty(draw.randrange(1, SIZE - offset + 1), dtype=torch.uint8)
        file.read_into(target, offset)
        assert target.numpy().tobytes() == want[offset : offset + target.numel()]


def test_an_error_of_the_disk_is_raised_with_the_name(file: MappedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(dop.DiskTierError, match="Input/output error") as caught:
        file.read_into(torch.empty(1 << 20, dtype=torch.uint8), 0)
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == file.path


def test_a_file_that_has_become_shorter(file: MappedFile) -> None:
    os.truncate(file.path, 3 << 20)
    with pytest.raises(dop.FileChangedError, match="ends at byte"):
        file.read_into(torch.empty(2 << 20, dtype=torch.uint8), 2 << 20)


def test_mapped_pages_are_asked_for_at_once_if_they_are_not_there(
    file: MappedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(file, "read_ahead", lambda *range_: asked.append(range_))
    file.populate(0, 2 << 20)
    assert asked == [(0, 2 << 20)]
    file.populate(0, 2 << 20)
    assert len(asked) == 1, "now they are there"


def test_pages_are_asked_for_where_the_system_does_not_tell(file: MappedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls every page of such files present."""
    file.populate(0, 2 << 20)
    asked: list[int] = []
    monkeypatch.setattr(file, "_advise", lambda *_: asked.append(1) or 0)
    file.populate(0, 2 << 20)
    assert not asked
    monkeypatch.setattr(file, "_residency_is_told", False)
    file.populate(0, 2 << 20)
    assert asked


@pytest.mark.parametrize(("path", "told"), [("/etc/passwd", False), ("/dev/null", True), (None, True)])
def test_of_whose_files_the_system_tells_what_is_in_memory(path: str | None, told: bool, tmp_path: Path) -> None:
    """Not of those that only others own and may write; of one's own even if it may not be written."""
    mine = tmp_path / "file"
    mine.write_bytes(bytes(PAGE))
    mine.chmod(0o444)
    superuser = os.geteuid() == 0
    if superuser:
        os.chown(mine, 65534, 65534)
    descriptor = os.open(path or mine, os.O_RDONLY)
    if superuser:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        assert residency_is_told(descriptor) is told
    finally:
        if superuser:
            os.seteuid(0)
            os.setegid(0)
        os.close(descriptor)


def test_descriptors_are_given_back(file: MappedFile) -> None:
    gc.collect()  # files of earlier tests
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        again = MappedFile(file.path)
        again.read_into(torch.empty(1 << 20, dtype=torch.uint8), 0)
        del again
    assert len(os.listdir("/proc/self/fd")) == count


@pytest.mark.parametrize("start", [0, 8, 7])
def test_a_model_on_a_cold_disk(start: int, device: torch.device, tmp_path: Path) -> None:
    """Written weights too: the mapping is the truth where it has pages of its own."""
    model = seeded(lambda: Stack(3, lambda: nn.Sequential(nn.Linear(32, 2000), nn.Linear(2000, 32))))
    twin = twin_of(model, device)
    path = save_checkpoint(model, tmp_path / "model.safetensors", start=start)
    offload(model, device, tmp_path / "store", checkpoint=str(path))
    files = {file for slab in on_disk(model) for file in slab.files()}
    with torch.no_grad():
        for number in range(3):
            evict(path, files)
            assert_right(model, twin, device, passes=1)
            parameter = f"blocks.{number}.0.weight"
            model.get_parameter(parameter)[number::3].mul_(1.5)
            twin.get_parameter(parameter)[number::3].mul_(1.5)
    assert_right(model, twin, device)
    assert_state(model, twin)
    with torch.no_grad():
        model(noise(device))
    dop.disable_group_offload(model)
    assert_state(model, twin)


def evict(path: Path, files: set[MappedFile]) -> None:
    """Have the system forget what it has of the file; mapped pages are only forgotten when they are not needed."""
    for file in files:
        file._advise(0, file.size, 21)  # MADV_PAGEOUT: also what the process has written, if there is swap
    drop_cache(path)
