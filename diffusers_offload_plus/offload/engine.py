"""Residency of each group while the model runs: onload before use, prefetch what comes next, offload after.

[Note: passes and frames]
A *pass* is one outermost call into the model, by whatever door: ``model(x)``, ``vae.encode``, a block called alone.
A *frame* is one hooked module running inside it. A frame holds the groups its module needs; a group is offloaded
when no frame holds it. At the end of a pass, however it ends, nothing that streams is left on the device. One pass
runs at a time: other threads wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import DiskTierError
from .doors import computes_on, open_doors, uninstall
from .group import State, WeightGroup
from .inputs import to_device
from .inventory import Entry, Residency, take_inventory
from .loans import Loans
from .modes import engine_mode, profiled
from .outputs import valid_output
from .partition import Unit
from .plan import HeldGroup, OffloadPlan, make_plan
from .policy import OffloadPolicy
from .residents import Carried, bring_home
from .saved import SavedWeights
from .schedule import Schedule
from .structure import Structure
from .tiers import Tiers
from .transfer import Link

__all__ = ["OffloadEngine"]


@dataclasses.dataclass(eq=False, slots=True)
class _Frame:
    module: nn.Module
    groups: tuple[WeightGroup, ...]
    compare: bool
    served: dict[WeightGroup, int] = dataclasses.field(default_factory=dict)  # and how often its owner had run then


class OffloadEngine:
    """Moves the weights of one model.

    Attributes:
        units: what the model is cut into, as of the last :meth:`build`.
        refresh: called when the model's structure has changed; set by whoever installs the hooks.
        intact: says whether the hook of a module still fires; set likewise.
    """

    def __init__(self, root: nn.Module, policy: OffloadPolicy, label: str) -> None:
        self.root = root
        self.policy = policy
        self.label = label
        self.device = policy.device
        self.moves = self.device.type != "cpu"
        self.structure = Structure(root)
        self.link = Link(policy)
        self.tiers = Tiers(root, policy, self.link, label)
        self.units: list[Unit] = []
        self.groups: list[WeightGroup] = []
        self.carried = Carried(self.link)
        self.refresh: Callable[[], None] = lambda: None
        self.intact: Callable[[nn.Module], bool] = lambda module: True
        self.served: dict[str, str] = {}
        self._exclude = frozenset(policy.exclude_kwargs or getattr(root, "_skip_keys", None) or ())
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._frames: list[_Frame] = []
        self._active: dict[WeightGroup, None] = {}  # streamed groups touched in this pass, in order
        self._lingering: list[WeightGroup] = []
        self._prefetched: list[WeightGroup] = []
        self._loans = Loans(self.link)
        self._compare = False
        self._built = False  # all of it: groups, doors, residents
        self._schedules: dict[int, Schedule] = {}
        self._schedule = Schedule()
        self._number: dict[int, int] = {}
        self._groups_of: dict[int, tuple[WeightGroup, ...]] = {}
        self._keeps_until_later: set[int] = set()
        self._managed: dict[int, Entry] = {}
        self._carried_parameters: list[torch.Tensor] = []
        self._saved = SavedWeights(self)

    @property
    def plan(self) -> OffloadPlan:
        """What moves, what stays and how much device memory that takes, in the sizes tensors have now: a cast changes
        them without a new inventory."""
        held = [HeldGroup(g.spec, g.nbytes, g.tier, g.in_place) for g in self.groups]
        return make_plan(self._inventory, held, self.carried.total_bytes, self.policy)

    # Set-up

    def prepare(self) -> None:
        """Find or make room for all weights of the model as it is now, without changing it.

        Raises:
            UnsupportedModelError: the model cannot be offloaded.
            DiskTierError: there is no room on disk, or it cannot be written.
        """
        self.tiers.prepare(take_inventory(self.root, self.policy, self.label).groups)

    def build(self) -> None:
        """(Re)build groups, doors and plan from the model as it is now. Groups whose tensors are the same keep their
        home."""
        with engine_mode():  # weights given a home by a pass in inference mode would be inference tensors for ever
            self._build()

    def _build(self) -> None:
        self.park()
        inventory = take_inventory(self.root, self.policy, self.label)
        known = {group.spec.key: group for group in self.groups}
        self.tiers.prepare(inventory.groups, [group.spec for group in self.groups])
        self._built = False
        self._close_doors()
        groups: list[WeightGroup] = []
        self.link.drain()
        try:
            for spec in inventory.groups:
                group = known.get(spec.key)
                if group is None:
                    placement = self.tiers.placement_of(spec)
                    if placement is None:
                        continue
                    group = WeightGroup(spec, self.link, placement)
                group.spec = spec
                groups.append(group)
                known.pop(spec.key, None)
        except BaseException:
            self.groups = [*groups, *known.values()]  # for tear_down, or another attempt
            self.tiers.forget()
            raise
        self.groups = groups
        self.units = inventory.units
        self._inventory = dataclasses.replace(inventory, carried=[])  # buffers replaced since must not be kept alive
        carried = inventory.carried if self.moves else []
        self._carried_parameters = [entry.tensor for entry in carried if not entry.is_buffer]
        self.carried.replace([entry.tensor for entry in carried])
        self._schedules.clear()
        self._number = {id(group): number for number, group in enumerate(groups)}
        self._managed = {id(entry.tensor): entry for group in groups for entry in group.spec.entries}
        needed: dict[int, list[WeightGroup]] = {}
        self._keeps_until_later = set()
        for index, unit in enumerate(inventory.units):
            for _, trigger in unit.triggers:
                needed.setdefault(id(trigger), []).extend(group for group in groups if index in group.spec.units)
            self._keeps_until_later.update(id(trigger) for _, trigger in unit.triggers[:-1])
        self._groups_of = {module: tuple(dict.fromkeys(found)) for module, found in needed.items()}
        self.structure = Structure(self.root)
        open_doors(self.structure.open_modules(), self.groups, self.carried.tensors if self.moves else (), self)
        self._onload_residents()
        self._built = True

    def tear_down(self, *, leave: bool = True) -> None:
        """Every weight back in plain host memory, doors closed. The engine must not be used after.

        Args:
            leave: if not, the weights stay where they rest, for another engine to take over.

        Raises:
            DiskTierError: some weights could not be read; they stay where they are, and all else is done.
        """
        failed: DiskTierError | None = None
        with self._lock:
            self._sweep()
            self.park()
            self._close_doors()
            with engine_mode():
                bring_home(self.root, self.device)
            self._saved.forget()
            self.link.drain()
            with engine_mode():
                for group in self.groups if leave else ():
                    try:
                        group.leave()
                    except DiskTierError as error:
                        failed = failed or error
            self.groups = []
            self.link.close()
        if failed is not None:
            raise failed

    def park(self) -> None:
        """Bring what stays on the device between passes back to the host, writes kept. No effect inside a pass."""
        with self._lock:
            if self._frames:
                return
            with engine_mode():
                self._loans.settle()
                for group in self.groups:
                    group.offload(compare=True)
                if self.groups or self.carried.tensors:
                    self._recount_buffers(self.root)
                self.carried.to_host()

    def unpark(self) -> None:
        """A buffer is looked up that was brought to the host; if that is to compute with it, all go to the device."""
        if self._frames or not computes_on(self.device, self.structure.ids):
            return
        with self._lock, engine_mode():
            self._recount_buffers(self.root)
            self._onload_residents()

    # A hooked module runs

    def run(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``forward(*args, **kwargs)`` with what ``module`` needs on the device."""
        if self._owner == threading.get_ident():
            return self._run_frame(module, forward, args, kwargs)
        with self._pass(module):
            return self._run_frame(module, forward, args, kwargs)

    @contextlib.contextmanager
    def hold(self, module: nn.Module) -> Iterator[None]:
        """Keep every group with weights below ``module`` onloaded; writes made meanwhile are kept by comparing
        bytes."""
        with contextlib.ExitStack() as stack:
            if self._owner != threading.get_ident():
                stack.enter_context(self._pass(self.root))
            tensors = {
                id(t) for part in module.modules() for t in (*part._parameters.values(), *part._buffers.values())
            }
            groups = tuple(g for g in self.groups if any(id(entry.tensor) in tensors for entry in g.spec.entries))
            depth = len(self._frames)
            try:
                self._enter(_Frame(module, groups, compare=True), prefetch=False)
                yield
            finally:
                self._exit(depth)

    def serve(self, group: WeightGroup, entry: Entry) -> torch.Tensor:
        """Answer a lookup of an offloaded tensor that no hook announced; see [Note: doors].

        Inside a pass the group is onloaded while the innermost hooked module runs. Outside of one there is
        no telling how long the caller needs it, so it is lent a device copy that lives as long as it is held.
        """
        if self._owner == threading.get_ident() and self._frames:
            frame = self._frames[-1]
            self.served.setdefault(entry.names[0], self.structure.name_of(frame.module))
            with engine_mode():
                self._end_claims(frame)
                if group not in frame.served:
                    group.users += 1
                    frame.served[group] = group.runs
                self._onload(group)
            return entry.tensor
        if not self.moves or not computes_on(self.device, self.structure.ids):
            self.settle_host()
            return entry.tensor
        self.served.setdefault(entry.names[0], "a method other than forward")
        if torch.is_grad_enabled() and entry.tensor.requires_grad:
            return entry.tensor.to(self.device)
        with self._lock, engine_mode():
            return self._loans.lend(group, entry)

    def settle_host(self) -> None:
        """Somebody is about to look at host weights, and may write them: no copy may be reading them any more."""
        if self.link.reading_host:
            with self._lock, engine_mode():
                for group in self._prefetched:
                    group.discard()
                self.link.drain()

    def group_of_storage(self, tensor: torch.Tensor) -> WeightGroup | None:
        """The onloaded group whose device slab ``tensor`` (a plain tensor) is a view of."""
        for group in self.groups:
            if group.owns_storage(tensor):
                return group
        return None

    # Passes

    @contextlib.contextmanager
    def _pass(self, entry: nn.Module) -> Iterator[None]:
        with self._lock:
            self._owner = threading.get_ident()
            finished = False
            try:
                self._begin(entry)
                with self._saved.recording():
                    yield
                finished = True
            finally:
                try:
                    self._sweep(finished)
                finally:
                    self._owner = None

    def _begin(self, entry: nn.Module) -> None:
        self._sweep()
        if not self._built or not self.structure.unchanged(entry, self.intact, self.root):
            self.refresh()
        self._recount_buffers(entry)
        self._compare = torch.is_grad_enabled()
        with engine_mode():
            self._loans.settle()
            self._onload_residents()
            self._schedule = self._schedules.setdefault(id(entry), Schedule())
            self._schedule.begin()

    def _sweep(self, finished: bool = False) -> None:
        # Whatever frames an interrupted pass left behind are ended here, so nothing stays on the device.
        self._exit(0)
        with engine_mode():
            self._lingering.clear()
            self._prefetched.clear()
            for group in self._active:
                group.users = 0
                group.offload(compare=self._compare)
            self._active.clear()
        if finished:
            self._schedule.end()

    # Frames

    def _run_frame(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        depth = len(self._frames)
        try:
            self._enter(_Frame(module, self._groups_of.get(id(module), ()), self._compare))
            args, kwargs = to_device(
                args, kwargs, self.device, self._exclude, self.policy.non_blocking or self.policy.use_stream
            )
            return valid_output(forward(*args, **kwargs), self._managed)
        finally:
            self._exit(depth)

    def _enter(self, frame: _Frame, *, prefetch: bool = True) -> None:
        self._frames.append(frame)
        for group in frame.groups:
            group.users += 1
            group.runs += 1
        with engine_mode():
            for group in self._lingering:
                if not group.users:
                    group.offload(compare=self._compare)
            self._lingering.clear()
            for group in frame.groups:
                self._onload(group)
            if prefetch:
                self._prefetch()

    def _exit(self, depth: int) -> None:
        with engine_mode():
            while len(self._frames) > depth:
                frame = self._frames.pop()
                for group in frame.served:
                    self._release(group, frame, compare=True)
                for group in frame.groups:
                    self._release(group, frame, compare=frame.compare)

    def _end_claims(self, frame: _Frame) -> None:
        # Many readers look at ``layer.weight.dtype`` just before they call the layer; holding every such group to the
        # end of a long forward would gather the model on the device. Once its owner has run, the next read ends it.
        for group, runs in list(frame.served.items()):
            if group.runs > runs:
                del frame.served[group]
                self._release(group, frame, compare=True)

    def _release(self, group: WeightGroup, frame: _Frame, *, compare: bool) -> None:
        group.users = max(0, group.users - 1)
        if group.users or group.spec.residency is Residency.RESIDENT:
            return
        if id(frame.module) in self._keeps_until_later and not compare and self._frames:
            self._lingering.append(group)
            return
        with profiled("offload", group.spec.name):
            group.offload(compare=compare)

    def _onload(self, group: WeightGroup) -> None:
        if group.spec.residency is Residency.STREAMED:
            self._schedule.use(self._number[id(group)])
            self._active[group] = None
        with profiled("onload", group.spec.name):
            group.onload()

    def _prefetch(self) -> None:
        depth = self.policy.prefetch_depth
        if not depth:
            return
        wanted = [self.groups[number] for number in self._schedule.upcoming(depth)]
        for group in self._prefetched:
            if group not in wanted and group.state is State.PREFETCHED:
                group.discard()
        for group in wanted:
            self._active[group] = None
            with profiled("prefetch", group.spec.name):
                group.prefetch()
        self._prefetched = wanted

    # Helpers

    def _onload_residents(self) -> None:
        with engine_mode():
            for group in self.groups:
                if group.spec.residency is Residency.RESIDENT:
                    group.onload()
            self.carried.to_device()

    def _recount_buffers(self, below: nn.Module) -> None:
        # Forward and ``.to`` put new tensors in place of buffers; whatever is there now is what the model has.
        if self.moves and self.structure.buffers_changed(below):
            self.carried.replace([*self._carried_parameters, *self.structure.loose_buffers(self._managed)])

    def _close_doors(self) -> None:
        for module in self.root.modules():
            uninstall(module)
        for module in self.structure.modules():
            uninstall(module)
