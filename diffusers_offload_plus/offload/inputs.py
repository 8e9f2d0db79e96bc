"""Arguments of a forward, moved to where it computes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device

__all__ = ["elements_of", "to_device"]


def to_device(
    args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device, exclude: frozenset[str], non_blocking: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``args`` and ``kwargs`` with their tensors on ``device``.

    Containers that hold no tensor elsewhere are passed on as they are: mutable caches keep their identity. Keywords
    in ``exclude`` are never touched.
    """
    for value in args:
        if _elsewhere(value, device):
            args = send_to_device(args, device, non_blocking=non_blocking)
            break
    moved = None
    for name, value in kwargs.items():
        if _elsewhere(value, device) and name not in exclude:
            moved = moved or dict(kwargs)
            moved[name] = send_to_device(value, device, non_blocking=non_blocking)
    return args, moved or kwargs


def elements_of(value: Any) -> int:
    """Elements of all tensors in ``value``, itself one or a container: a measure of how much is to be computed."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, (tuple, list)):
        return sum(map(elements_of, value))
    if isinstance(value, dict):
        return sum(map(elements_of, value.values()))
    return 0


def _elsewhere(value: Any, device: torch.device) -> bool:
    # Asked for every argument of every hooked call.
    if isinstance(value, torch.Tensor):
        return value.device != device
    if value is None or isinstance(value, (bool, int, float, str)):
        return False
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return (
            hasattr(value, "to")
            and not isinstance(value, torch.nn.Module)
            and getattr(value, "device", device) != device
        )
    found = False
    for item in value:
        found = found or _elsewhere(item, device)
    return found
