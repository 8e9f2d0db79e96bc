"""Where the tensors of a model were before something was done that may have to be undone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .tensors import alias, is_packable, map_plain, plain_tensors, repoint

__all__ = ["Devices", "Originals"]


class Originals:
    """The values of some tensors, held where they are so that the tensors can be pointed at them again.

    That takes no memory while nothing else holds the values, and giving them back cannot fail.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()) -> None:
        self._held = [(tensor, alias(tensor)) for tensor in tensors]
        self._slots: list[tuple[dict[str, Any], dict[str, Any]]] = []

    @classmethod
    def of(cls, root: nn.Module) -> Originals:
        """Those of all parameters and buffers of ``root``; which module has which is noted as well."""
        held = cls(_tensors_of(root))
        held._slots = [(slot, dict(slot)) for m in root.modules() for slot in (m._parameters, m._buffers)]
        return held

    def give_back(self) -> frozenset[int]:
        """Point the tensors at their values again; returns the ids of the tensors."""
        for slot, before in self._slots:
            slot.update(before)
        for tensor, value in self._held:
            repoint(tensor, value)
        return frozenset(id(tensor) for tensor, _ in self._held)


class Devices:
    """The devices of those tensors of a model that are not in host memory."""

    def __init__(self, root: nn.Module) -> None:
        self._devices = {
            id(tensor): (tensor, [plain.device for _, plain in plain_tensors(tensor)])
            for tensor in _tensors_of(root)
            if any(plain.device.type not in ("cpu", "meta") for _, plain in plain_tensors(tensor))
        }

    def bring_back(self) -> None:
        """Bring those back that are elsewhere now. Tensors that share memory share it there too."""
        moved = _Moved()
        for tensor, devices in self._devices.values():
            if [plain.device for _, plain in plain_tensors(tensor)] != devices:
                repoint(tensor, moved.all_to(tensor.detach(), devices))


class _Moved:
    """Storages that were copied to a device, each once."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.device], tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def all_to(self, tensor: torch.Tensor, devices: list[torch.device]) -> torch.Tensor:
        """``tensor`` with its plain tensors on ``devices``, one for each."""
        left = iter(devices)
        return map_plain(tensor, lambda plain: self.to(plain, next(left)))

    def to(self, plain: torch.Tensor, device: torch.device) -> torch.Tensor:
        """``plain`` on ``device``, over the copy of its storage."""
        if plain.device == device or not is_packable(plain):
            return plain.to(device)
        storage = plain.untyped_storage()
        key = storage.data_ptr(), device
        if key not in self._copies:
            self._copies[key] = storage, _bytes_of(storage).to(device).untyped_storage()
        _, copy = self._copies[key]
        return torch.empty(0, dtype=plain.dtype, device=device).set_(
            copy, plain.storage_offset(), plain.size(), plain.stride()
        )


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _tensors_of(root: nn.Module) -> list[torch.Tensor]:
    found = {
        id(tensor): tensor
        for module in root.modules()
        for slot in (module._parameters, module._buffers)
        for tensor in slot.copy().values()
        if tensor is not None
    }
    return list(found.values())
