"""Memory that processes share: a descriptor without a name, whose bytes are reserved before they are written.

[Note: nothing to clean up]
The memory is a ``memfd``: no file system holds it, so no size of ``/dev/shm`` limits it, and the kernel frees it when
the last process that has it open or mapped is gone, however that ended.

[Note: no SIGBUS]
Touching a page that the system cannot provide, or that lies behind the end of a file cut short, kills the process.
So pages are allocated with ``posix_fallocate``, which fails with an error number instead, and seals forbid everybody
to change the size. Where a control group has too little memory, its killer would end the process without an error; so
the memory it has left is checked first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys

import torch

from ...memory.process import available_memory
from ..layout import bytes_at
from ..mapped_file import MappedFile, view_bytes

__all__ = ["NotShared", "SharedMemory", "can_share_memory"]

MARGIN = 64 << 20  # bytes left to the process beside what it is about to take


class NotShared(Exception):
    """Why weights cannot be shared; they get memory of the process's own instead."""


def can_share_memory() -> bool:
    """Whether this system has memory without a name that can be sealed."""
    return sys.platform.startswith("linux") and hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class SharedMemory:
    """Some bytes that processes share, as this process sees them.

    Attributes:
        nbytes: their number.
        view: a private mapping of them: it shows them, and what this process writes there stays in this process.
        descriptor: for other processes.
        registered: all bytes as a uint8 tensor that the device runtime knows; None: it does not. Never to be written.
    """

    def __init__(self, descriptor: int, nbytes: int) -> None:
        """Takes over ``descriptor``, which is closed if it raises.

        Raises:
            NotShared: the system refuses.
        """
        self.descriptor = descriptor
        self.nbytes = nbytes
        self.registered: torch.Tensor | None = None
        try:
            self.view = MappedFile("shared host memory", os.dup(descriptor))
            # Sealed against every change but the first filling, so there is nothing to check before each use.
            self.view.close()
        except OSError as error:
            self.close()
            raise NotShared(f"shared memory cannot be mapped: {_explain(error)}") from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, nbytes: int) -> SharedMemory:
        """New memory, of which nothing is reserved yet.

        Raises:
            NotShared: the system refuses.
        """
        with contextlib.ExitStack() as undo:
            try:
                descriptor = os.memfd_create("diffusers_offload_plus", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                undo.callback(os.close, descriptor)
                os.ftruncate(descriptor, nbytes)
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            except OSError as error:
                raise NotShared(f"{nbytes} bytes of shared memory cannot be had: {_explain(error)}") from error
            undo.pop_all()
        return cls(descriptor, nbytes)

    @classmethod
    def receive(cls, descriptor: int, nbytes: int) -> SharedMemory:
        """Memory that another process made; takes ``descriptor`` over.

        Raises:
            NotShared: it is not what :meth:`create` makes for ``nbytes``.
        """
        fixed = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            try:
                seals, found = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS), os.fstat(descriptor).st_size
            except OSError:
                seals, found = 0, -1
            if seals & fixed != fixed or found != nbytes:
                raise NotShared(f"what another process offers is not {nbytes} sealed bytes: {found}, seals {seals:#x}")
            undo.pop_all()
        return cls(descriptor, nbytes)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; what is mapped stays."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def reserved(self) -> int:
        """How many bytes have pages by now, whichever process reserved them.

        Raises:
            NotShared: the system does not say.
        """
        try:
            return os.fstat(self.descriptor).st_blocks * 512
        except OSError as error:
            raise NotShared(f"shared memory cannot be looked at: {_explain(error)}") from error

    def holds(self, address: int, offset: int, nbytes: int) -> bool:
        """Whether the range has the bytes that are at ``address`` in memory.

        Raises:
            NotShared: it cannot be read.
        """
        try:
            return self.view.equals(address, offset, nbytes)
        except OSError as error:
            raise NotShared(f"shared memory cannot be read: {_explain(error)}") from error

    def duplicate(self) -> int:
        """Another descriptor of the memory.

        Raises:
            NotShared: the system refuses.
        """
        try:
            return os.dup(self.descriptor)
        except OSError as error:
            raise NotShared(f"shared memory cannot be offered to others: {_explain(error)}") from error

    def reserve(self, offset: int, nbytes: int) -> None:
        """Allocate the pages of the range.

        Raises:
            NotShared: there is too little memory.
        """
        free = available_memory()
        if free is not None and free < nbytes + MARGIN:
            raise NotShared(
                f"{nbytes} bytes are needed while the weights move, {MARGIN} are to be left, and the system or a "
                f"control group has only {free} free"
            )
        try:
            os.posix_fallocate(self.descriptor, offset, nbytes)
        except OSError as error:
            raise NotShared(f"{nbytes} bytes of shared memory cannot be reserved: {_explain(error)}") from error

    def fill(self, offset: int, address: int, nbytes: int) -> None:
        """Copy the bytes at ``address`` into the reserved range, without the interpreter lock.

        Raises:
            NotShared: the system refuses.
        """
        values, done = view_bytes(bytes_at(address, nbytes)), 0
        try:
            while done < nbytes:
                done += os.pwrite(self.descriptor, values[done:], offset + done)
        except OSError as error:
            raise NotShared(f"shared memory cannot be written: {_explain(error)}") from error

    def forbid_writing(self) -> None:
        """Let nobody change the bytes from now on. Not to be called for memory that is to be :meth:`mapped <map>`."""
        with contextlib.suppress(OSError):  # busy, say: it guards against mistakes, and nobody here writes
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)

    def map(self) -> mmap.mmap:
        """A writable mapping of the shared bytes: a device runtime pins only pages that it might write.

        Raises:
            NotShared: the system refuses.
        """
        try:
            return mmap.mmap(self.descriptor, self.nbytes)
        except OSError as error:
            raise NotShared(f"shared memory cannot be mapped: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    hint = " (the limit on the size of files, `ulimit -f`)" if error.errno == errno.EFBIG else ""
    return f"{error.strerror or error}{hint}"
