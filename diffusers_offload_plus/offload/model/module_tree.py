"""What the module tree looked like when the inventory was taken, and whether it still does.

Weights may be replaced, added or removed between two passes (LoRA, ``fuse_qkv_projections``,
``load_state_dict(assign=True)``, a new submodule). Comparing the tree by identity at the start of a pass finds that,
whoever did it and by whatever way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain, compress, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import nn

from .partition import is_compiled

__all__ = ["ModuleTree"]

# Everything here is done in each pass for each module, so it is left to functions that loop in C. What takes time is
# to find a thousand modules and their dicts in memory; each is looked at once, and what is empty not looked into.
_weights_and_tree = itemgetter("_parameters", "_modules")
_buffers = attrgetter("_buffers")
_COMPILED = "_compiled_call_impl"


class _Holding:
    """What some dicts hold, by identity: kept alive, so that no other object can have the same one."""

    __slots__ = ("_filled", "_held", "_sizes")

    def __init__(self, dicts: Iterable[dict[str, Any]]) -> None:
        dicts = list(dicts)
        self._sizes = list(map(len, dicts))  # so that nothing can move from one to the next unseen
        self._filled = list(map(bool, dicts))
        self._held = list(self._values(dicts))

    def extend(self, other: _Holding) -> None:
        self._sizes += other._sizes
        self._filled += other._filled
        self._held += other._held

    def same(self, dicts: Iterable[dict[str, Any]]) -> bool:
        """Whether ``dicts`` hold that and nothing else."""
        dicts = list(dicts)
        return list(map(len, dicts)) == self._sizes and all(map(is_, self._values(dicts), self._held))

    def _values(self, dicts: list[dict[str, Any]]) -> Iterator[Any]:
        # Of the dict itself: one that is watched would answer with what the device holds.
        return chain.from_iterable(map(dict.values, compress(dicts, self._filled)))


class _Part:
    """Some modules and what they hold.

    ``dicts`` are the modules' own, in place of which nobody puts another.
    """

    __slots__ = ("buffers", "compiled", "dicts", "modules", "weights_and_tree")

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.dicts = list(map(vars, modules))
        self.weights_and_tree = _Holding(self._weights_and_tree())
        self.buffers = _Holding(map(_buffers, modules))
        self.note_compiled()

    def note_compiled(self) -> None:
        """Take the compiled forwards that the modules have now as given. What lies beneath a hook is the hook's."""
        self.compiled = list(self._compiled())

    def extend(self, other: _Part) -> None:
        """Add what ``other`` held when it was recorded."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name))

    @property
    def unchanged(self) -> bool:
        """Whether the modules hold the same modules and parameters, and no forward was compiled or given back."""
        return self.weights_and_tree.same(self._weights_and_tree()) and all(map(is_, self._compiled(), self.compiled))

    def _weights_and_tree(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(map(_weights_and_tree, self.dicts))

    def _compiled(self) -> Iterator[Any]:
        return map(dict.get, self.dicts, repeat(_COMPILED))


class ModuleTree:
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

    def note_compiled(self) -> None:
        """Take the compiled forwards that modules have now as given."""
        for part in (*self._recorded.values(), *self._parts.values()):
            part.note_compiled()

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
