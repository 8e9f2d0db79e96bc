"""The store: a directory with files of weights, for any number of models and processes at once.

[Note: two kinds of files]
A file that belongs to one process has no name: it is gone with its last mapping, however the process ends. A file
that is kept is written under a temporary name, synced, and renamed to the hash of its header, read-only. A manifest
that says which model it is of comes last. So nothing half written is ever taken for whole, and what is found is
compared before it is used. Whoever writes a temporary file locks it; one that nobody has locked is an orphan, which
the next set-up removes.

    <directory>/objects/<hash of the header>.safetensors
    <directory>/manifests/<model>-<hash>.json
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import xxhash

from ....errors import DiskTierError, InvalidPolicyError
from ..mapped_file import FileRange, MappedFile, is_shortage, named_error
from .store_file import FORMAT, FilePlan, plan_file, sync_data, write_file

__all__ = ["StoreDirectory", "open_shared", "resolve_directory"]

TEMPORARY = ".tmp"


class StoreDirectory:
    """A directory that :func:`resolve_directory` has accepted."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.objects = self.path / "objects"
        self.manifests = self.path / "manifests"

    def write(self, contents: Sequence[torch.Tensor], label: str) -> list[FileRange]:
        """Write ``contents`` (uint8, on the CPU) to a file without a name, for this process alone, and map it.

        Raises:
            DiskTierError: the disk is full, or it cannot be written.
        """
        plan = plan_file(contents, label, checksums=False)
        where = f"{self.path}/(nameless file of '{label}')"
        descriptor = self.create_nameless()
        try:
            write_file(descriptor, where, plan, contents)
        except BaseException:
            os.close(descriptor)
            raise
        file = MappedFile(where, descriptor)
        ranges = _verified(file, plan, contents)
        sync_data(file.fileno(), where)  # last: the disk writes while the rest is done
        return ranges

    def publish(self, contents: Sequence[torch.Tensor], label: str) -> list[FileRange]:
        """Write ``contents`` (uint8, on the CPU) to a file that is kept, and map it.

        Raises:
            DiskTierError: the disk is full, or it cannot be written.
        """
        plan = plan_file(contents, label, checksums=True)
        final = self.objects / f"{xxhash.xxh3_128_hexdigest(plan.header)}.safetensors"
        with _published(final) as descriptor:
            write_file(descriptor, str(final), plan, contents)
            os.fchmod(descriptor, 0o444)
            # The very file that was written, whatever has that name later, and locked all the while.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            reopened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            file = _lock_shared(MappedFile(str(final), reopened))
        return _verified(file, plan, contents)

    def note_kept(self, label: str, model: str, files: Sequence[str], nbytes: int) -> None:
        """Write the manifest that keeps ``files`` (names in :attr:`objects`) for a model.

        Raises:
            DiskTierError: it cannot be written.
        """
        files = sorted(files)
        digest = xxhash.xxh3_64_hexdigest(json.dumps([label, model, files]).encode())
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in label)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = {"format": FORMAT, "label": label, "model": model, "bytes": nbytes, "created": now, "objects": files}
        with (
            _published(self.manifests / f"{name}-{digest}.json") as descriptor,
            open(descriptor, "w", closefd=False) as stream,
        ):
            json.dump(text, stream, indent=1)

    def temporaries(self) -> list[Path]:
        """Files that are being written, or that a process left half written.

        Raises:
            DiskTierError: the directory cannot be listed.
        """
        with named_error("list", str(self.path), "directory"):
            return [p for folder in (self.path, self.objects, self.manifests) for p in folder.glob(f".*{TEMPORARY}")]

    def remove_orphans(self) -> None:
        """Remove temporary files of processes that are gone.

        Raises:
            DiskTierError: the directory cannot be listed.
        """
        for path in self.temporaries():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def kept_files(self) -> list[Callable[[], MappedFile]]:
        """For each kept file a function that opens it, locked against removal while it is open.

        Raises:
            DiskTierError: the directory cannot be listed.
        """
        with named_error("list", str(self.objects), "directory"):
            paths = sorted(self.objects.glob("*.safetensors"))
        return [functools.partial(open_shared, str(path)) for path in paths]

    def require_space(self, nbytes: int) -> None:
        """Raise :class:`DiskTierError` if fewer than ``nbytes`` are free."""
        with named_error("look up the free space of", str(self.path), "directory"):
            free = shutil.disk_usage(self.path).free
        if free < nbytes:
            raise DiskTierError(
                errno.ENOSPC,
                f"{nbytes:,} bytes of weights are to be written here and {free:,} are free. Free some, name another "
                "directory, or pass the `checkpoint` that holds the weights already",
                str(self.path),
            )

    def create_nameless(self) -> int:
        """The descriptor of a new file that has no name.

        Raises:
            DiskTierError: it cannot be created.
        """
        with named_error("create a file in", str(self.path), "directory"):
            return _create_nameless(self.path)


