"""What a group needs to know about where its weights rest, whatever the tier."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch

from .layout import Extent

__all__ = ["Allocator", "WeightStorage"]


class WeightStorage(Protocol):
    """The packed bytes of some tensors at rest.

    Attributes:
        tensors: the tensors at rest, in the order they were given; real tensors with the right values.
    """

    tensors: list[torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes one transfer moves, alignment included."""

    @property
    def in_memory(self) -> torch.Tensor | None:
        """The packed bytes as a uint8 tensor in host memory, ready to travel as one copy; None if they are not."""

    @property
    def tier(self) -> str:
        """Where the bytes rest, as reports call it."""

    @property
    def is_aligned(self) -> bool:
        """Whether a CPU may compute with every tensor where it lies."""

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """Where in the packed bytes ``tensor`` (any view) begins, or None if its memory is not of this home."""

    def extent_at(self, offset: int) -> Extent:
        """The extent that the byte at ``offset`` belongs to."""

    def read_into(self, target: torch.Tensor, start: int = 0) -> None:
        """Fill ``target`` (uint8, on the CPU) with the packed bytes from ``start`` on."""

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Some of the packed bytes as a uint8 tensor on the CPU."""

    def write(self, start: int, values: torch.Tensor) -> None:
        """Put ``values`` (uint8, on any device) in place of the bytes at ``start``, within one extent."""


class Allocator(Protocol):
    """Gives tensors a home."""

    def place(self, key: Hashable, sources: Sequence[torch.Tensor]) -> WeightStorage:
        """A home for the values of ``sources`` (dense, on one device), which ``key`` names. Does not change them."""
