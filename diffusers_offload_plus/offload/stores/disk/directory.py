"""A store: a directory with files of weights, any number of models and processes at once.

[Note: two kinds of files]
A file that belongs to one process has no name: it is gone with the last mapping of it, however the process ends. A
file that is kept is written under a temporary name, synced, and renamed to the hash of its header, read-only; a
manifest that says which model it is of comes last. So nothing half written is ever taken for whole, and what is found
is compared before it is used. A temporary file is locked by whoever writes it; one that nobody has locked is an
orphan and goes at the next set-up.

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
from typing import Any

import xxhash

from ....errors import DiskTierError, InvalidPolicyError
from ..mapped_file import MappedFile, named_error
from .slab import Piece
from .store_file import FORMAT, Content, FilePlan, plan_file, sync_data, write_file

__all__ = ["StoreDirectory", "resolve_directory"]

TEMPORARY = ".tmp"


class StoreDirectory:
    """A directory that :func:`resolve_directory` has accepted."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.objects = self.path / "objects"
        self.manifests = self.path / "manifests"

    def write(self, contents: Sequence[Content], label: str) -> list[Piece]:
        """Write ``contents`` to a file without a name, for this process alone, and map it.

        Raises:
            DiskTierError: there is no room, or it cannot be written.
        """
        plan = plan_file(contents, {"model": label})
        descriptor = self.nameless(self.path)
        where = f"{self.path}/(nameless file of '{label}')"
        try:
            write_file(descriptor, where, plan, contents)
        except BaseException:
            os.close(descriptor)
            raise
        file = MappedFile(where, descriptor)
        pieces = _pieces(file, plan, contents)
        sync_data(file.fileno(), where)  # last: the disk writes while the rest is done
        return pieces

    def publish(self, contents: Sequence[Content], label: str) -> list[Piece]:
        """Write ``contents`` to a file that is kept, and map it.

        Raises:
            DiskTierError: there is no room, or it cannot be written.
        """
        with named_error("create", str(self.objects), "directory"):
            self.objects.mkdir(exist_ok=True)
        plan = plan_file(contents, {"model": label})
        final = self.objects / f"{xxhash.xxh3_128_hexdigest(plan.header)}.safetensors"
        descriptor, temporary = _locked_temporary(self.objects)
        try:
            with named_error("publish", str(final)):
                write_file(descriptor, str(final), plan, contents)
                os.fsync(descriptor)
                os.fchmod(descriptor, 0o444)
                os.replace(temporary, final)
                _sync_directory(self.objects)
                # The very file that was written, whatever has that name by now, and locked all the while.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                file = MappedFile(str(final), _reopened(descriptor))
            return _pieces(_shared(file), plan, contents)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)

    def remove_orphans(self) -> list[str]:
        """Remove temporary files of processes that are gone; returns their paths."""
        removed = []
        for path in [p for folder in (self.path, self.objects, self.manifests) for p in folder.glob(f".*{TEMPORARY}")]:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(str(path))
        return removed

    def note_kept(self, label: str, model: str, files: Sequence[str], nbytes: int) -> Path:
        """Write the manifest that keeps ``files`` (names below :attr:`objects`) for a model."""
        with named_error("create", str(self.manifests), "directory"):
            self.manifests.mkdir(exist_ok=True)
        files = sorted(files)
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in label)
        manifest = (
            self.manifests / f"{name}-{xxhash.xxh3_64_hexdigest(json.dumps([label, model, files]).encode())}.json"
        )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = {"format": FORMAT, "label": label, "model": model, "bytes": nbytes, "created": now, "objects": files}
        descriptor, temporary = _locked_temporary(self.manifests)
        with named_error("write", str(manifest)):
            try:
                with os.fdopen(descriptor, "w") as stream:
                    json.dump(text, stream, indent=1)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, manifest)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            _sync_directory(self.manifests)
        return manifest

    def kept_files(self) -> Iterator[Callable[[], MappedFile]]:
        """What opens each kept file, locked against removal while it is open."""
        for path in sorted(self.objects.glob("*.safetensors")) if self.objects.is_dir() else ():
            yield functools.partial(open_shared, str(path))

    def require_space(self, nbytes: int) -> None:
        """Raise :class:`DiskTierError` if fewer than ``nbytes`` are free."""
        with named_error("look for room in", str(self.path), "directory"):
            free = shutil.disk_usage(self.path).free
        if free < nbytes:
            raise DiskTierError(
                errno.ENOSPC,
                f"{nbytes:,} bytes of weights are to be written here and {free:,} are free. Make room, name another "
                "directory, or pass the `checkpoint` that holds the weights already",
                str(self.path),
            )

    def nameless(self, folder: Path) -> int:
        """The descriptor of a new file that has no name, on the file system of ``folder``.

        Raises:
            DiskTierError: it cannot be created.
        """
        with named_error("create a file in", str(folder), "directory"):
            return _nameless(folder)


def resolve_directory(value: Any, checkpoints: Sequence[str] = ()) -> str:
    """The absolute path of the store that the argument ``offload_to_disk_path`` names, created if need be.

    Raises:
        InvalidPolicyError: it cannot be a store; the message says why.
    """
    argument = "`offload_to_disk_path`"
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(os.fspath(value)):
        raise InvalidPolicyError(
            f"{argument} must be a directory's path, got {value!r}. Leave it out for no disk tier."
        )
    path = os.path.realpath(os.path.expanduser(os.fspath(value)))
    for checkpoint in checkpoints:
        inside = os.path.realpath(checkpoint)
        if path == inside or path.startswith(inside + os.sep):
            raise InvalidPolicyError(
                f"{argument} must not lie in the checkpoint '{inside}', got {value!r}. Name a directory of its own."
            )
    try:
        os.makedirs(path, exist_ok=True)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.close(_nameless(Path(path)))
    except OSError as error:
        raise InvalidPolicyError(
            f"{argument} must be a directory that can be written, got {value!r} ({path}): {error.strerror}. "
            "Name another one, or mend its permissions."
        ) from error
    return path


def open_shared(path: str) -> MappedFile:
    """Open a kept file and lock it against removal by ``store gc`` for as long as it is open."""
    return _shared(MappedFile(path))


def _shared(file: MappedFile) -> MappedFile:
    with contextlib.suppress(OSError):  # file systems without locks: gc then asks for none either
        fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def _pieces(file: MappedFile, plan: FilePlan, contents: Sequence[Content]) -> list[Piece]:
    # Read back before anybody lets go of the weights.
    pieces = []
    for offset, content in zip(plan.offsets, contents, strict=True):
        nbytes = content.bytes.numel()
        if not file.equals(content.bytes.data_ptr(), offset, nbytes):
            raise DiskTierError(errno.EIO, "does not hold what was just written to it", file.path)
        pieces.append(Piece(file, offset, nbytes))
    return pieces


def _nameless(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    descriptor, name = tempfile.mkstemp(TEMPORARY, ".", folder)
    with contextlib.suppress(FileNotFoundError):  # another process took it for an orphan
        os.unlink(name)
    return descriptor


def _reopened(descriptor: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _locked_temporary(folder: Path) -> tuple[int, str]:
    with named_error("create a file in", str(folder), "directory"):
        while True:
            descriptor, path = tempfile.mkstemp(TEMPORARY, ".", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor, path
            os.close(descriptor)  # taken for an orphan before it was locked


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