def resolve_directory(value: str, checkpoint: str | None = None) -> str:
    """The absolute path of the store that the argument ``offload_to_disk_path`` names, created if need be.

    Args:
        value: the path as the caller gave it.
        checkpoint: the directory or file that weights are loaded from; the store must not lie in it.

    Raises:
        InvalidPolicyError: it cannot be a store; the message says why.
        DiskTierError: it may be one, but space, descriptors or memory have run out, or the disk fails.
    """
    path = os.path.realpath(os.path.expanduser(value))
    inside = None if checkpoint is None else os.path.realpath(checkpoint)
    if inside is not None and (path == inside or path.startswith(inside + os.sep)):
        raise InvalidPolicyError(
            f"`offload_to_disk_path` must not lie in the checkpoint '{inside}', got {value!r}. "
            "Name a directory of its own."
        )
    try:
        os.makedirs(path, exist_ok=True)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.close(_create_nameless(Path(path)))
    except OSError as error:
        if is_shortage(error) or error.errno == errno.EIO:
            raise DiskTierError(
                error.errno, f"cannot create a file in this directory: {error.strerror}", path
            ) from error
        raise InvalidPolicyError(
            f"`offload_to_disk_path` must be a directory that can be written, got {value!r} ({path}): "
            f"{error.strerror}. Name another one, or fix its permissions."
        ) from error
    return path


def open_shared(path: str) -> MappedFile:
    """Open a kept file and lock it against removal by ``store gc`` for as long as it is open."""
    return _lock_shared(MappedFile(path))


def _lock_shared(file: MappedFile) -> MappedFile:
    with contextlib.suppress(OSError):  # file systems without locks: gc then asks for none either
        fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def _verified(file: MappedFile, plan: FilePlan, contents: Sequence[torch.Tensor]) -> list[FileRange]:
    """Where ``contents`` lie in ``file``, read back and compared before anybody gives up the weights in memory."""
    ranges = []
    for offset, content in zip(plan.offsets, contents, strict=True):
        if not file.equals(content.data_ptr(), offset, content.numel()):
            raise DiskTierError(errno.EIO, "does not hold what was just written to it", file.path)
        ranges.append(FileRange(file, offset, content.numel()))
    return ranges


def _create_nameless(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    descriptor, name = tempfile.mkstemp(TEMPORARY, ".", folder)
    try:
        with contextlib.suppress(FileNotFoundError):  # another process took it for an orphan
            os.unlink(name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _published(final: Path) -> Iterator[int]:
    """The descriptor of a new file, which is synced and appears as ``final``, in one step, at the end of the block."""
    folder = final.parent
    with named_error("create", str(folder), "directory"):
        folder.mkdir(exist_ok=True)
    with named_error("create a file in", str(folder), "directory"):
        descriptor, temporary = _locked_temporary(folder)
    try:
        with named_error("publish", str(final)):
            yield descriptor
            os.fsync(descriptor)
            os.replace(temporary, final)
            _sync_directory(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def _locked_temporary(folder: Path) -> tuple[int, str]:
    while True:
        descriptor, path = tempfile.mkstemp(TEMPORARY, ".", folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor, path
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process took it for an orphan before it was locked


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
