"""The tensors of safetensors files as byte ranges, by the files' headers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ....errors import DiskTierError, InvalidPolicyError
from ..mapped_file import MappedFile, named_error

__all__ = ["Range", "header_of", "ranges_of", "safetensors_files", "snapshot_of"]

MAX_HEADER = 100 << 20  # bytes; what the safetensors library accepts


class Range(NamedTuple):
    """The bytes of one tensor in a file."""

    offset: int
    nbytes: int
    name: str


def safetensors_files(checkpoint: str, component: str) -> list[str]:
    """The weight files of a component at ``checkpoint``: the file itself, or those in a directory.

    In a pipeline's directory they are in the component's subdirectory, in any other directly in it.

    Raises:
        InvalidPolicyError: there are none.
        DiskTierError: they cannot be listed.
    """
    path = Path(checkpoint).expanduser()
    with named_error("list", str(path), "checkpoint"):
        found = _safetensors_files(path, component)
    if found is None:
        raise InvalidPolicyError(
            f"`checkpoint` must be a safetensors file, or a directory with such files in it or in '{component}/', got "
            f"{checkpoint!r}. Give the local snapshot that the weights were loaded from, or leave it out."
        )
    return found


def _safetensors_files(path: Path, component: str) -> list[str] | None:
    if path.is_file():
        return [str(path.resolve())]
    if path.is_dir():
        for folder in (path / component if component else path, path):
            found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
            if found:
                return [str(file.resolve()) for file in found]
        if component and (path / "model_index.json").is_file():
            return []  # a pipeline that was saved without this component, or with its weights in another format
    return None


def header_of(file: MappedFile) -> dict[str, Any]:
    """The header of a safetensors file, checked against the file's size. ``"__data_start__"`` is added to it: the
    offset in the file that the tensors' offsets are counted from.

    Raises:
        DiskTierError: it is not a whole safetensors file.
    """
    with named_error("read", file.path):
        start = os.pread(file.fileno(), 8, 0)
    if len(start) == 8:
        (length,) = struct.unpack("<Q", start)
        if length <= min(MAX_HEADER, file.size - 8):
            with named_error("read", file.path):
                raw = os.pread(file.fileno(), length, 8)
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                header = json.loads(raw)
                entries = [value for name, value in header.items() if name != "__metadata__"]
                if _in_order([entry["data_offsets"] for entry in entries], file.size - 8 - length):
                    return {**header, "__data_start__": 8 + length}
    raise DiskTierError(errno.EINVAL, "not a whole safetensors file", file.path)


def _in_order(ranges: list[list[int]], nbytes: int) -> bool:
    # Two tensors on overlapping ranges would share memory.
    end = 0
    for start, stop in sorted((start, stop) for start, stop in ranges):
        if type(start) is not int or type(stop) is not int or not end <= start <= stop:
            return False
        end = stop
    return end <= nbytes


def ranges_of(file: MappedFile) -> Iterator[Range]:
    """The byte range of each tensor of a safetensors file, empty ones left out.

    Raises:
        DiskTierError: it is not a whole safetensors file.
    """
    header = header_of(file)
    start = header.pop("__data_start__")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if begin < end:
            yield Range(start + begin, end - begin, name)


def snapshot_of(model: Any, component: str) -> str | None:
    """The local directory that ``model`` says it was loaded from, if there are weight files in it."""
    config = getattr(model, "config", None)
    for source in (getattr(config, "_name_or_path", None), getattr(model, "name_or_path", None)):
        if isinstance(source, (str, os.PathLike)) and os.fspath(source) and os.path.isdir(source):
            with contextlib.suppress(InvalidPolicyError):
                safetensors_files(os.fspath(source), component)
                return os.fspath(source)
    return None
