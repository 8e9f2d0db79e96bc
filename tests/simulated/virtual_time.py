"""Speeds of the simulated accelerator, and its virtual time.

Virtual time is worked out from the program alone, operation by operation: what runs on the CPU meanwhile, and how
fast, has no influence. It is read with timing events, as on CUDA, or with :func:`host_seconds`.

Example::

    with timing():
        set_link(bandwidth=2e9)
        set_compute(launch=1e-3)
        begin, end = (torch.sim.Event(enable_timing=True) for _ in range(2))
        begin.record()
        x.add_(1)
        end.record()
        assert begin.elapsed_time(end) == 1.0
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Literal

import torch

from .device import extension

__all__ = ["compute_for", "host_busy_for", "host_seconds", "set_compute", "set_link", "timing"]

_LINKS = {"h2d": 0, "d2h": 1}


def set_link(*, bandwidth: float, latency: float = 0.0, direction: Literal["h2d", "d2h"] | None = None) -> None:
    """A copy between host and device takes ``latency`` seconds and its bytes at ``bandwidth`` bytes a second.

    Args:
        direction: the link that is meant; both if left out.
    """
    for link in _LINKS if direction is None else (direction,):
        extension().set_link_speed(_LINKS[link], float(bandwidth), float(latency))


def set_compute(*, launch: float = 0.0, per_byte: float = 0.0) -> None:
    """A kernel takes ``launch`` seconds, and ``per_byte`` for each byte of its operands on the device: what it reads,
    what it overwrites, results unless the operator allocates them itself. A copy within the device is a kernel."""
    extension().set_compute_speed(float(launch), float(per_byte))


def compute_for(seconds: float) -> None:
    """Launch a kernel on the current stream that does nothing for ``seconds``."""
    extension().compute_for(float(seconds))


def host_seconds() -> float:
    """Virtual time of the host. Issuing takes none; waiting for the device takes as long as the device takes."""
    seconds: float = extension().host_seconds()
    return seconds


def host_busy_for(seconds: float) -> None:
    """The host does something else for ``seconds``: reading a file, say. Threads share its clock."""
    extension().take_host_seconds(float(seconds))


@contextlib.contextmanager
def timing() -> Iterator[None]:
    """Speeds set within the block are forgotten at its end. The device is idle when it begins, and its time a whole
    second: what went before, at speeds that are no powers of two, then has no part in any rounding."""
    for index in range(extension().DEVICE_COUNT):
        torch.accelerator.synchronize(index)
    host_busy_for(math.ceil(host_seconds()) - host_seconds())
    links = {number: extension().link_speed(number) for number in _LINKS.values()}
    compute = extension().compute_speed()
    try:
        yield
    finally:
        for number, speed in links.items():
            extension().set_link_speed(number, *speed)
        extension().set_compute_speed(*compute)
