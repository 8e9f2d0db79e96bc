"""What the module tree looked like when the inventory was taken, and whether it still does.

Weights may be replaced, added or removed between two passes (LoRA, ``fuse_qkv_projections``,
``load_state_dict(assign=True)``, a new submodule). Comparing the tree by identity at the start of a pass finds that,
whoever did it and by whatever way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from operator import is_
from typing import Any

import torch
from torch import nn

from .partition import compiled_call, is_compiled

__all__ = ["Structure"]


class _Part:
    """Some modules and what they hold, in flat lists, for this is compared in each pass."""

    __slots__ = ("buffers", "compiled", "held", "modules")

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.held = _held(modules)
        self.buffers = _buffers(modules)
        self.compiled = _compiled(modules)

    def extend(self, other: _Part) -> None:
        """Add what ``other`` held when it was recorded."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name))


class Structure:
    """The modules of ``root`` by name, and the identity of everything they hold."""

    def __init__(self, root: nn.Module) -> None:
        self._names = {id(module): name for name, module in root.named_modules()}
        self._recorded = {id(module): _Part([module]) for module in root.modules()}
        self._parts: dict[int, _Part] = {}
        self.ids = set(self._names)

    def modules(self) -> Iterator[nn.Module]:
        """All modules recorded, the root first."""
        return (part.modules[0] for part in self._recorded.values())

    def open_modules(self) -> list[nn.Module]:
        """Modules outside any compiled subtree."""
        closed = {id(below) for module in self.modules() if is_compiled(module) for below in module.modules()}
        return [module for module in self.modules() if id(module) not in closed]

    def settle(self) -> None:
        """Take the compiled forwards that modules have now as given."""
        for part in (*self._recorded.values(), *self._parts.values()):
            part.compiled = _compiled(part.modules)

    def name_of(self, module: nn.Module) -> str:
        """The qualified name ``module`` was recorded under, or its class name."""
        return self._names.get(id(module)) or type(module).__name__

    def unchanged(self, entry: nn.Module, intact: Callable[[nn.Module], bool], root: nn.Module) -> bool:
        """Whether everything below ``entry`` is as recorded, no forward was compiled since, and hooks still fire."""
        part = self._part(entry)
        return (
            intact(root)
            and _same(_held(part.modules), part.held)
            and _same(_compiled(part.modules), part.compiled)
            and all(map(intact, part.modules))
        )

    def buffers_changed(self, entry: nn.Module) -> bool:
        """Whether a buffer below ``entry`` was replaced by another tensor; records what is there now."""
        part = self._part(entry)
        now = _buffers(part.modules)
        if _same(now, part.buffers):
            return False
        part.buffers = now
        return True

    def loose_buffers(self, managed: Container[int]) -> list[torch.Tensor]:
        """Every buffer of the model but those in ``managed`` (by ``id``)."""
        buffers = (b for module in self.modules() for b in dict.values(module._buffers) if b is not None)
        return list({id(b): b for b in buffers if id(b) not in managed}.values())

    def _part(self, entry: nn.Module) -> _Part:
        part = self._parts.get(id(entry))
        if part is None:
            recorded = [self._recorded[id(module)] for module in entry.modules() if id(module) in self._recorded]
            part = self._parts[id(entry)] = _Part([])
            for one in recorded:
                part.extend(one)
        return part


def _held(modules: list[nn.Module]) -> list[Any]:
    # Each module follows what it holds, so that nothing can move from one to the next unseen.
    return [
        held for module in modules for held in (*module._modules.values(), *dict.values(module._parameters), module)
    ]


def _buffers(modules: list[nn.Module]) -> list[Any]:
    return [held for module in modules for held in (*dict.values(module._buffers), module)]


def _compiled(modules: list[nn.Module]) -> list[Any]:
    return list(map(compiled_call, modules))


def _same(now: list[Any], expected: list[Any]) -> bool:
    return len(now) == len(expected) and all(map(is_, now, expected))
