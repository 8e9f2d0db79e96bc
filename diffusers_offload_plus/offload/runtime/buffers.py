"""Tensors that live on the device between passes: small buffers, and what cannot be copied as bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..model.tensors import map_plain, plain_bytes, plain_tensors, relocate, repoint
from ..transfer.copy_engine import CopyEngine

__all__ = ["PersistentBuffers", "all_to_host"]


class PersistentBuffers:
    """Parameters and buffers that live on the device between passes; forward may write them as it likes.

    Attributes:
        on_host: they are in host memory for now.
    """

    def __init__(self, copy_engine: CopyEngine) -> None:
        self._copy_engine = copy_engine
        self._tensors: list[torch.Tensor] = []
        self._bytes = 0
        self.on_host = True

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors, wherever they are now."""
        return tuple(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes they hold on the device now: none while they are on the host."""
        return self._bytes

    @property
    def total_bytes(self) -> int:
        """Bytes they take on the device while the model runs."""
        return sum(map(plain_bytes, self._tensors))

    def replace(self, tensors: list[torch.Tensor]) -> None:
        """Take ``tensors`` to the device from now on. Others stay where they are."""
        self._tensors = tensors

    def to_device(self, reserve: Callable[[int], object]) -> None:
        """Bring those that are elsewhere to the device.

        Args:
            reserve: reserves so many bytes more than there are now, or raises.
        """
        more = self.total_bytes - self._bytes  # a cast changes sizes, and buffers come and go
        if more > 0:
            reserve(more)
        self._move(self._copy_engine.device)
        self.on_host = False

    def to_host(self) -> None:
        """Bring all back to host memory, with what was written to them."""
        self._move(torch.device("cpu"))
        self.on_host = True

    def _move(self, device: torch.device) -> None:
        on_device = 0
        try:
            for tensor in self._tensors:
                if any(plain.device != device for _, plain in plain_tensors(tensor)):
                    repoint(tensor, map_plain(tensor.detach(), lambda t: relocate(t, device)))
                if device.type != "cpu":
                    on_device += plain_bytes(tensor)
        finally:
            self._copy_engine.account(on_device - self._bytes)
            self._bytes = on_device


def all_to_host(root: nn.Module, device: torch.device) -> None:
    """Put every tensor of ``root`` that is on ``device``, whoever put it there, in host memory."""
    for module in root.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and any(t.device == device for _, t in plain_tensors(tensor)):
                repoint(tensor, map_plain(tensor.detach(), lambda t: relocate(t, torch.device("cpu"))))
