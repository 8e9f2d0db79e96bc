"""Speeds of the stand-in for CUDA, and its virtual time.

Virtual time is worked out from the program alone, call by call: how fast the CPU is has no influence. It is read with
timing events, as on a device, or with :func:`host_seconds`. It holds for the code of every library, PyTorch's own too.

Example::

    with timing():
        set_link(bandwidth=2e9)
        set_compute(launch=1e-3)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        x.add_(1)
        end.record()
        torch.cuda.synchronize()
        assert begin.elapsed_time(end) == 1.0
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Literal

import torch

from .runtime import library

__all__ = ["compute_for", "host_busy_for", "host_seconds", "set_compute", "set_link", "timing"]

_LINKS = {"h2d": 0, "d2h": 1}


def set_link(*, bandwidth: float, latency: float = 0.0, direction: Literal["h2d", "d2h"] | None = None) -> None:
    """A copy between host and device takes ``latency`` seconds and its bytes at ``bandwidth`` bytes a second.

    Each device has one engine for each direction; copies pass it one at a time.

    Args:
        direction: the engine that is meant; both if left out.
    """
    for link in _LINKS if direction is None else (direction,):
        library().standin_set_link(_LINKS[link], latency, bandwidth)


def set_compute(
    operator: str | None = None, *, launch: float = 0.0, per_byte: float = 0.0, per_flop: float = 0.0
) -> None:
    """A kernel takes ``launch`` seconds, ``per_byte`` for each byte of its operands, and ``per_flop``.

    Args:
        operator: the one that is meant, as ``"aten::addmm"``; all that have no speed of their own if left out.
        per_flop: seconds for each multiplication or addition of a product of matrices, a convolution, or attention.
    """
    library().standin_set_speed(operator and operator.encode(), launch, per_byte, per_flop)


def compute_for(seconds: float) -> None:
    """Launch a kernel on the current stream that does nothing for ``seconds``."""
    library().standin_compute_for(torch.cuda.current_stream().cuda_stream, seconds)


def host_seconds() -> float:
    """Virtual time of the host. Issuing takes none; waiting for the device takes as long as the device takes."""
    return float(library().standin_host_seconds())


def host_busy_for(seconds: float) -> None:
    """The host does something else for ``seconds``: reading a file, say. Threads share its clock."""
    library().standin_host_busy_for(seconds)


@contextlib.contextmanager
def timing() -> Iterator[None]:
    """Speeds set within the block are forgotten at its end. The device is idle when it begins, and its time a whole
    second: what went before, at speeds that are no powers of two, then has no part in any rounding."""
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)
    host_busy_for(math.ceil(host_seconds()) - host_seconds())
    try:
        yield
    finally:
        library().standin_reset_speeds()
