"""What tests of the disk tier do to a store, and how they look into it."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

import diffusers_offload_plus as dop
from diffusers_offload_plus.offload.hooks.attachment import attachment_of
from diffusers_offload_plus.offload.stores.disk.allocator import DiskAllocator
from diffusers_offload_plus.offload.stores.disk.slab import DiskSlab
from diffusers_offload_plus.offload.stores.disk.store_file import verify_file
from diffusers_offload_plus.offload.stores.mapped_file import MappedFile
from tests.support.models import assert_plain, assert_same, noise


def offload(target: Any, where: torch.device | str, directory: Path | str, **options: Any) -> None:
    """Offload to disk, with a stream where there can be one."""
    where = torch.device(where)
    options = {"use_stream": where.type != "cpu", **options}
    dop.enable_group_offload(target, where, offload_to_disk_path=str(directory), **options)


def twin_of(model: nn.Module, where: torch.device | str) -> nn.Module:
    """An un-offloaded copy on the same device."""
    return copy.deepcopy(model).to(where)


def assert_right(model: nn.Module, twin: nn.Module, where: torch.device | str, passes: int = 2) -> None:
    """Both give the same bits, also in a pass that prefetches."""
    x = noise(where)
    with torch.no_grad():
        for number in range(passes):
            assert_same(model(x), twin(x), f"in pass {number}")


def assert_state(model: nn.Module, twin: nn.Module) -> None:
    """Every weight, as the user sees it, is the twin's."""
    mine, theirs = model.state_dict(), twin.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value.cpu(), theirs[name].cpu()), name


def assert_usable(model: nn.Module, twin: nn.Module, where: torch.device | str, elsewhere: Path) -> None:
    """Nothing was lost: the weights are right, and the model can be offloaded to another directory and back."""
    assert_state(model, twin)
    offload(model, where, elsewhere)
    assert_right(model, twin, where)
    dop.disable_group_offload(model)
    assert_plain(model)
    assert_state(model, twin)


def disk_allocator(model: nn.Module) -> DiskAllocator:
    """The disk allocator of an offloaded model."""
    attachment = attachment_of(model)
    assert attachment is not None
    assert attachment.engine.tiers.disk is not None
    return attachment.engine.tiers.disk


def on_disk(model: nn.Module) -> list[DiskSlab]:
    """The storage of each group that is on disk."""
    attachment = attachment_of(model)
    assert attachment is not None
    return [group.storage for group in attachment.engine.groups if isinstance(group.storage, DiskSlab)]


def objects(directory: Path) -> list[Path]:
    """The kept files."""
    return sorted((directory / "objects").glob("*.safetensors"))


def temporaries(directory: Path) -> list[Path]:
    """What a killed process left half done."""
    return sorted(directory.rglob(".*.tmp"))


def assert_whole(directory: Path) -> None:
    """Every kept file has the bytes it is named by, and every manifest the files it names."""
    for path in objects(directory):
        assert path.stat().st_mode & 0o222 == 0, f"{path} can be written"
        assert verify_file(MappedFile(str(path))) == []
    for path in (directory / "manifests").glob("*.json"):
        for name in json.loads(path.read_text())["objects"]:
            assert (directory / "objects" / name).is_file(), path


@contextlib.contextmanager
def writable(path: Path) -> Iterator[Path]:
    """A kept file, made writable for a while."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    yield path
    path.chmod(mode)


def data_start(path: Path) -> int:
    """Where the header of a safetensors file ends."""
    with path.open("rb") as file:
        return 8 + int(struct.unpack("<Q", file.read(8))[0])


def flip(path: Path, draw: random.Random, count: int = 1, *, data_only: bool = False) -> list[int]:
    """Flip bits of the file in place; returns their byte offsets."""
    first = data_start(path) if data_only else 0
    found = []
    with writable(path), path.open("r+b") as file:
        for _ in range(count):
            offset = draw.randrange(first, path.stat().st_size)
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << draw.randrange(8)]))
            found.append(offset)
    return found


def scramble(path: Path) -> None:
    """Change all tensor data of the file in place."""
    start = data_start(path)
    with writable(path), path.open("r+b") as file:
        file.seek(start)
        data = bytes(255 - byte for byte in file.read())
        file.seek(start)
        file.write(data)


def save_checkpoint(model: nn.Module, path: Path, *, start: int | None = None, modulus: int = 16) -> Path:
    """A safetensors file of the model's state, its data beginning at `start` modulo `modulus`."""
    raw = save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = raw[8 : 8 + length].rstrip(b" "), raw[8 + length :]
    if start is not None:
        header += b" " * ((start - 8 - len(header)) % modulus)
        assert (8 + len(header)) % modulus == start
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@contextlib.contextmanager
def mounted(path: Path, *arguments: str) -> Iterator[Path]:
    """Something mounted at `path`; skips the test where that is not allowed."""
    import subprocess

    path.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["mount", *arguments, str(path)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        if subprocess.run(["umount", str(path)], capture_output=True).returncode != 0:
            subprocess.run(["umount", "--lazy", str(path)], check=True)  # files of the test are still mapped


def drop_cache(path: Path) -> None:
    """Have the system forget its copy of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def address_space(megabytes: int) -> None:
    """Hold the process to so much anonymous memory."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))


def libc() -> ctypes.CDLL:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)
