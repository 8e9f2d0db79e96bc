"""Pointing the tensors of a group at host memory or at a device slab, and telling whether they still point there.

[Note: pointing]
``parameter.data = value`` lets a parameter keep its identity. A wrapper subclass holds its data in inner tensors: its
outer tensor and its inner attributes are both set, for either alone leaves device and data disagreeing. All that it
takes is looked up once, so that pointing a group somewhere is a loop of assignments.

[Note: what tells where a tensor points]
Its address and its layout, for the memory at that address is ours for as long as we hold it. A storage object does not
tell: ``share_memory()`` and sending a tensor to another process put other memory into the same object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch

from .tensors import inner_names, is_wrapper, plain_tensors

__all__ = ["Pointers", "has_version"]

_version, _shape, _dtype = attrgetter("_version"), attrgetter("shape"), attrgetter("dtype")
_address, _stride = torch.Tensor.data_ptr, torch.Tensor.stride


class Pointers:
    """For each of some tensors the value that it is pointed at.

    Attributes:
        values: the values, in the order of the tensors: plain tensors, or wrappers over plain tensors.
        inner: the plain tensors inside of wrappers among them, which the pointed tensors hold as objects.
        tracked: every write is seen by a version counter; inference tensors have none.
    """

    __slots__ = (
        *("_addresses", "_attributes", "_base", "_empty", "_layout", "_offsets", "_owned", "_owners", "_parts"),
        *("_shown", "_spans", "_steps", "_storage", "_versioned", "inner", "tracked", "values"),
    )

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        storage: torch.UntypedStorage | None = None,
    ) -> None:
        """Nothing is pointed yet.

        Args:
            tensors: parameters and buffers.
            values: what each is to be pointed at.
            storage: all of it lies there, and may move with it; None: every value stays where it is.
        """
        self.values = list(values)
        self.inner: list[torch.Tensor] = []
        self._steps: list[tuple[torch.Tensor, torch.Tensor, tuple[tuple[str, torch.Tensor], ...]]] = []
        self._owned: list[tuple[Any, str, torch.Tensor]] = []  # attributes that have to be these objects
        self._owners: list[Any] = []  # wrappers, and the ids of their attributes when last pointed
        self._attributes: list[list[int]] = []
        self._versioned: list[torch.Tensor] = []
        self._spans: list[tuple[int, int]] = []  # which of the versions are of each tensor; -1: not all are counted
        self._storage = storage
        # Plain tensors, and where they lie; those without elements have no address. All is compared by functions that
        # loop in C, for it is asked for in each pass for each tensor.
        self._parts: list[torch.Tensor] = []
        self._empty: list[torch.Tensor] = []
        self._base = 0 if storage is None else storage.data_ptr()
        self._offsets: list[int] = []
        self._shown: list[torch.Tensor] = []  # the values that they show
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
        for tensor, value, inner in self._steps:
            tensor.data = value
            for name, part in inner:
                setattr(tensor, name, part)
        if self._owned:
            self._attributes = [list(map(id, vars(owner).values())) for owner in self._owners]

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
        return not (self._owned or self._empty) or self._holds_parts()

    def _holds_parts(self) -> bool:
        for owner, name, part in self._owned:
            if getattr(owner, name) is not part:
                return False
        for owner, held in zip(self._owners, self._attributes, strict=True):
            if list(map(id, vars(owner).values())) != held:
                return False  # an inner tensor may have been added
        return not any(part.numel() for part in self._empty)

    def versions(self) -> list[int]:
        """The version counters of the tensors and of what is inside of them."""
        return list(map(_version, self._versioned))

    def are_unwritten(self, versions: list[int]) -> bool:
        """Whether all tensors point at their values, and none was written since :meth:`versions` gave these."""
        return list(map(_version, self._versioned)) == versions and self.are_current()

    def changed_since(self, versions: list[int]) -> set[int]:
        """Places of the tensors written since :meth:`versions` gave these; those without counters may have been."""
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
    """Whether writes to ``tensor`` are counted: not to inference tensors, nor to what began as one."""
    try:
        return tensor._version >= 0
    except RuntimeError:
        return False


def _where(plain: torch.Tensor) -> tuple[Any, ...]:
    return plain.data_ptr(), plain.shape, plain.stride(), plain.dtype


def _inside(owner: Any, value: torch.Tensor) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """What hangs below ``owner`` once it is pointed at the wrapper ``value``: holder, attribute, tensor."""
    for name in inner_names(value):
        part = getattr(value, name)
        yield owner, name, part
        if is_wrapper(part):
            yield from _inside(part, part)
