"""What tests ask of the stand-in for CUDA, and tell it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

__all__ = [
    "forgive",
    "is_loaded",
    "library",
    "misuse",
    "pinned_bytes",
    "refused_kernels",
    "reset_stats",
    "settings",
    "stats",
    "used_bytes",
]

_SIGNATURES = {
    "standin_counters": (ctypes.c_int, [ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_long)]),
    "standin_reset_counters": (None, []),
    "standin_used_bytes": (ctypes.c_size_t, [ctypes.c_int]),
    "standin_pinned_bytes": (ctypes.c_size_t, []),
    "standin_set": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_longlong]),
    "standin_get": (ctypes.c_longlong, [ctypes.c_char_p]),
    "standin_take_misuse": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "standin_take_refused_kernels": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "standin_forgive": (None, []),
    "standin_host_seconds": (ctypes.c_double, []),
    "standin_host_busy_for": (None, [ctypes.c_double]),
    "standin_compute_for": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_double]),
    "standin_set_link": (None, [ctypes.c_int, ctypes.c_double, ctypes.c_double]),
    "standin_set_speed": (None, [ctypes.c_char_p, ctypes.c_double, ctypes.c_double, ctypes.c_double]),
    "standin_reset_speeds": (None, []),
}


@cache
def is_loaded() -> bool:
    """Whether this process runs with the stand-in."""
    return hasattr(ctypes.CDLL(None), "standin_launch")


@cache
def library() -> ctypes.CDLL:
    """The stand-in's own functions.

    Raises:
        RuntimeError: The process runs without it.
    """
    if not is_loaded():
        raise RuntimeError(
            "This process runs without the stand-in for CUDA; start it with: python -m tests.standin_cuda"
        )
    found = ctypes.CDLL(None)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def stats() -> SimpleNamespace:
    """Counters since :func:`reset_stats`; ``csrc/base/counters.h`` says what each counts."""
    names, values = (ctypes.c_char_p * 64)(), (ctypes.c_long * 64)()
    count = library().standin_counters(names, values)
    return SimpleNamespace(**{names[i].decode(): values[i] for i in range(count)})


def reset_stats() -> None:
    library().standin_reset_counters()


def used_bytes(device: int = 0) -> int:
    """Bytes of a device that cudaMalloc has given out."""
    return int(library().standin_used_bytes(device))


def pinned_bytes() -> int:
    """Bytes of the host that are pinned, allocated or registered."""
    return int(library().standin_pinned_bytes())


def misuse() -> list[str]:
    """What the program did since the last call that CUDA forbids and does not notice."""
    return _lines(library().standin_take_misuse)


def refused_kernels() -> list[str]:
    """Names of kernels of PyTorch that were launched since the last call; each launch failed."""
    return _lines(library().standin_take_refused_kernels)


def forgive() -> None:
    """Make the context usable again after a kernel failed in it. CUDA has no such thing: it is for the next test."""
    library().standin_forgive()


@contextlib.contextmanager
def settings(**values: int) -> Iterator[None]:
    """Set what ``csrc/base/settings.h`` lists, for as long as the block lasts.

    Raises:
        ValueError: There is no setting of that name.
    """
    before = {}
    try:
        for name, value in values.items():
            before[name] = library().standin_get(name.encode())
            if not library().standin_set(name.encode(), value):
                del before[name]
                raise ValueError(f"The stand-in for CUDA has no setting {name!r}; see csrc/base/settings.h.")
        yield
    finally:
        for name, value in before.items():
            library().standin_set(name.encode(), value)


def _lines(take: ctypes._NamedFuncPointer) -> list[str]:
    buffer = ctypes.create_string_buffer(1 << 16)
    take(buffer, len(buffer))
    return buffer.value.decode(errors="replace").splitlines()
