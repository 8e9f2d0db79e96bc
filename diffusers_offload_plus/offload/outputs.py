"""What a forward returns, where that is a weight itself.

A returned parameter would go back to the host with its module; a tensor over its device memory is returned instead,
which keeps that memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["valid_output"]


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
