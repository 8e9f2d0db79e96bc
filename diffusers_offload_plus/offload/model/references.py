"""Whether code outside of the engine has references to the tensors of a group, or to its stored memory.

[Note: who may write a weight between two passes]
A weight can be written between two passes through its parameter, or through a tensor that shares its stored
memory (``state_dict()``, ``.data``, a view, a numpy array). Writes through ``.data`` leave no trace. But whoever makes
one has a reference that was taken before, for lookups are seen (see [Note: lookups]). Reference counts tell whether
there is one: the engine knows its own references, and takes every other for a writer.

* Stored memory that others hold is not left behind: the group's parameters point at it between passes, and each pass
  copies it anew.
* A group whose parameters others hold may be cached, for they point at the device copy and writes reach it. It is not
  copied ahead into the next pass, for that copy would not have what is written meanwhile.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Sequence

import torch

from .pointers import Pointers
from .tensors import plain_tensors

__all__ = ["StoredMemory", "TensorReferences", "storage_uses"]

_uses = torch._C._storage_Use_Count
_references = sys.getrefcount


def storage_uses(cdata: int) -> int:
    """How many tensors have the storage with this ``_cdata``."""
    return _uses(cdata) - 1  # it counts its own reference


class StoredMemory:
    """The stored memory of a group: counts of the references to it that are the engine's own.

    Make one when the memory is new and no parameter points at it yet.
    """

    __slots__ = ("_inner", "_inner_counts", "_object_counts", "_objects", "_pointed_counts", "_storages", "_uses")

    def __init__(self, stored: Pointers, *, is_new: bool) -> None:
        """Count.

        Args:
            stored: the values.
            is_new: nobody else can have a reference now; False: others count as holding the memory for good.
        """
        plain = [t for value in stored.values for _, t in plain_tensors(value) if t.numel()]
        inside = set(map(id, stored.inner))
        self._objects = [t.untyped_storage() for t in plain]
        self._object_counts = list(map(_references, self._objects))
        self._storages = [storage._cdata for storage in self._objects]
        self._uses = list(map(_uses, self._storages)) if is_new else [-1] * len(plain)
        # A parameter that points at a plain value has a reference to the storage; one that points at a wrapper has
        # the inner tensors themselves.
        pointing = Counter(key for t, key in zip(plain, self._storages, strict=True) if id(t) not in inside)
        self._pointed_counts = [uses + pointing[key] for uses, key in zip(self._uses, self._storages, strict=True)]
        del plain  # these references would be counted as well
        self._inner = list(stored.inner)
        self._inner_counts = list(map(_references, self._inner))

    def is_held(self, *, pointed: bool) -> bool:
        """Whether other code has a reference to the memory.

        Args:
            pointed: the group's own parameters point at it now.
        """
        expected = self._pointed_counts if pointed else self._uses
        if list(map(_uses, self._storages)) != expected:
            return True
        if list(map(_references, self._objects)) != self._object_counts:
            return True
        if not self._inner:
            return False
        return list(map(_references, self._inner)) != [count + pointed for count in self._inner_counts]


class TensorReferences:
    """The parameters and buffers of a group: whether other code has references to them, strong or weak."""

    __slots__ = ("_expected", "_tensors")

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """``tensors``: a list that stays as it is; it counts as one reference to each."""
        self._tensors = tensors
        self._expected: list[int] | None = None

    @property
    def known(self) -> bool:
        """Whether :meth:`expect` has been called since :meth:`forget`."""
        return self._expected is not None

    def expect(self, others: Counter[int], pointers: Sequence[Pointers]) -> None:
        """Record how many references are known.

        Args:
            others: for the ``id`` of a tensor, how many references other parts of the engine and the modules have.
            pointers: which point the tensors.
        """
        counts = [others[id(tensor)] + OWN for tensor in self._tensors]
        for one in pointers:
            counts = [count + more for count, more in zip(counts, one.references, strict=True)]
        self._expected = counts

    def forget(self) -> None:
        """References have come or gone: what was recorded is no longer right."""
        self._expected = None

    @property
    def are_held(self) -> bool:
        """Whether other code has a reference to one of the tensors."""
        if list(map(_references, self._tensors)) != self._expected:
            return True
        return any(map(weakref.getweakrefcount, self._tensors))


def _in_one_list() -> int:
    tensors = [torch.empty(0, device="cpu")]
    return next(map(_references, tensors))


OWN = _in_one_list()  # what is counted for a tensor that nothing but one list has
