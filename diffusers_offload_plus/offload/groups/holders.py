"""Whether code outside of the engine could write a group between two passes without being seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..model.module_tree import ModuleTree
from .param_group import ParamGroup

__all__ = ["Holders"]


class Holders:
    """Knows the references that the modules of one model and the engine have to its tensors, so that any other one is
    noticed; see [Note: who may write a weight between two passes].

    Dictionaries that are not watched count as other code: what they hand out is not seen.
    """

    def __init__(self, tree: ModuleTree, groups: Iterable[ParamGroup]) -> None:
        self._tree = tree
        self._groups = tuple(groups)
        self._known: Counter[int] = Counter()
        self._generation = -1

    def have_tensors_of(self, group: ParamGroup) -> bool:
        """Whether other code has a reference to a tensor of ``group``."""
        if self._tree.generation != self._generation:
            self._count()
        if not group.references.known:
            group.expect_references(self._known)
        return group.references.are_held

    def _count(self) -> None:
        self._generation = self._tree.generation
        self._known = self._tree.references()
        for module in self._tree.modules():
            watched: list[dict[str, Any]] = [d for d in (module._parameters, module._buffers) if type(d) is not dict]
            for held in watched:
                self._known.update(map(id, dict.values(held)))
        for group in self._groups:
            self._known.update(id(entry.tensor) for entry in group.spec.entries)
            group.references.forget()
