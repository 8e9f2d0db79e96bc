"""All small programs over streams and events."""

from __future__ import annotations

from . import copy_programs, memory_programs, order_programs
from .programs import PROGRAMS, N, Program, Streams, storage_view, synchronize_all

__all__ = [
    "PROGRAMS",
    "N",
    "Program",
    "Streams",
    "copy_programs",
    "memory_programs",
    "order_programs",
    "storage_view",
    "synchronize_all",
]
