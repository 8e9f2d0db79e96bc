"""Arguments of a forward, moved to the device that computes it, and its output where that is a weight itself.

A returned parameter would go back to the host with its module; a tensor over its device memory is returned instead,
which keeps that memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils import _pytree as pytree

__all__ = ["elements_of", "to_device", "valid_output"]


def to_device(
    args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device, exclude: frozenset[str], non_blocking: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``args`` and ``kwargs`` with their tensors on ``device``.

    Containers that hold no tensor elsewhere are passed on as they are: mutable caches keep their identity. Keywords
    in ``exclude`` are never touched.
    """
    for value in args:
        # Plain tensors are nearly all there is: they are spared a call.
        if value.device != device if type(value) is torch.Tensor else _elsewhere(value, device):
            args = send_to_device(args, device, non_blocking=non_blocking)
            break
    if not kwargs:
        return args, kwargs
    moved = None
    for name, value in kwargs.items():
        if value.device != device if type(value) is torch.Tensor else _elsewhere(value, device):
            if name in exclude:
                continue
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


def valid_output(output: Any, managed: Mapping[int, object]) -> Any:
    """``output`` with other tensors in place of those whose ``id`` is in ``managed``."""
    if not managed or not _holds(output, managed):
        return output
    return pytree.tree_map(lambda value: _detached(value) if _is(value, managed) else value, output)


def _holds(value: Any, managed: Mapping[int, object]) -> bool:
    # Cheaper than flattening: most outputs are a tensor or a tuple of tensors.
    if isinstance(value, torch.Tensor):
        return id(value) in managed
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return False
    return any(_holds(item, managed) for item in value)


def _is(value: Any, managed: Mapping[int, object]) -> bool:
    return isinstance(value, torch.Tensor) and id(value) in managed


def _detached(value: torch.Tensor) -> torch.Tensor:
    return value.view_as(value) if torch.is_grad_enabled() and value.requires_grad else value.detach()
