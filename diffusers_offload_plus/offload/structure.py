"""What the module tree looked like when the inventory was taken, and whether it still does.

Weights may be replaced, added or removed between two passes (LoRA, ``fuse_qkv_projections``,
``load_state_dict(assign=True)``, a new submodule). Comparing the tree by identity at the start of a pass finds that,
whoever did it and by whatever way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator
from operator import is_
from typing import Any

import torch
from torch import nn

from .partition import compiled_call, is_compiled

__all__ = ["Structure"]


@dataclasses.dataclass(eq=False, slots=True)
class _Record:
    module: nn.Module
    name: str
    children: tuple[Any, ...]
    parameters: tuple[Any, ...]
    buffers: tuple[Any, ...]
    compiled: Any = None


class Structure:
    """The modules of ``root`` by name, and the identity of everything they hold."""

    def __init__(self, root: nn.Module) -> None:
        self._records = {id(module): _record(name, module) for name, module in root.named_modules()}
        self._below: dict[int, list[_Record]] = {}
        self.ids = set(self._records)

    def modules(self) -> Iterator[nn.Module]:
        """All modules recorded, the root first."""
        return (record.module for record in self._records.values())

    def open_modules(self) -> list[nn.Module]:
        """Modules outside any compiled subtree."""
        closed = {id(below) for module in self.modules() if is_compiled(module) for below in module.modules()}
        return [module for module in self.modules() if id(module) not in closed]

    def settle(self) -> None:
        """Take the compiled forwards that modules have now as given."""
        for record in self._records.values():
            record.compiled = compiled_call(record.module)

    def name_of(self, module: nn.Module) -> str:
        """The qualified name ``module`` was recorded under, or its class name."""
        record = self._records.get(id(module))
        return (record.name if record is not None else "") or type(module).__name__

    def unchanged(self, entry: nn.Module, intact: Callable[[nn.Module], bool], root: nn.Module) -> bool:
        """Whether everything below ``entry`` is as recorded, no forward was compiled since, and hooks still fire."""
        if not intact(root):
            return False
        for record in self._records_below(entry):
            module = record.module
            if (
                not _same(module._modules.values(), record.children)
                or not _same(dict.values(module._parameters), record.parameters)
                or compiled_call(module) is not record.compiled
                or not intact(module)
            ):
                return False
        return True

    def buffers_changed(self, entry: nn.Module) -> bool:
        """Whether a buffer below ``entry`` was replaced by another tensor; records what is there now."""
        changed = False
        for record in self._records_below(entry):
            if not _same(dict.values(record.module._buffers), record.buffers):
                record.buffers = tuple(dict.values(record.module._buffers))
                changed = True
        return changed

    def loose_buffers(self, managed: Container[int]) -> list[torch.Tensor]:
        """Every buffer of the model but those in ``managed`` (by ``id``)."""
        buffers = (b for module in self.modules() for b in dict.values(module._buffers) if b is not None)
        return list({id(b): b for b in buffers if id(b) not in managed}.values())

    def _records_below(self, entry: nn.Module) -> list[_Record]:
        below = self._below.get(id(entry))
        if below is None:
            below = [self._records[id(module)] for module in entry.modules() if id(module) in self._records]
            self._below[id(entry)] = below
        return below


def _record(name: str, module: nn.Module) -> _Record:
    return _Record(
        module,
        name,
        tuple(module._modules.values()),
        tuple(dict.values(module._parameters)),
        tuple(dict.values(module._buffers)),
    )


def _same(values: Iterable[Any], expected: tuple[Any, ...]) -> bool:
    now = tuple(values)
    return len(now) == len(expected) and all(map(is_, now, expected))
