"""Writing weights to a safetensors file, each at a multiple of 64 bytes, so that a CPU computes with it in place.

[Note: on the disk, not in its cache]
What was written lies in the page cache and can be read back from there, whatever the disk will say. If the disk fails
later, the system drops those pages without an error, and a file that nobody synced then has zeros or other bytes in
their place. So the file is synced before weights in memory are given up, even if it ends with the process.

The tensors of a file are byte ranges, named by the hash of their content. What they mean (dtype, shape, strides) is
known to the model that they are compared with; the file only has to hold the bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import xxhash

from ....errors import DiskTierError
from ..mapped_file import MappedFile, named_error, view_bytes
from .safetensors_files import header_of, ranges_of

__all__ = ["FORMAT", "FilePlan", "plan_file", "sync_data", "verify_file", "write_file"]

FORMAT = "offload-plus-1"
FILE_ALIGNMENT = 64  # bytes; more would be padding that nobody needs: on a CPU no kernel asks for more
_PADDING = "padding."
WRITTEN_AT_ONCE = 32 << 20  # bytes
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE of <linux/fs.h>


class FilePlan(NamedTuple):
    """A header, and where in the file each of the contents goes."""

    header: bytes
    offsets: list[int]
    nbytes: int


def plan_file(contents: Sequence[torch.Tensor], label: str, *, checksums: bool) -> FilePlan:
    """Lay ``contents`` (uint8, on the CPU) out in one file. The format allows no gaps, so tensors of zeros fill them.

    Args:
        label: the component that the weights are of.
        checksums: name each tensor by its hash, which takes the time to read it.
    """
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "model": label}}
    offset = 0
    starts: list[int] = []
    for number, content in enumerate(contents):
        starts.append(offset)
        end = offset + content.numel()
        name = f"{number}.{_digest(content) if checksums else ''}"
        header[name] = {"dtype": "U8", "shape": [end - offset], "data_offsets": [offset, end]}
        offset = -(-end // FILE_ALIGNMENT) * FILE_ALIGNMENT
        if offset != end:
            header[f"{_PADDING}{number}"] = {"dtype": "U8", "shape": [offset - end], "data_offsets": [end, offset]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % FILE_ALIGNMENT)
    data = 8 + len(text)
    return FilePlan(struct.pack("<Q", len(text)) + text, [data + start for start in starts], data + offset)


def write_file(descriptor: int, path: str, plan: FilePlan, contents: Sequence[torch.Tensor]) -> None:
    """Write the file. Its space is reserved first, so that a full disk is known before anything is written. The bytes
    are on the disk after :func:`sync_data`.

    Raises:
        DiskTierError: it cannot be written.
    """
    with named_error(f"reserve {plan.nbytes} bytes for", path):
        os.posix_fallocate(descriptor, 0, plan.nbytes)
    with named_error("write", path):
        _write_all(descriptor, plan.header, 0)
        for offset, content in zip(plan.offsets, contents, strict=True):
            _write_all(descriptor, view_bytes(content), offset)


def sync_data(descriptor: int, path: str) -> None:
    """Wait until what was written to the file is on the disk; see [Note: on the disk, not in its cache].

    Raises:
        DiskTierError: some of it did not get there.
    """
    with named_error("write all bytes to the disk of", path):
        os.fdatasync(descriptor)


def verify_file(file: MappedFile) -> list[str]:
    """Names of those tensors in a kept file whose bytes do not have the hash they are named by.

    Raises:
        DiskTierError: it cannot be read, or is not a kept file.
    """
    metadata = header_of(file).get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise DiskTierError(errno.EINVAL, "not written by diffusers_offload_plus", file.path)
    wrong = []
    for found in ranges_of(file):
        if found.name.startswith(_PADDING):
            continue
        values = torch.empty(found.nbytes, dtype=torch.uint8, device="cpu")
        file.read_into(values, found.offset)
        if _digest(values) != found.name.partition(".")[2]:
            wrong.append(found.name)
    return wrong


def _digest(values: torch.Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(view_bytes(values))


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view[:WRITTEN_AT_ONCE], offset)
        _start_writing(descriptor, offset, count)
        view, offset = view[count:], offset + count


def _start_writing(descriptor: int, offset: int, nbytes: int) -> None:
    # The disk works while the rest is copied to the page cache. Nothing is waited for, so there are no errors yet.
    if nbytes >= WRITTEN_AT_ONCE // 8:
        with contextlib.suppress(AttributeError):
            start = ctypes.CDLL(None).sync_file_range
            start(descriptor, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _START_WRITING)
