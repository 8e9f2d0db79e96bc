"""Pointing the tensors of a group at host memory or at a device slab, and checking that they still point there.

[Note: pointing]
``parameter.data = value`` points a parameter at other memory; the parameter stays the same object. A wrapper subclass
has its data in inner tensors. Its outer tensor and its inner attributes are both set, because with either alone the
device of the parameter and the device of its data differ. The attributes are looked up once, so that pointing a group
is a loop of assignments.

[Note: what tells where a tensor points]
Address and layout tell where a tensor points: as long as we have the memory, no other tensor gets that address. A
storage object does not tell it: ``share_memory()``, and sending a tensor to another process, put other memory into the
same storage object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch

from .tensors import inner_names, is_wrapper, plain_tensors

__all__ = ["Pointers", "has_version"]

_version, _shape, _dtype = attrgetter("_version"), attrgetter("shape"), attrgetter("dtype")
_address, _stride = torch.Tensor.data_ptr, torch.Tensor.stride


class Pointers:
    """Some tensors, and for each the value that it is to be pointed at.

    Attributes:
        values: the values, in the order of the tensors: plain tensors, or wrappers over plain tensors.
        inner: the plain tensors inside of wrappers among the values. Pointed tensors have them as attributes.
        tracked: whether all tensors have a version counter; inference tensors have none.
        references: how many references to each tensor this object has.
    """

    __slots__ = (
        *("_addresses", "_attributes", "_base", "_empty", "_layout", "_offsets", "_owned", "_owners", "_parts"),
        *("_shown", "_spans", "_steps", "_storage", "_versioned", "inner", "references", "tracked", "values"),
    )

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        storage: torch.UntypedStorage | None = None,
    ) -> None:
        """Record tensors and values; :meth:`point` points them.

        Args:
            tensors: parameters and buffers.
            values: the value for each tensor.
            storage: the storage of all values, whose address may change; None: the values' addresses never change.
        """
        self.values = list(values)
        self.inner: list[torch.Tensor] = []
        self._steps: list[tuple[torch.Tensor, torch.Tensor, tuple[tuple[str, torch.Tensor], ...]]] = []
        self._owned: list[tuple[Any, str, torch.Tensor]] = []  # attributes that have to be these objects
        self._owners: list[Any] = []  # wrappers
        self._attributes: list[list[int]] = []  # for each wrapper the ids of its attributes when last pointed
        self._versioned: list[torch.Tensor] = []
        self._spans: list[tuple[int, int]] = []  # for each tensor its range in ``_versioned``; -1: not all are counted
        self._storage = storage
        # Plain tensors and their addresses; tensors without elements have none. Each pass compares them for each
        # tensor, so it is done by functions that loop in C.
        self._parts: list[torch.Tensor] = []
        self._empty: list[torch.Tensor] = []
        self._base = 0 if storage is None else storage.data_ptr()
        self._offsets: list[int] = []
        self._shown: list[torch.Tensor] = []  # the value of each part
        for tensor, value in zip(tensors, values, strict=True):
            watched = [tensor]
            if is_wrapper(value):
                self._steps.append((tensor, value, tuple((name, getattr(value, name)) for name in inner_names(value))))
                self._owned.extend(_inside(tensor, value))
                self._owners.append(tensor)
                self._attributes.append([])
                plain = [part for _, part in plain_tensors(value)]
                self.inner.extend(plain)
                watched.extend(plain)
                for part in plain:
                    self._note(part, part)
            else:
                self._steps.append((tensor, value, ()))
                self._note(tensor, value)
            counted = [t for t in watched if has_version(t)]
            self._spans.append((len(self._versioned), len(counted) if len(counted) == len(watched) else -1))
            self._versioned.extend(counted)
        self.tracked = all(count >= 0 for _, count in self._spans)
        pointed, owning = [step[0] for step in self._steps], [owner for owner, _, _ in self._owned]
        lists = (self._parts, self._empty, self._versioned, self._owners, pointed, owning)
        places = Counter(id(t) for listed in lists for t in listed)
        self.references = [places[id(tensor)] for tensor in tensors]
        self._addresses = [self._base + offset for offset in self._offsets]
        self._layout = [*map(_stride, self._shown), *map(_shape, self._shown), *map(_dtype, self._shown)]

    def _note(self, part: torch.Tensor, value: torch.Tensor) -> None:
        if not value.numel():
            self._empty.append(part)
            return
        self._parts.append(part)
        self._offsets.append(value.data_ptr() - self._base)
        self._shown.append(value)

    def point(self) -> None:
        """Point the tensors at their values; see [Note: pointing]."""
        if not self._owned:
            self._assign()
            return
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # in inference mode wrappers are asked about each assignment
                self._assign()
        else:
            self._assign()
        self._attributes = [list(map(id, vars(owner).values())) for owner in self._owners]

    def _assign(self) -> None:
        for tensor, value, inner in self._steps:
            tensor.data = value
            for name, part in inner:
                setattr(tensor, name, part)

    def are_current(self) -> bool:
        """Whether all tensors point at their values; see [Note: what tells where a tensor points]."""
        storage, parts = self._storage, self._parts
        if storage is not None and storage.data_ptr() != self._base:
            self._base = base = storage.data_ptr()
            self._addresses = [base + offset for offset in self._offsets]
        if [*map(_address, parts)] != self._addresses:
            return False
        if [*map(_stride, parts), *map(_shape, parts), *map(_dtype, parts)] != self._layout:
            return False
        return not (self._owned or self._empty) or self._has_inner()

    def _has_inner(self) -> bool:
        for owner, name, part in self._owned:
            if getattr(owner, name) is not part:
                return False
        for owner, attributes in zip(self._owners, self._attributes, strict=True):
            if list(map(id, vars(owner).values())) != attributes:
                return False  # an inner tensor may have been added
        return not any(part.numel() for part in self._empty)

    def versions(self) -> list[int]:
        """The version counters of the tensors and of their inner tensors."""
        return list(map(_version, self._versioned))

    def are_unwritten(self, versions: list[int]) -> bool:
        """Whether all tensors point at their values, and no counter differs from ``versions``."""
        return list(map(_version, self._versioned)) == versions and self.are_current()

    def changed_since(self, versions: list[int]) -> set[int]:
        """Places of tensors whose counters differ from ``versions``, and of tensors without counters."""
        now = self.versions()
        return {
            place
            for place, (start, count) in enumerate(self._spans)
            if count < 0 or now[start : start + count] != versions[start : start + count]
        }

    def points(self, place: int) -> bool:
        """Whether the tensor at ``place`` points at its value."""
        tensor, value, _ = self._steps[place]
        return [_where(t) for _, t in plain_tensors(tensor)] == [_where(t) for _, t in plain_tensors(value)]


def has_version(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` has a version counter. Inference tensors, and views of them, have none."""
    try:
        return tensor._version >= 0
    except RuntimeError:
        return False


def _where(plain: torch.Tensor) -> tuple[Any, ...]:
    return plain.data_ptr(), plain.shape, plain.stride(), plain.dtype


def _inside(owner: Any, value: torch.Tensor) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """The inner tensors of ``owner`` once it is pointed at the wrapper ``value``: owner, attribute name, tensor."""
    for name in inner_names(value):
        part = getattr(value, name)
        yield owner, name, part
        if is_wrapper(part):
            yield from _inside(part, part)
