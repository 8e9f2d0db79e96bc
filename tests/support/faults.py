"""One operation of the engine fails: each allocation and each call to the system, one at a time.

The allocations are those that PyTorch makes for code of the engine, announced by the simulated accelerator: device,
pinned and ordinary host memory. The calls to the system are those that modules of the engine make themselves: they get
stand-ins for ``os``, ``socket`` and the like, whose functions can fail. Nothing outside of the engine is touched.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

__all__ = ["FLAVOURS", "Faults", "Flavour", "failing"]

Flavour = Callable[[str], BaseException | None]
ENGINE = "diffusers_offload_plus.offload"
LEAST_HOST_BYTES = 128  # as a bias of the models has; whoever cannot get less is lost whatever he does


def _system(number: int) -> Flavour:
    return lambda kind: OSError(number, os.strerror(number)) if kind == "system" else None


def _out_of_memory(kind: str) -> BaseException:
    if kind == "system":
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    return torch.OutOfMemoryError(f"no {kind} memory left")


FLAVOURS: dict[str, Flavour] = {
    "out-of-memory": _out_of_memory,
    "memory-error": lambda kind: None if kind == "system" else MemoryError(f"no {kind} memory left"),
    "interrupt": lambda kind: KeyboardInterrupt(kind),
    "ENOSPC": _system(errno.ENOSPC),
    "EIO": _system(errno.EIO),
    "EMFILE": _system(errno.EMFILE),
}
"""By name: how an operation of a kind ("device", "pinned", "host" or "system") fails; None: not at all."""


class Faults:
    """Counts operations, and lets one fail.

    Attributes:
        hit: the operation that has failed; None: there were fewer.
    """

    def __init__(self, number: int, flavour: Flavour) -> None:
        self._number = number
        self._flavour = flavour
        self._count = 0
        self.hit: str | None = None

    def step(self, kind: str, what: str) -> None:
        """An operation is about to be done."""
        if threading.current_thread().name.endswith("shared memory"):
            return  # serves other processes for as long as there is memory, at any time
        error = self._flavour(kind)
        if error is None:
            return
        self._count += 1
        if self._count == self._number:
            self.hit = f"{kind}: {what}"
            raise error


@contextlib.contextmanager
def failing(number: int, flavour: str | Flavour) -> Iterator[Faults]:
    """Within the block, operation ``number`` (from 1 on) that can fail in this way does."""
    from tests.simulated import allocations

    found = Faults(number, FLAVOURS[flavour] if isinstance(flavour, str) else flavour)

    def announced(space: str, nbytes: int) -> None:
        if (space != "host" or nbytes >= LEAST_HOST_BYTES) and _for_engine(sys._getframe(1)):
            found.step(space, f"{nbytes} bytes")

    with contextlib.ExitStack() as stack:
        _stand_in(found, stack)
        stack.enter_context(allocations(announced))
        yield found


def _for_engine(frame: types.FrameType | None) -> bool:
    """Whether the innermost code that is not a library's is the engine's."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.split(".")[0] not in ("torch", "diffusers", "contextlib", "functools"):
            return name.startswith(ENGINE)
        frame = frame.f_back
    return False


# Calls to the system

CALLS: dict[types.ModuleType, tuple[str, ...]] = {
    os: (
        *("open", "dup", "fstat", "access", "makedirs", "replace", "unlink", "fchmod", "ftruncate", "memfd_create"),
        *("pread", "preadv", "pwrite", "sendfile", "posix_fallocate", "fsync", "fdatasync"),
    ),
    fcntl: ("fcntl", "flock", "ioctl"),
    mmap: ("mmap",),
    shutil: ("disk_usage",),
    tempfile: ("mkstemp",),
    socket: ("send_fds", "recv_fds"),
}
SOCKET_CALLS = ("bind", "listen", "connect", "recv", "send", "getsockopt")
PATH_CALLS = ("glob", "mkdir", "is_file", "is_dir", "resolve", "read_text", "unlink")


def _stand_in(faults: Faults, stack: contextlib.ExitStack) -> None:
    stand_ins = {module: _stand_in_for(module, names, faults) for module, names in CALLS.items()}
    stand_ins[socket].socket = _socket_class(faults)
    for name, module in list(sys.modules.items()):
        if name.startswith(ENGINE):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, types.ModuleType) and value in stand_ins:
                    stack.enter_context(mock.patch.object(module, attribute, stand_ins[value]))
            stack.enter_context(mock.patch.object(module, "open", _counted(builtins.open, faults), create=True))
    mapped_file: Any = sys.modules[f"{ENGINE}.stores.mapped_file"]
    stack.enter_context(mock.patch.object(mapped_file, "_libc", lambda libc=mapped_file._libc: _Libc(libc(), faults)))
    for call in PATH_CALLS:
        stack.enter_context(mock.patch.object(pathlib.Path, call, _of_path(getattr(pathlib.Path, call), faults)))


def _stand_in_for(module: types.ModuleType, names: tuple[str, ...], faults: Faults) -> Any:
    stand_in = types.SimpleNamespace(**vars(module))
    for name in names:
        setattr(stand_in, name, _counted(getattr(module, name), faults))
    return stand_in


def _counted(function: Any, faults: Faults) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        faults.step("system", function.__name__)
        return function(*args, **kwargs)

    return counted


def _of_path(method: Any, faults: Faults) -> Any:
    def counted(self: pathlib.Path, *args: Any, **kwargs: Any) -> Any:
        if _for_engine(sys._getframe(1)):
            faults.step("system", f"Path.{method.__name__}")
        return method(self, *args, **kwargs)

    return counted


def _socket_class(faults: Faults) -> type[socket.socket]:
    class Socket(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            faults.step("system", "socket")
            super().__init__(*args, **kwargs)

    for name in SOCKET_CALLS:

        def method(self: Any, *args: Any, name: str = name) -> Any:
            faults.step("system", f"socket.{name}")
            return getattr(socket.socket, name)(self, *args)

        setattr(Socket, name, method)
    return Socket


class _Libc:
    """The C library, whose functions tell of an error by what they return."""

    def __init__(self, libc: Any, faults: Faults) -> None:
        self._libc = libc
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._libc, name)

    def mmap(self, *args: Any) -> Any:
        return self._call("mmap", ctypes.c_void_p(-1).value, *args)

    def madvise(self, *args: Any) -> Any:
        return self._call("madvise", -1, *args)

    def _call(self, name: str, failed: Any, *args: Any) -> Any:
        try:
            self._faults.step("system", name)
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return failed
        return getattr(self._libc, name)(*args)
