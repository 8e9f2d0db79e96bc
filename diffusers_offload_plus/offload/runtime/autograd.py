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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...errors import OffloadPlusError
from ..groups.param_group import ParamGroup
from ..model.tensors import is_wrapper, map_plain
from ..stores.layout import view_of
from ..stores.storage import WeightStorage
from ..transfer.copy_engine import CopyEngine

__all__ = ["SavedWeights", "WeightsChangedError"]


class WeightsChangedError(OffloadPlusError, RuntimeError):
    """Weights needed for backward were changed in place after forward."""


@dataclasses.dataclass(eq=False, slots=True)
class _Note:
    group: ParamGroup
    storage: WeightStorage
    offset: int
    like: torch.Tensor  # on the meta device: dtype, size and strides
    version: int


@dataclasses.dataclass(eq=False, slots=True)
class _NotedWrapper:
    template: torch.Tensor
    parts: list[Any]


class SavedWeights:
    """The saved-tensor hooks of one engine, and the landing of gradients on the host beside their parameters.

    Attributes:
        groups: those whose weights autograd may save.
    """

    def __init__(self, copy_engine: CopyEngine) -> None:
        self.groups: Sequence[ParamGroup] = ()
        self._copy_engine = copy_engine
        self._device = copy_engine.device
        self._lock = threading.Lock()
        self._hooks = (self._pack, self._unpack)  # the same objects each pass, or compiled forwards are traced anew
        self._present: tuple[WeightStorage, torch.Tensor] | None = None
        self._landing: dict[int, list[Any]] = {}
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

    def forget(self) -> None:
        """Remove what was registered on parameters."""
        for handles in self._landing.values():
            for handle in handles:
                handle.remove()
        self._landing.clear()

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
        return _Note(group, group.storage, offset, like, _versions(group))

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, _NotedWrapper):
            parts = iter(packed.parts)
            return map_plain(packed.template, lambda _: self._unpack(next(parts)))
        if not isinstance(packed, _Note):
            return packed  # type: ignore[no-any-return]
        if _versions(packed.group) != packed.version:
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
        for group in self.groups:
            for entry in group.spec.entries:
                tensor = entry.tensor
                if tensor.requires_grad and tensor.is_leaf and id(tensor) not in self._landing:
                    self._landing[id(tensor)] = [
                        tensor.register_hook(_taking_off(tensor, self)),
                        tensor.register_post_accumulate_grad_hook(_landing_of(self)),
                    ]

    def set_aside(self, tensor: torch.Tensor) -> None:
        """A gradient of ``tensor`` is about to be added to one on the host: autograd accumulates on the device, and
        never mixes devices."""
        if tensor.grad is not None and tensor.grad.device != self._device:
            self._stash[id(tensor)] = tensor.grad
            tensor.grad = None

    def land(self, tensor: torch.Tensor) -> None:
        """The gradient of ``tensor`` is complete: bring it to the host, beside what was there before."""
        fresh = tensor.grad
        before = self._stash.pop(id(tensor), None)
        if fresh is None:
            tensor.grad = before
            return
        landed = fresh.to(tensor.device)
        tensor.grad = landed if before is None else before.add_(landed)


# Autograd holds these where the garbage collector does not look: what they refer to strongly would never be freed.


def _taking_off(tensor: torch.Tensor, weights: SavedWeights) -> Callable[[torch.Tensor], None]:
    held, owner = weakref.ref(tensor), weakref.ref(weights)

    def set_aside(_: torch.Tensor) -> None:
        tensor, weights = held(), owner()
        if tensor is not None and weights is not None:
            weights.set_aside(tensor)

    return set_aside


def _dropping_of(weights: SavedWeights) -> Callable[[], None]:
    owner = weakref.ref(weights)

    def drop() -> None:
        weights = owner()
        if weights is not None:
            weights.drop()

    return drop


def _landing_of(weights: SavedWeights) -> Callable[[torch.Tensor], None]:
    owner = weakref.ref(weights)

    def land(tensor: torch.Tensor) -> None:
        weights = owner()
        if weights is not None:
            weights.land(tensor)

    return land


def _versions(group: ParamGroup) -> int:
    return sum(entry.tensor._version for entry in group.spec.entries if not entry.tensor.is_inference())
