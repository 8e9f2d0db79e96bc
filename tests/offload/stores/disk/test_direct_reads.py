"""Reading past the page cache: the same bytes, whatever the alignment, and only where it pays and is possible."""

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
from diffusers_offload_plus.offload.stores import direct
from diffusers_offload_plus.offload.stores.direct import PAGE, in_memory
from diffusers_offload_plus.offload.stores.mapped_file import MappedFile
from tests.offload.stores.disk.setup import (
    assert_right,
    assert_state,
    drop_cache,
    mounted,
    offload,
    on_disk,
    save_checkpoint,
    twin_of,
)
from tests.support.models import Stack, noise, seeded

SIZE = (4 << 20) + 777


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "SMALLEST", 1)
    monkeypatch.setattr(direct, "CHUNK", 64 * PAGE)


@pytest.fixture
def file(tmp_path: Path) -> MappedFile:
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    drop_cache(path)
    mapped = MappedFile(str(path))
    if in_memory(mapped.address, SIZE) == 1:
        pytest.skip("this file system is in memory")
    probe = torch.empty(2 * PAGE, dtype=torch.uint8)
    mapped.direct.read(mapped.fileno(), probe, 0)
    if mapped.direct._refused:
        pytest.skip("this file system reads by way of the cache alone")
    mapped.direct.bytes = 0
    return mapped


def guarded(nbytes: int, misaligned: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory at an address that is `misaligned` to pages, and a larger tensor around it."""
    around = torch.full((nbytes + 4 * PAGE,), 0x5A, dtype=torch.uint8)
    start = -around.data_ptr() % PAGE + PAGE + misaligned
    return around[start : start + nbytes], around


@pytest.mark.parametrize("seed", range(40))
def test_ranges_of_every_alignment(seed: int, file: MappedFile) -> None:
    draw = random.Random(seed)
    misaligned = draw.choice([0, 64, 512, 1, PAGE - 1, draw.randrange(PAGE)])
    offset = draw.choice([0, PAGE, misaligned, draw.randrange(SIZE)])
    nbytes = draw.choice([1, PAGE - 1, PAGE, 2 * PAGE + 1, draw.randrange(1, SIZE), SIZE])
    nbytes = min(nbytes, SIZE - offset)
    target, around = guarded(nbytes, misaligned)
    file.read_past_cache(target, offset)
    want = Path(file.path).read_bytes()[offset : offset + nbytes]
    assert target.numpy().tobytes() == want
    first = target.data_ptr() - around.data_ptr()
    assert bool((around[:first] == 0x5A).all()), "written before the memory"
    assert bool((around[first + nbytes :] == 0x5A).all()), "written behind the memory"
    if nbytes > 4 * PAGE:
        assert file.direct.bytes > nbytes - 3 * PAGE


def test_nothing_gets_into_the_cache(file: MappedFile) -> None:
    target, _ = guarded(1 << 20, 64)
    file.read_past_cache(target, 2 << 20)
    assert in_memory(file.address + (2 << 20) + 2 * PAGE, (1 << 20) - 4 * PAGE) < 0.5


def test_what_is_in_the_cache_is_read_from_there(file: MappedFile) -> None:
    Path(file.path).read_bytes()
    target, _ = guarded(1 << 20, 64)
    file.read_past_cache(target, 5)
    assert file.direct.bytes == 0
    assert target.numpy().tobytes() == Path(file.path).read_bytes()[5 : 5 + (1 << 20)]


def test_memory_that_is_free_again_is_noticed(file: MappedFile) -> None:
    """A range that is not in the cache gets there once in a while."""
    target, _ = guarded(1 << 20, 0)
    seen = []
    for _ in range(direct.THROUGH_CACHE + 1):
        before = file.direct.bytes
        file.read_past_cache(target, 0)
        seen.append(file.direct.bytes > before)
    assert seen == [True] * (direct.THROUGH_CACHE - 1) + [False, False]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("step", ["open", "preadv"])
def test_a_file_system_that_refuses_is_asked_once(
    code: int, step: str, file: MappedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = MappedFile(file.path)
    asked: list[Any] = []
    original = getattr(os, step)

    def refusing(*arguments: Any) -> Any:
        is_direct = arguments[1] & os.O_DIRECT if step == "open" else arguments[0] == again.direct._descriptor
        if is_direct:
            asked.append(arguments)
            raise OSError(code, os.strerror(code))
        return original(*arguments)

    monkeypatch.setattr(os, step, refusing)
    for offset in (0, 1 << 20, 2 << 20):
        drop_cache(Path(file.path))
        target, _ = guarded(1 << 20, 64)
        again.read_past_cache(target, offset)
        assert torch.equal(target, again.bytes(offset, 1 << 20))
    assert len(asked) == 1
    assert again.direct.bytes == 0


def test_an_error_of_the_disk_is_raised_with_the_name(file: MappedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.preadv

    def failing(descriptor: int, *arguments: Any) -> int:
        if descriptor == file.direct._descriptor:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(descriptor, *arguments)

    monkeypatch.setattr(os, "preadv", failing)
    target, _ = guarded(1 << 20, 64)
    with pytest.raises(dop.DiskTierError, match="Input/output error") as caught:
        file.read_past_cache(target, 0)
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == file.path


def test_a_fork_in_the_middle_of_a_read(file: MappedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk brought may be in the other process's page."""
    original = os.preadv
    lost: list[int] = []

    def forking(descriptor: int, buffers: list[Any], offset: int) -> int:
        count = original(descriptor, buffers, offset)
        if descriptor == file.direct._descriptor and len(lost) < 1:
            process = os.fork()
            if process == 0:
                os._exit(0)
            os.waitpid(process, 0)
            buffers[0][:] = bytes(len(buffers[0]))
            lost.append(offset)
        return count

    monkeypatch.setattr(os, "preadv", forking)
    target, _ = guarded(2 << 20, 64)
    file.read_past_cache(target, 3)
    assert lost
    assert torch.equal(target, file.bytes(3, 2 << 20))


def test_a_file_that_has_become_shorter(file: MappedFile) -> None:
    os.truncate(file.path, 3 << 20)
    drop_cache(Path(file.path))
    target, _ = guarded(2 << 20, 64)
    with pytest.raises(dop.FileChangedError, match="ends at byte"):
        file.read_past_cache(target, 2 << 20)


def test_a_file_system_in_memory(tmp_path: Path) -> None:
    with mounted(tmp_path / "memory", "-t", "tmpfs", "none") as folder:
        (folder / "file").write_bytes(bytes(range(256)) * 5000)
        mapped = MappedFile(str(folder / "file"))
        target, _ = guarded(1 << 20, 64)
        mapped.read_past_cache(target, 77)
        assert torch.equal(target, mapped.bytes(77, 1 << 20))
        assert mapped.direct.bytes == 0


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
        assert direct.residency_is_told(descriptor) is told
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
        drop_cache(Path(file.path))
        again.read_past_cache(guarded(1 << 20, 0)[0], 0)
        assert again.direct._descriptor is not None
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
    assert sum(file.direct.bytes for file in files) > 0 or path.stat().st_dev == os.stat("/dev/shm").st_dev
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
