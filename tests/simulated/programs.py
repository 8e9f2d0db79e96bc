"""What programs over streams and events are: each with the race it contains, or none.

The verdict is about order, not about values: a program is wrong where nothing orders two conflicting uses of the same
bytes, whatever happened to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.simulated import reset_stats

__all__ = ["PROGRAMS", "N", "Program", "Streams", "correct", "racy", "storage_view", "synchronize_all"]

N = 64
"""Elements of the buffers in stream programs."""


def synchronize_all() -> None:
    for index in range(torch.sim.device_count()):
        torch.sim.synchronize(index)


class Streams:
    """What a stream program works with: the default stream, three side streams, a device buffer, a pinned one."""

    def __init__(self) -> None:
        self.main = torch.sim.current_stream()
        self.a, self.b, self.c = (torch.Stream(device="sim") for _ in range(3))
        self.buffer = torch.zeros(N, device="sim")
        self.host = torch.ones(N).pin_memory()
        synchronize_all()
        reset_stats()

    def upload(self, stream: torch.Stream, destination: Tensor | None = None) -> None:
        with stream:
            (self.buffer if destination is None else destination).copy_(self.host[:N], non_blocking=True)

    def fetch(self, stream: torch.Stream) -> Tensor:
        """Copy from pinned memory into memory that belongs to ``stream``."""
        with stream:
            return self.host.to("sim", non_blocking=True)


class Program(NamedTuple):
    run: Callable[[Streams], None]
    race: str | None
    """Part of the report of the race it contains; None for a correct program."""


PROGRAMS: list[Program] = []


def correct(run: Callable[[Streams], None]) -> Callable[[Streams], None]:
    PROGRAMS.append(Program(run, None))
    return run


def racy(report: str) -> Callable[[Callable[[Streams], None]], Callable[[Streams], None]]:
    def add(run: Callable[[Streams], None]) -> Callable[[Streams], None]:
        PROGRAMS.append(Program(run, report))
        return run

    return add


def storage_view(tensor: Tensor, begin: int, length: int) -> Tensor:
    size = tensor.element_size()
    part = tensor.untyped_storage()[begin * size : (begin + length) * size]
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(part, 0, (length,), (1,))
