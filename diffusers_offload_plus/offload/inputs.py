"""Arguments of a forward, moved to where it computes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device

__all__ = ["to_device"]


def to_device(
    args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device, exclude: frozenset[str], non_blocking: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``args`` and ``kwargs`` with their tensors on ``device``.

    Containers that hold no tensor elsewhere are passed on as they are: mutable caches keep their identity. Keywords
    in ``exclude`` are never touched.
    """
    if any(_elsewhere(value, device) for value in args):
        args = send_to_device(args, device, non_blocking=non_blocking)
    moved = {
        name: send_to_device(value, device, non_blocking=non_blocking)
        for name, value in kwargs.items()
        if name not in exclude and _elsewhere(value, device)
    }
    return args, {**kwargs, **moved} if moved else kwargs


def _elsewhere(value: Any, device: torch.device) -> bool:
    if isinstance(value, torch.Tensor):
        return value.device != device
    if isinstance(value, (tuple, list)):
        return any(_elsewhere(item, device) for item in value)
    if isinstance(value, dict):
        return any(_elsewhere(item, device) for item in value.values())
    return (
        hasattr(value, "to") and not isinstance(value, torch.nn.Module) and getattr(value, "device", device) != device
    )
