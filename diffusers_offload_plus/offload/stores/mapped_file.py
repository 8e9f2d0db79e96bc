"""One file whose bytes are the values of offloaded weights.

[Note: the mapping is the truth]
A weight on the disk tier is a view of a private, writable mapping. Reading it reads the file. Writing it gives the
process pages of its own (copy on write), which a read of the file does not see. So a read of the file stands in for
the mapping only where the kernel says that no page of the range is private to the process. Pages are never dropped
with ``MADV_DONTNEED``, which would undo such writes.

[Note: files of others]
A file that is replaced or deleted does no harm: the mapping holds its inode. A file that is changed in place cannot be
made safe, but the change is noticed: size and modification time are checked before each of our accesses, whether we
read weights to use them or to store them elsewhere. Truncation under a reader is a SIGBUS, as with any mapping; where
we read through the mapping, we ask the system for the pages first, which fails with an error number instead.

[Note: more than memory]
The system counts a private writable mapping as memory that may be needed, and refuses one larger than there is. Ours
is hardly ever written, so nothing is reserved for it: a file may be larger than the machine's memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import stat
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from ...errors import DiskTierError, FileChangedError
from .page_cache import PAGE, in_memory, residency_is_told

__all__ = ["FileRange", "MappedFile", "check_mapped", "is_shortage", "named_error", "private_bytes", "view_bytes"]

READ_AHEAD = 1 << 20  # bytes; a smaller range is in the first window that the system reads ahead
_COLD, _POPULATE_READ = 20, 22  # of <linux/mman.h>; not all of Python's modules name these
_NORESERVE = 0x4000
_EHWPOISON = 133
_SWAPPED, _OF_FILE = 1 << 62, 1 << 61  # of /proc/self/pagemap; bit 63, the sign, says that a page is present


class MappedFile:
    """A file opened for reading, mapped privately as a whole.

    Attributes:
        path: its name, for messages; the file may have been renamed or deleted since.
        size: bytes, when it was opened.
    """

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        """Open and map the regular file ``path``, or take over ``descriptor``.

        Raises:
            DiskTierError: it cannot be opened, is empty, or is not a regular file.
        """
        self.path = path
        with named_error("open", path):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if descriptor is None else descriptor
        try:
            with named_error("look at", path):
                status = os.fstat(self._descriptor)
                self._residency_is_told = residency_is_told(self._descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
                raise DiskTierError(errno.EINVAL, "not a regular file with content", path)
            self.size = status.st_size
            self._stamp = (status.st_size, status.st_mtime_ns)
            with named_error("map", path):
                self._storage: Any = _map_privately(self._descriptor, self.size)
        except BaseException:
            self.close()
            raise
        with _LOCK:
            _LIVE.add(self)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; views of the mapping stay valid, and reads go through it from now on."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def fileno(self) -> int:
        """The open descriptor."""
        return self._descriptor

    @property
    def address(self) -> int:
        """Where the mapping begins in memory."""
        return int(self._storage.data_ptr())

    def check(self) -> None:
        """Raise :class:`FileChangedError` if the file was changed in place or truncated since it was opened, or
        :class:`DiskTierError` if the system does not say."""
        if self._descriptor < 0:
            return
        with named_error("look at", self.path):
            status = os.fstat(self._descriptor)
        found = (status.st_size, status.st_mtime_ns)
        if found != self._stamp:
            raise FileChangedError(
                errno.ESTALE,
                f"changed in place while weights are mapped from it: {self._stamp[0]} bytes, modified at "
                f"{self._stamp[1] / 1e9:.6f} when it was opened, now {found[0]} bytes, {found[1] / 1e9:.6f}. "
                'Load the model again, and pass protect="copy" if others write this file',
                self.path,
            )

    def storage(self, offset: int, nbytes: int) -> torch.UntypedStorage:
        """A storage of its own over a range of the mapping."""
        result: torch.UntypedStorage = self._storage[offset : offset + nbytes]
        return result

    def bytes(self, offset: int, nbytes: int) -> torch.Tensor:
        """The range as a uint8 tensor over the mapping."""
        return torch.empty(0, dtype=torch.uint8, device="cpu").set_(self._storage, offset, (nbytes,), (1,))

    def is_private(self, offset: int, nbytes: int) -> bool:
        """Whether some page of the range has been written through the mapping (True where that cannot be told)."""
        first, last = (self.address + offset) // PAGE, (self.address + offset + nbytes - 1) // PAGE
        try:
            descriptor = _pagemap()
            raw = os.pread(descriptor, (last - first + 1) * 8, first * 8)
        except OSError:
            return True
        if len(raw) != (last - first + 1) * 8:
            return True
        flags = torch.frombuffer(bytearray(raw), dtype=torch.int64)
        present, swapped, of_file = (flags < 0), (flags & _SWAPPED) != 0, (flags & _OF_FILE) != 0
        return bool((swapped | (present & ~of_file)).any())

    def read_into(self, target: torch.Tensor, offset: int) -> None:
        """Read ``target.numel()`` bytes at ``offset`` of the file into ``target`` (uint8, on the CPU), without the
        interpreter lock. What was written to the mapping is not seen.

        Raises:
            FileChangedError: the file ends before.
            DiskTierError: the system could not read it.
        """
        if self._descriptor < 0:
            self.copy_into(target, offset)
            return
        view = view_bytes(target)
        done = 0
        while done < len(view):
            with named_error("read", self.path):
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if count == 0:
                raise FileChangedError(errno.ESTALE, f"ends at byte {offset + done} of {self.size}", self.path)
            done += count

    def copy_into(self, target: torch.Tensor, offset: int) -> None:
        """Read as :meth:`read_into` does, but through the mapping, so that what was written to it is seen.

        Raises:
            DiskTierError: the system could not read it.
        """
        self.populate(offset, target.numel())
        target.copy_(self.bytes(offset, target.numel()))

    def equals(self, address: int, offset: int, nbytes: int) -> bool:
        """Whether the range has the bytes that are at ``address`` in memory, compared without the interpreter lock.

        Raises:
            DiskTierError: the system could not read it.
        """
        self.populate(offset, nbytes)
        return bool(_libc().memcmp(address, self.address + offset, nbytes) == 0)

    def populate(self, offset: int, nbytes: int) -> None:
        """Bring the range into memory, without the interpreter lock.

        Raises:
            DiskTierError: the system could not read it. (Touching the pages would have been a SIGBUS.)
        """
        if self._is_in_memory(offset, nbytes):
            return  # as nearly always: going through the page tables takes ten times as long
        if nbytes >= READ_AHEAD:
            self.read_ahead(offset, nbytes)  # the disk is asked for all of it at once, not window by window
        number = self._advise(offset, nbytes, _POPULATE_READ)
        if number in (errno.EFAULT, errno.EIO, errno.ENOMEM, _EHWPOISON):
            number = errno.ENOMEM if number == errno.ENOMEM else errno.EIO
            raise DiskTierError(number, f"cannot read bytes {offset} to {offset + nbytes}", self.path)

    def _is_in_memory(self, offset: int, nbytes: int) -> bool:
        # The cache may hold pages past the end of a file that was truncated; touching them is a SIGBUS all the same.
        if not self._residency_is_told or self._descriptor < 0:
            return False
        with named_error("look at", self.path):
            if os.fstat(self._descriptor).st_size < self.size:
                return False
        return in_memory(self.address + offset, nbytes)

    def read_ahead(self, offset: int, nbytes: int) -> None:
        """Ask the system to begin reading the range."""
        self._advise(offset, nbytes, mmap.MADV_WILLNEED)

    def release(self, offset: int, nbytes: int) -> None:
        """Tell the system that the range will not be used soon; what was written to it stays."""
        self._advise(offset, nbytes, _COLD)

    def _advise(self, offset: int, nbytes: int, advice: int) -> int:
        start = (self.address + offset) // PAGE * PAGE
        length = self.address + offset + nbytes - start
        return 0 if _libc().madvise(start, length, advice) == 0 else ctypes.get_errno()


class FileRange(NamedTuple):
    """Some bytes of a mapped file."""

    file: MappedFile
    offset: int
    nbytes: int


def private_bytes(ranges: Iterable[FileRange]) -> int:
    """Bytes of those ``ranges`` in which this process has written to the mapping."""
    return sum(nbytes for file, offset, nbytes in ranges if file.is_private(offset, nbytes))


def check_mapped(tensors: Iterable[torch.Tensor]) -> None:
    """Raise :class:`FileChangedError` if some of ``tensors`` lie in a mapping whose file was changed in place: their
    values must not be taken for the weights."""
    addresses = [tensor.data_ptr() for tensor in tensors if tensor.device.type == "cpu"]
    with _LOCK:
        live = list(_LIVE)
    for file in live:
        if any(file.address <= address < file.address + file.size for address in addresses):
            file.check()


_LIVE: weakref.WeakSet[MappedFile] = weakref.WeakSet()
_LOCK = threading.Lock()


@contextlib.contextmanager
def named_error(action: str, path: str, what: str = "file") -> Iterator[None]:
    """Turn an ``OSError`` into a :class:`DiskTierError` with the same number that names the file and what was done."""
    try:
        yield
    except DiskTierError:
        raise
    except OSError as error:
        raise DiskTierError(error.errno, f"cannot {action} this {what}: {error.strerror}", path) from error


def is_shortage(error: OSError) -> bool:
    """Whether the error says that something has run out (space, descriptors, memory), not that a file is of no use."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous uint8 tensor on the CPU."""
    array: Any = tensor.numpy()
    return memoryview(array)


def _map_privately(descriptor: int, nbytes: int) -> Any:
    # torch.UntypedStorage.from_file reserves memory; see [Note: more than memory].
    libc = _libc()
    flags = mmap.MAP_PRIVATE | _NORESERVE
    address = libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory = (ctypes.c_char * nbytes).from_address(address)
    weakref.finalize(memory, libc.munmap, address, nbytes).atexit = False  # the storage holds on to ``memory``
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.mmap.restype = ctypes.c_void_p
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


def _pagemap() -> int:
    # Reopened after a fork: the descriptor of a parent shows the parent's pages.
    global _PAGEMAP
    if _PAGEMAP[0] != os.getpid():
        _PAGEMAP = (os.getpid(), os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC))
    return _PAGEMAP[1]


_PAGEMAP = (0, -1)
