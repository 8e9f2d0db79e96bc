"""What the module tree looked like when the inventory was taken, and whether it still does.

Weights may be replaced, added or removed between two passes (LoRA, ``fuse_qkv_projections``,
``load_state_dict(assign=True)``, a new submodule). Comparing the tree by identity at the start of a pass finds that,
whoever did it and by whatever way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from .partition import is_compiled

__all__ = ["Structure"]

# Everything here is done in each pass for each module, so it is left to functions that loop in C.
_children, _parameters, _buffers = map(attrgetter, ("_modules", "_parameters", "_buffers"))
_compiled_call = attrgetter("_compiled_call_impl")


class _Holding:
    """What some dicts hold, by identity: kept alive, so that no other object can have the same one."""

    __slots__ = ("_held", "_sizes")

    def __init__(self, dicts: Iterable[dict[str, Any]]) -> None:
        dicts = list(dicts)
        self._sizes = list(map(len, dicts))  # so that nothing can move from one to the next unseen
        self._held = _values(dicts)

    def extend(self, other: _Holding) -> None:
        self._sizes += other._sizes
        self._held += other._held

    def same(self, dicts: Iterable[dict[str, Any]]) -> bool:
        """Whether ``dicts`` hold that and nothing else."""
        dicts = list(dicts)
        if list(map(len, dicts)) != self._sizes:
            return False
        now = _values(dicts)
        return len(now) == len(self._held) and all(map(is_, now, self._held))


class _Part:
    """Some modules and what they hold."""

    __slots__ = ("buffers", "compiled", "modules", "tree", "weights")

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.tree = _Holding(map(_children, modules))
        self.weights = _Holding(map(_parameters, modules))
        self.buffers = _Holding(map(_buffers, modules))
        self.settle()

    def settle(self) -> None:
        """Take the compiled forwards that the modules have now as given. What lies beneath a hook is the hook's."""
        self.compiled = list(map(_compiled_call, self.modules))

    def extend(self, other: _Part) -> None:
        """Add what ``other`` held when it was recorded."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name))

    @property
    def unchanged(self) -> bool:
        """Whether the modules hold the same modules and parameters, and no forward was compiled or given back."""
        modules = self.modules
        return (
            self.tree.same(map(_children, modules))
            and self.weights.same(map(_parameters, modules))
            and all(map(is_, map(_compiled_call, modules), self.compiled))
        )


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
            part.settle()

    def name_of(self, module: nn.Module) -> str:
        """The qualified name ``module`` was recorded under, or its class name."""
        return self._names.get(id(module)) or type(module).__name__

    def unchanged(self, entry: nn.Module, intact: Callable[[nn.Module], bool]) -> bool:
        """Whether everything below ``entry`` is as recorded, no forward was compiled since, and, as ``intact`` says of
        it, hooks still fire."""
        return self._part(entry).unchanged and intact(entry)

    def buffers_changed(self, entry: nn.Module) -> bool:
        """Whether a buffer below ``entry`` was replaced by another tensor; records what is there now."""
        part = self._part(entry)
        if part.buffers.same(map(_buffers, part.modules)):
            return False
        part.buffers = _Holding(map(_buffers, part.modules))
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


def _values(dicts: Iterable[dict[str, Any]]) -> list[Any]:
    # Of the dict itself: one that is watched would answer with what the device holds.
    return list(chain.from_iterable(map(dict.values, dicts)))
