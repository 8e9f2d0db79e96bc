"""Backward through offloaded weights.

[Note: saved weights]
Autograd saves what backward needs. A weight saved as it is on the device would hold its whole group there until
backward, and so, block by block, the whole model. So while a grad-enabled pass runs, a saved view of a device slab is
replaced by a note of where in which host slab it lies, and backward brings that group to the device again, one group
at a time. Weights changed in place between forward and backward raise, as they do without offloading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from ...errors import OffloadPlusError
from ..groups.param_group import ParamGroup
from ..model.inventory import Entry
from ..model.tensors import is_wrapper, map_plain
from ..stores.layout import view_of
from ..stores.storage import WeightStorage
from ..transfer.copy_engine import CopyEngine

__all__ = ["SavedWeights", "WeightsChangedError", "follow_parameters"]


class WeightsChangedError(OffloadPlusError, RuntimeError):
    """Weights needed for backward were changed in place after forward."""


@dataclasses.dataclass(eq=False, slots=True)
class _Note:
    group: ParamGroup
    storage: WeightStorage
    offset: int
    like: torch.Tensor  # on the meta device: dtype, size and strides
    places: tuple[int, ...]  # of the tensors in the group whose bytes it may have
    versions: tuple[int, ...]  # of these


@dataclasses.dataclass(eq=False, slots=True)
class _NotedWrapper:
    template: torch.Tensor
    parts: list[Any]


class SavedWeights:
    """The saved-tensor hooks of one engine, and the landing of gradients on the host beside their parameters.

    Attributes:
        groups: those whose weights autograd may save.
    """

    groups: Sequence[ParamGroup]

    def __init__(self, copy_engine: CopyEngine) -> None:
        self.groups = ()
        self._copy_engine = copy_engine
        self._device = copy_engine.device
        self._lock = threading.Lock()
        self._hooks = (self._pack, self._unpack)  # the same objects each pass, or compiled forwards are traced anew
        self._present: tuple[WeightStorage, torch.Tensor] | None = None
        # By ``id`` of tensors of the groups, which live as long as these. References to them would count as other
        # code's; see [Note: who may write a weight between two passes].
        self._entries: dict[int, Entry] = {}
        self._handles: dict[int, list[Any]] = {}
        self._stash: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """While active, in a grad-enabled pass, a note of where a weight is stored is saved in its place.

        Not where others' hooks are in charge already: activation checkpointing recomputes, and counts on seeing what
        is saved.
        """
        others = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        if not torch.is_grad_enabled() or self._device.type == "cpu" or others:
            yield
            return
        self._land_gradients()
        with torch.autograd.graph.saved_tensors_hooks(*self._hooks):
            yield

    def replace(self, groups: Sequence[ParamGroup]) -> None:
        """These are the groups from now on. What was registered on other parameters is removed."""
        self.groups = groups
        self._entries = {id(entry.tensor): entry for group in groups for entry in group.spec.entries}
        for key in [key for key in self._handles if key not in self._entries]:
            for handle in self._handles.pop(key):
                handle.remove()

    # Saved tensors

    def _pack(self, tensor: torch.Tensor) -> Any:
        if torch.compiler.is_compiling():
            return tensor.detach()  # traced, not run: there is nothing to keep
        if is_wrapper(tensor):
            parts: list[Any] = []

            def note(plain: torch.Tensor) -> torch.Tensor:
                parts.append(self._pack(plain))
                return torch.empty_like(plain, device="meta")

            return _NotedWrapper(map_plain(tensor, note), parts)
        group = next((group for group in self.groups if group.owns_storage(tensor)), None)
        if group is None:
            # Detached: a node that kept its own output, graph and all, would keep itself alive.
            return tensor.detach()
        offset = int(tensor.storage_offset()) * tensor.element_size()
        like = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        places = group.places_at(offset)
        return _Note(group, group.storage, offset, like, places, _versions(group, places))

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, _NotedWrapper):
            parts = iter(packed.parts)
            return map_plain(packed.template, lambda _: self._unpack(next(parts)))
        if not isinstance(packed, _Note):
            return packed  # type: ignore[no-any-return]
        if _versions(packed.group, packed.places) != packed.versions:
            raise WeightsChangedError(
                f"Weights of '{packed.group.spec.name}' were changed in place between forward and backward. "
                "Call backward before changing them (optimizer.step, load_state_dict), or run forward again."
            )
        with self._lock, torch.no_grad():
            if self._present is None or self._present[0] is not packed.storage:
                self.drop()
                self._present = (packed.storage, self._bring(self._copy_engine, packed.storage))
            device = self._device
            return view_of(self._present[1].untyped_storage(), packed.offset, packed.like, device)

    def _bring(self, copy_engine: CopyEngine, storage: WeightStorage) -> torch.Tensor:
        transfer = copy_engine.start(storage)
        transfer.wait()
        copy_engine.account(storage.nbytes)
        # Dropped at the end of this backward; the tensors it handed out live as long as their holders.
        engine: Any = torch.autograd.Variable._execution_engine
        with contextlib.suppress(RuntimeError):  # unpacked outside of a backward: dropped with the next group
            engine.queue_callback(_dropping_of(self))
        assert transfer.slab is not None
        return transfer.slab.bytes

    def drop(self) -> None:
        """Take off the device what was brought there for backward."""
        if self._present is not None:
            self._copy_engine.account(-self._present[0].nbytes)
            self._present = None

    # Gradients

    def _land_gradients(self) -> None:
        for key, entry in self._entries.items():
            tensor = entry.tensor
            if tensor.requires_grad and tensor.is_leaf and key not in self._handles:
                self._handles[key] = [tensor.register_hook(_taking_off(key, self)), _land_first(tensor, self)]

    def set_aside(self, key: int) -> None:
        """A gradient is about to be added to one on the host: autograd accumulates on the device, and never mixes
        devices.

        Args:
            key: ``id`` of the parameter.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.tensor.grad is not None and entry.tensor.grad.device != self._device:
            self._stash[key] = entry.tensor.grad
            entry.tensor.grad = None

    def land(self, tensor: torch.Tensor) -> None:
        """The gradient of ``tensor`` is complete: bring it to where the parameter is, beside what was there before."""
        fresh = tensor.grad
        before = self._stash.pop(id(tensor), None)
        if fresh is None:
            tensor.grad = before
            return
        landed = fresh.to(tensor.device)
        if before is not None:
            _move(before, tensor.device)
            landed = before.add_(landed)
        tensor.grad = landed


