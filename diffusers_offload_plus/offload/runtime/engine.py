"""The engine of one model: its inventory, where its weights are stored, and what hooks and lookups call.

One pass runs at a time, here or in any engine that shares the device budget: other threads wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

import torch
from torch import nn

from ..failures import Failures
from ..groups.buffers import PersistentBuffers, all_to_host
from ..groups.comparisons import Compare
from ..groups.device_copies import DeviceCopies
from ..groups.param_group import GroupState, ParamGroup
from ..memory.device_budget import DeviceBudget
from ..memory.pass_lock import works_for
from ..model.inventory import Entry, take_inventory
from ..model.module_tree import ModuleTree
from ..model.originals import Originals
from ..model.partition import Unit
from ..model.tensors import renew
from ..modes import engine_mode
from ..planning.plan import HeldGroup, OffloadPlan, make_plan
from ..planning.residency import CacheChoice, choose_cached, fixed_bytes, floor_bytes, nested_groups
from ..policy import OffloadPolicy
from ..transfer.copy_engine import CopyEngine
from ..transfer.tiers import Tiers
from .arguments import elements_of, to_device, valid_output
from .autograd import SavedWeights, follow_parameters
from .forward_pass import CalledModule, ForwardPass
from .lookups import computes_on, unwatch_lookups, watch_lookups
from .questions import Question

__all__ = ["OffloadEngine"]


class OffloadEngine:
    """Moves the weights of one model.

    Args:
        budget: device memory it shares with other engines; one without a limit if left out.

    Attributes:
        units: what the model is cut into, as of the last :meth:`build`; ``groups``: of its weights, and ``streamed``
            those that do not stay on the device for good.
        refresh: called when the model's structure has changed; set by whoever installs the hooks.
        intact: says whether the hooks on the root, a module and all below it still fire; set likewise.
        originals: values held until nothing has to be undone any more: of weights that are stored on disk.
        fixed_bytes: device bytes of what never leaves the device while the model is offloaded.
    """

    def __init__(self, root: nn.Module, policy: OffloadPolicy, label: str, budget: DeviceBudget | None = None) -> None:
        self.root = root
        self.policy = policy
        self.label = label
        self.device = policy.device
        self.moves = self.device.type != "cpu"
        self.tree = ModuleTree(root)
        self.budget = budget or DeviceBudget()
        self.copy_engine = CopyEngine(policy, self.budget)
        self.usage = self.copy_engine.usage
        self.tiers = Tiers(root, policy, self.copy_engine, label)
        self.units: list[Unit] = []
        self.groups: list[ParamGroup] = []
        self.streamed: list[ParamGroup] = []
        self._residents: list[ParamGroup] = []
        self.persistent = PersistentBuffers(self.copy_engine)
        self.refresh: Callable[[], None] = lambda: None
        self.intact: Callable[[nn.Module], bool] = lambda module: True
        self.lookups: dict[str, str] = {}
        self._exclude = frozenset(policy.exclude_kwargs or getattr(root, "_skip_keys", None) or ())
        self._non_blocking = policy.non_blocking or policy.use_stream
        self._lock = self.budget.lock
        self._owner: int | None = None
        self.fixed_bytes = 0
        self.forward_pass = ForwardPass(self.copy_engine, self, policy.prefetch_depth)
        self._device_copies = DeviceCopies(self.copy_engine)
        self._cached_for: int | None = None  # the limit
        self._nests: tuple[frozenset[int], ...] = ()  # of what streams
        self._built = False  # all of it: groups, lookups, what stays on the device
        self.originals = Originals()
        self._managed: dict[int, Entry] = {}
        self._persistent_parameters: list[torch.Tensor] = []
        self._saved = SavedWeights(self.copy_engine)

    @property
    def plan(self) -> OffloadPlan:
        """What moves, what stays and how much device memory that takes, in the sizes tensors have now: a cast changes
        them without a new inventory."""
        held = [HeldGroup(g.spec, g.nbytes, g.tier, g.in_place, g.cached) for g in self.groups]
        return make_plan(
            self._inventory,
            held,
            self.persistent.total_bytes,
            self.policy,
            stream_bytes=None if self.budget.limit is None else self.forward_pass.prefetcher.stream_bytes,
        )

    # Set-up

    def prepare(self) -> None:
        """Find or reserve storage for all weights of the model as it is now, without changing it.

        Raises:
            UnsupportedModelError: the model cannot be offloaded.
            DiskTierError: the disk is full, or cannot be written.
        """
        self.copy_engine.finish_work_on(self.root)
        inventory = take_inventory(self.root, self.policy, self.label)
        self.tiers.prepare(inventory.groups)
        self.originals = Originals(self.tiers.tensors_on_disk(inventory.groups))
        self.fixed_bytes = fixed_bytes(inventory)
        self.budget.join(self)

    def build(self) -> None:
        """Build groups, lookups and plan anew from the model as it is now. Groups whose tensors are the same keep
        their storage."""
        self.copy_engine.finish_work_on(self.root)
        for tensor in (*self.root.parameters(), *self.root.buffers()):
            renew(tensor)
        with engine_mode():  # or what is stored by a pass in inference mode would be inference tensors for ever
            self._build()

    def _build(self) -> None:
        self.to_host()
        blocks = {id(trigger) for unit in self.units for _, trigger in unit.triggers if trigger is not self.root}
        inventory = take_inventory(self.root, self.policy, self.label, known=blocks)
        known = {group.spec.key: group for group in self.groups}
        self.tiers.prepare(inventory.groups, [group.spec for group in self.groups])
        self._built = False
        groups: list[ParamGroup] = []
        self.copy_engine.drain()
        try:
            for spec in inventory.groups:
                group = known.get(spec.key)
                if group is None:
                    allocator = self.tiers.allocator_of(spec)
                    if allocator is None:
                        continue
                    group = ParamGroup(spec, self.copy_engine, allocator)
                group.spec = spec
                groups.append(group)
                known.pop(spec.key, None)
        except BaseException:
            self.groups = [*groups, *known.values()]  # for tear_down, or another attempt
            self.tiers.forget()
            raise
        unwatch_lookups([*self.root.modules(), *self.tree.modules()], self.groups)
        self.groups = groups
        self._saved.replace(groups)
        self.streamed = [group for group in groups if group.streams]
        self._residents = [group for group in groups if not group.streams]
        self.units = inventory.units
        self._nests = tuple(nested_groups(self.units, [group.spec for group in self.streamed]))
        # Buffers replaced since must not be kept alive.
        self._inventory = dataclasses.replace(inventory, persistent=[])
        persistent = inventory.persistent if self.moves else []
        self._persistent_parameters = [entry.tensor for entry in persistent if not entry.is_buffer]
        self.persistent.replace([entry.tensor for entry in persistent])
        self.tree = ModuleTree(self.root)
        self.forward_pass.replace(groups, inventory.units, self.tree)
        self._managed = {id(entry.tensor): entry for group in groups for entry in group.spec.entries}
        watch_lookups(self.tree.open_modules(), self.groups, self.persistent.tensors if self.moves else (), self)
        self.fixed_bytes = self.persistent.total_bytes + sum(group.nbytes for group in self._residents)
        self.budget.join(self)
        self._choose_cached()
        self._built = True

    @property
    def floor_bytes(self) -> int:
        """Device bytes without which its groups cannot be used."""
        return floor_bytes(tuple(group.nbytes for group in self.streamed), self._nests)

    def cache_choice(self, nbytes: int) -> CacheChoice:
        """What ``nbytes`` of device memory would be used for, by places in :attr:`streamed`, in present sizes."""
        return choose_cached(tuple(group.nbytes for group in self.streamed), self._nests, nbytes)

    def _choose_cached(self) -> None:
        if self.budget.limit is None:
            return
        cached, self.forward_pass.prefetcher.stream_bytes = self.cache_choice(self.budget.for_groups())
        with engine_mode():
            for index, group in enumerate(self.streamed):
                if group.cached != (index in cached):
                    self.forward_pass.evict_group(group)
                group.cached = index in cached
        self._cached_for = self.budget.limit

    def tear_down(self, *, leave: bool = True) -> None:
        """Every weight back in plain host memory or, if that is still held, where it was before; lookups as they were.

        After an error all else is done, and what failed is tried once more; notes on the error name what stays where
        it is. With ``leave=False`` all stays where it is stored, for another engine to take over.
        """
        failures = Failures()
        with self._lock:
            failures.attempt(self._sweep)
            failures.attempt(self.to_host)
            self.budget.leave(self)
            unwatch_lookups([*self.root.modules(), *self.tree.modules()], self.groups)
            self._saved.replace([])
            failures.attempt(functools.partial(self.copy_engine.finish_work_on, self.root))
            with engine_mode():
                if self.units:  # it was built once: what is on the device is its business
                    failures.attempt(functools.partial(all_to_host, self.root, self.device))
                failures.attempt(self.copy_engine.drain)
                as_before = self.originals.give_back()
                for group in self.groups if leave else ():
                    if not all(id(entry.tensor) in as_before for entry in group.spec.entries):
                        failures.attempt(group.to_plain_memory, f"'{group.spec.name}' stays as it is ({group.tier})")
                failures.retry()
            self.tiers.forget()
            self.groups = [] if leave else [group for group in self.groups if group.tier == "disk"]
            self.originals = Originals(entry.tensor for group in self.groups for entry in group.spec.entries)
            self.streamed = self._residents = []
            self.forward_pass.replace([], [], self.tree)  # what it knew of the groups would hold their memory
            self._managed = {}
            self._built = False
            failures.attempt(self.copy_engine.close)
        failures.raise_first()

    def to_host(self) -> None:
        """Bring what stays on the device between passes back to the host, with what was written to it. No effect
        inside a pass."""
        with self._lock:
            if self.forward_pass.frames:
                return
            failures = Failures()
            with engine_mode():
                failures.attempt(self.forward_pass.evict_all)
                failures.attempt(self._device_copies.end_all)
                for group in self.groups:
                    failures.attempt(functools.partial(group.offload, compare=Compare.ALL))
                if self.groups or self.persistent.tensors:
                    self._recount_buffers(self.root)
                failures.attempt(self.persistent.to_host)
                follow_parameters(self.groups)
            failures.raise_first()

    def buffers_to_device(self) -> None:
        """A buffer is looked up that was brought to the host; if that is to compute with it, all go to the device."""
        if self.forward_pass.frames or not computes_on(self.device, self.tree.ids):
            return
        with self._lock, engine_mode():
            self._recount_buffers(self.root)
            self.onload_residents()

    # A hooked module runs

    def run(
        self, called: CalledModule, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``forward(*args, **kwargs)`` with what the called module needs on the device."""
        if self._owner != get_ident() and not works_for(self._owner):
            size = None if self.budget.auto is None else elements_of((args, kwargs))
            with self._pass(called.module, size):
                return self.run(self.forward_pass.called(called.module), forward, args, kwargs)
        forward_pass = self.forward_pass
        depth = len(forward_pass.frames)
        try:
            forward_pass.enter(called)
            args, kwargs = to_device(args, kwargs, self.device, self._exclude, self._non_blocking)
            output = forward(*args, **kwargs)
            if type(output) is torch.Tensor:  # no parameter, as nearly always
                return output
            return valid_output(output, self._managed)
        finally:
            forward_pass.exit(depth)

    @contextlib.contextmanager
    def keep_onloaded(self, module: nn.Module) -> Iterator[None]:
        """Keep every group with weights below ``module`` onloaded; writes made meanwhile are kept by comparing
        bytes."""
        with contextlib.ExitStack() as stack:
            if self._owner != get_ident() and not works_for(self._owner):
                stack.enter_context(self._pass(self.root))
            tensors = {
                id(t) for part in module.modules() for t in (*part._parameters.values(), *part._buffers.values())
            }
            groups = tuple(g for g in self.streamed if any(id(entry.tensor) in tensors for entry in g.spec.entries))
            depth = len(self.forward_pass.frames)
            try:
                self.forward_pass.enter(CalledModule(module, groups), Compare.ALL, prefetch=False)
                follow_parameters(self.groups)
                yield
            finally:
                self.forward_pass.exit(depth)
                follow_parameters(self.groups)

    def materialize(self, group: ParamGroup, entry: Entry, question: Question = Question.VALUES) -> torch.Tensor:
        """Answer a lookup of an offloaded tensor that no hook announced; see [Note: lookups].

        Inside a pass the group is onloaded while the innermost hooked module runs. Outside of one there is
        no telling how long the caller needs it, so it gets a device copy that stays valid until the next pass.
        """
        if self.forward_pass.frames and (self._owner == get_ident() or works_for(self._owner)):
            reader = self.forward_pass.frames[-1].called.module
            self.lookups.setdefault(entry.names[0], self.tree.name_of(reader))
            self.forward_pass.materialize(group, Compare.NONE if question is Question.DEVICE else Compare.ALL)
            return entry.tensor
        if group.state is GroupState.IDLE and computes_on(self.device, self.tree.ids):
            return entry.tensor
        if group.state is GroupState.IDLE or group.state is GroupState.PREFETCHED:
            with self._lock:
                self.forward_pass.evict_group(group)  # the caller may write it on the host
        if not self.moves or not computes_on(self.device, self.tree.ids):
            self.wait_for_copies()
            return entry.tensor
        self.lookups.setdefault(entry.names[0], "a method other than forward")
        if torch.is_grad_enabled() and entry.tensor.requires_grad:
            return entry.tensor.to(self.device)
        with self._lock, engine_mode():
            return self._device_copies.copy_of(group, entry, functools.partial(self._reserve, pooled=False))

    def wait_for_copies(self) -> None:
        """Somebody is about to look at host weights, and may write them: no copy may be reading them any more."""
        if self.copy_engine.reading_host:
            with self._lock, engine_mode():
                for group in self.forward_pass.prefetcher.ahead:
                    group.discard()
                self.copy_engine.drain()

    # Passes

    @contextlib.contextmanager
    def _pass(self, entry: nn.Module, size: int | None = None) -> Iterator[None]:
        with self._lock, self.budget.pass_scope(self, id(entry), size):
            self._owner = get_ident()
            finished = False
            try:
                self._begin(entry)
                with self._saved.recording():
                    yield
                finished = True
            finally:
                try:
                    self._sweep(finished)
                    self.forward_pass.show_held()
                    self.persistent.return_held()
                finally:
                    self._owner = None

    def _begin(self, entry: nn.Module) -> None:
        self._sweep()
        if not self._built or not self.tree.unchanged(entry, self.intact):
            self.refresh()
        self._recount_buffers(entry)
        with engine_mode():
            self._device_copies.end_all()
        if self.budget.limit != self._cached_for:
            self._choose_cached()
        self.forward_pass.begin(entry)
        self.onload_residents()

    def _sweep(self, finished: bool = False) -> None:
        try:
            self.forward_pass.sweep(finished)
        except BaseException:
            self.forward_pass.sweep()  # what is left
            raise

    def evict(self, nbytes: int) -> None:
        """Take groups that are not in use off the device until ``nbytes`` are free, or none is left."""
        self.forward_pass.evict(nbytes)

    def evict_cached(self) -> None:
        """Take everything off the device that a budget caches between passes: somebody wants to see the model."""
        if self.forward_pass.caches:
            with self._lock:
                self.forward_pass.evict_all()

    # Helpers

    def onload_residents(self) -> None:
        with engine_mode():
            for group in self._residents:
                self.budget.retry(self, functools.partial(group.onload, self._reserve))
            move = functools.partial(self.persistent.to_device, functools.partial(self._reserve, pooled=False))
            self.budget.retry(self, move)

    def _reserve(self, nbytes: int, *, pooled: bool = True) -> bool:
        return self.budget.reserve(nbytes, self, required=True, displace=True, pooled=pooled)

    def _recount_buffers(self, below: nn.Module) -> None:
        # Forward and ``.to`` put new tensors in place of buffers; whatever is there now is what the model has.
        if self.moves and self.tree.buffers_changed(below):
            self.persistent.replace([*self._persistent_parameters, *self.tree.loose_buffers(self._managed)])
