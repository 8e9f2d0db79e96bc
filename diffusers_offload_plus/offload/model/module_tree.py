"""The module tree as it was when the inventory was taken, and whether it has changed since.

Weights may be replaced, added or removed between two passes (LoRA, ``fuse_qkv_projections``,
``load_state_dict(assign=True)``, a new submodule). At the start of each pass the tree is compared by identity. That
finds every such change, whichever code made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain, compress, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import nn

from .partition import is_compiled

__all__ = ["ModuleTree"]

# The comparison is made in each pass for each module, so it is done by functions that loop in C. Most of its time is
# cache misses on a thousand modules and their dicts. So each dict is looked at once, and empty ones are skipped.
_weights_and_tree = itemgetter("_parameters", "_modules")
_buffers = attrgetter("_buffers")
_COMPILED = "_compiled_call_impl"


class _Contents:
    """The values of some dicts, to be compared by identity.

    The values are referenced, so that no new object can get the id of one of them.
    """

    __slots__ = ("_filled", "_objects", "_sizes")

    def __init__(self, dicts: Iterable[dict[str, Any]]) -> None:
        dicts = list(dicts)
        self._sizes = list(map(len, dicts))  # finds a value that moved from one dict to the next
        self._filled = list(map(bool, dicts))
        self._objects = list(self._values(dicts))

    def extend(self, other: _Contents) -> None:
        self._sizes += other._sizes
        self._filled += other._filled
        self._objects += other._objects

    def ids(self) -> Iterator[int]:
        """The ``id`` of each value that is referenced."""
        return map(id, self._objects)

    def same(self, dicts: Iterable[dict[str, Any]]) -> bool:
        """Whether ``dicts`` have the same values as before, and no others."""
        dicts = list(dicts)
        return list(map(len, dicts)) == self._sizes and all(map(is_, self._values(dicts), self._objects))

    def _values(self, dicts: list[dict[str, Any]]) -> Iterator[Any]:
        # ``values`` of dict itself: that of a watched dict would bring weights to the host.
        return chain.from_iterable(map(dict.values, compress(dicts, self._filled)))


class _Part:
    """The recorded contents of some modules.

    Attributes:
        dicts: the ``__dict__`` of each module, which stays the same object as long as the module exists.
    """

    __slots__ = ("buffers", "compiled", "dicts", "modules", "weights_and_tree")

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.dicts = list(map(vars, modules))
        self.weights_and_tree = _Contents(self._weights_and_tree())
        self.buffers = _Contents(map(_buffers, modules))
        self.note_compiled()

    def note_compiled(self) -> None:
        """Record the compiled forwards that the modules have now. The hook itself checks a forward beneath it."""
        self.compiled = list(self._compiled())

    def extend(self, other: _Part) -> None:
        """Add the modules of ``other``, with the contents that it recorded."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name))

    @property
    def unchanged(self) -> bool:
        """Whether the modules have the same submodules and parameters, and no ``_compiled_call_impl`` has changed."""
        return self.weights_and_tree.same(self._weights_and_tree()) and all(map(is_, self._compiled(), self.compiled))

    def _weights_and_tree(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(map(_weights_and_tree, self.dicts))

    def _compiled(self) -> Iterator[Any]:
        return map(dict.get, self.dicts, repeat(_COMPILED))


class ModuleTree:
    """The modules of ``root`` with their names, submodules, parameters and buffers as they were recorded."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._names = {id(module): name for name, module in root.named_modules()}
        self._recorded = {id(module): _Part([module]) for module in root.modules()}
        self._parts: dict[int, _Part] = {}
        self.ids = set(self._names)
        self.generation = 0

    def modules(self) -> Iterator[nn.Module]:
        """All modules recorded, the root first."""
        return (part.modules[0] for part in self._recorded.values())

    def open_modules(self) -> list[nn.Module]:
        """Modules outside any compiled subtree."""
        closed = {id(below) for module in self.modules() if is_compiled(module) for below in module.modules()}
        return [module for module in self.modules() if id(module) not in closed]

    def note_compiled(self) -> None:
        """Record the compiled forwards that all modules have now."""
        for part in (*self._recorded.values(), *self._parts.values()):
            part.note_compiled()

    def name_of(self, module: nn.Module) -> str:
        """The qualified name of ``module``; its class name if it has none or was not recorded."""
        return self._names.get(id(module)) or type(module).__name__

    def unchanged(self, called: nn.Module, intact: Callable[[nn.Module], bool]) -> bool:
        """Whether all modules below ``called`` are as recorded, no forward was compiled since, and hooks still fire.

        Args:
            intact: whether the hooks below a module still fire.
        """
        return self._part(called).unchanged and intact(called)

    def unknown_tensors(self) -> Iterator[torch.Tensor]:
        """Parameters and buffers that the root has now and that were not recorded."""
        known = self.references()
        slots: list[dict[str, Any]] = [s for m in self._root.modules() for s in (m._parameters, m._buffers)]
        return (t for slot in slots for t in dict.values(slot) if t is not None and id(t) not in known)

    def buffers_changed(self, called: nn.Module) -> bool:
        """Whether a buffer below ``called`` was replaced by another tensor. Records the present buffers."""
        part = self._part(called)
        if part.buffers.same(map(_buffers, part.modules)):
            return False
        part.buffers = _Contents(map(_buffers, part.modules))
        self.generation += 1
        return True

    def loose_buffers(self, managed: Container[int]) -> list[torch.Tensor]:
        """All buffers of the model whose ``id`` is not in ``managed``."""
        buffers = (b for module in self.modules() for b in dict.values(module._buffers) if b is not None)
        return list({id(b): b for b in buffers if id(b) not in managed}.values())

    def references(self) -> Counter[int]:
        """How many references to each parameter and buffer the tree has, by ``id``. It has more of them whenever
        :attr:`generation` has changed."""
        found: Counter[int] = Counter()
        for part in (*self._recorded.values(), *self._parts.values()):
            found.update(part.weights_and_tree.ids())
            found.update(part.buffers.ids())
        return found

    def _part(self, called: nn.Module) -> _Part:
        part = self._parts.get(id(called))
        if part is None:
            recorded = [self._recorded[id(module)] for module in called.modules() if id(module) in self._recorded]
            part = self._parts[id(called)] = _Part([])
            for one in recorded:
                part.extend(one)
            self.generation += 1
        return part