def follow_parameters(groups: Iterable[ParamGroup]) -> None:
    """Bring gradients to where their parameters are now, for whoever adds to them or steps."""
    for entry in (entry for group in groups for entry in group.spec.entries):
        if entry.tensor.grad is not None:
            _move(entry.tensor.grad, entry.tensor.device)


def _move(gradient: torch.Tensor, device: torch.device) -> None:
    """Bring ``gradient`` to ``device``; it stays the same object."""
    if gradient.device != device:
        gradient.data = gradient.to(device)


# Autograd holds these where the garbage collector does not look: what they refer to strongly would never be freed.


def _taking_off(key: int, weights: SavedWeights) -> Callable[[torch.Tensor], None]:
    owner = weakref.ref(weights)

    def set_aside(_: torch.Tensor) -> None:
        weights = owner()
        if weights is not None:
            weights.set_aside(key)

    return set_aside


def _dropping_of(weights: SavedWeights) -> Callable[[], None]:
    owner = weakref.ref(weights)

    def drop() -> None:
        weights = owner()
        if weights is not None:
            weights.drop()

    return drop


def _land_first(tensor: torch.Tensor, weights: SavedWeights) -> Any:
    """Land the gradients of ``tensor`` before hooks of others see them, which may be there already: an optimizer that
    steps in backward needs gradient and parameter on one device."""
    handle = tensor.register_post_accumulate_grad_hook(_landing_of(weights))
    hooks: dict[int, Any] = tensor._post_accumulate_grad_hooks
    others = [(key, hook) for key, hook in hooks.items() if key != handle.id]
    for key, hook in others:  # autograd calls them in the order in which they were put in
        del hooks[key]
        hooks[key] = hook
    return handle


def _landing_of(weights: SavedWeights) -> Callable[[torch.Tensor], None]:
    owner = weakref.ref(weights)

    def land(tensor: torch.Tensor) -> None:
        weights = owner()
        if weights is not None:
            weights.land(tensor)

    return land


def _versions(group: ParamGroup, places: tuple[int, ...]) -> tuple[int, ...]:
    tensors = (group.spec.entries[place].tensor for place in places)
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
