"""Tensors that live on the device between passes: small buffers, and what cannot be copied as bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from ..model.references import storage_uses
from ..model.tensors import alias, is_packable, map_plain, plain_bytes, plain_tensors, relocate, repoint, span
from ..modes import engine_mode
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
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []  # with the host memory that others hold
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
        if self._move(self._copy_engine.device) or more:
            self._recount()
        self.on_host = False

    def to_host(self) -> None:
        """Bring all back to host memory, with what was written to them."""
        self._move(torch.device("cpu"))
        self._recount()
        self.on_host = True

    def return_held(self) -> None:
        """Point tensors back at the host memory that they were brought from, with what was written to them, if other
        code has a reference to that memory; see [Note: who may write a weight between two passes]."""
        if not self._held:
            return
        held, self._held = self._held, []
        with engine_mode():
            self._return(held)
        self._recount()

    def _return(self, held: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for tensor, original in held:
            pairs = [(t, o) for (_, t), (_, o) in zip(plain_tensors(tensor), plain_tensors(original), strict=True)]
            if any(_layout(there) != _layout(here) for there, here in pairs):
                continue  # others gave it another value meanwhile
            if any(_uses(here) > 1 for _, here in pairs):
                for there, here in pairs:
                    span(here).copy_(span(there))
                repoint(tensor, original)

    def _move(self, device: torch.device) -> bool:
        """Bring all that are elsewhere to ``device``; whether there were some."""
        elsewhere = [t for t in self._tensors if any(plain.device != device for _, plain in plain_tensors(t))]
        if not elsewhere:
            return False
        pointing = Counter(_key(t) for known in self._tensors for _, t in plain_tensors(known))
        try:
            for tensor in elsewhere:
                if device.type != "cpu" and any(_uses(t) > pointing[_key(t)] for _, t in plain_tensors(tensor)):
                    self._held.append((tensor, alias(tensor)))
                repoint(tensor, map_plain(tensor.detach(), lambda t: relocate(t, device)))
        except BaseException:
            self._recount()
            raise
        return True

    def _recount(self) -> None:
        on_device = [t for t in self._tensors if any(p.device.type != "cpu" for _, p in plain_tensors(t))]
        nbytes = sum(map(plain_bytes, on_device))
        self._copy_engine.account(nbytes - self._bytes)
        self._bytes = nbytes


def _key(plain: torch.Tensor) -> int:
    return plain.untyped_storage()._cdata if is_packable(plain) else 0


def _uses(plain: torch.Tensor) -> int:
    """How many tensors have the memory of ``plain``; 0 if it has none that can be copied as bytes."""
    return storage_uses(_key(plain)) if is_packable(plain) and plain.numel() else 0


def _layout(plain: torch.Tensor) -> tuple[object, ...]:
    return plain.dtype, plain.shape, plain.stride() if is_packable(plain) else None


def all_to_host(root: nn.Module, device: torch.device) -> None:
    """Put every tensor of ``root`` that is on ``device``, whoever put it there, in host memory."""
    for module in root.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and any(t.device == device for _, t in plain_tensors(tensor)):
                repoint(tensor, map_plain(tensor.detach(), lambda t: relocate(t, torch.device("cpu"))))
