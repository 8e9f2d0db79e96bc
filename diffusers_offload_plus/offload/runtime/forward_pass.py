"""What is on the device while the model runs: onload before use, prefetch what comes next, offload after.

[Note: passes and frames]
A *pass* is one outermost call into the model: ``model(x)``, ``vae.encode``, a block called alone. A *frame* is one
hooked module that runs inside of it. A frame holds the groups that its module needs; a group is offloaded when no
frame holds it. At the end of a pass, however it ends, nothing that streams is left on the device, except what a budget
caches there for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..groups.comparisons import Compare, finish_comparisons
from ..groups.holders import Holders
from ..groups.param_group import GroupState, ParamGroup
from ..memory.device_budget import Member
from ..model.inventory import Residency
from ..model.module_tree import ModuleTree
from ..model.partition import Unit
from ..modes import engine_mode, profiled
from ..transfer.copy_engine import CopyEngine
from .autograd import follow_parameters
from .prefetch import Prefetcher

__all__ = ["CalledModule", "ForwardPass", "Frame"]


class CalledModule:
    """A hooked module and the groups that stream for it.

    Attributes:
        defers: another module that needs the same groups is expected to run next, so they are offloaded later.
    """

    __slots__ = ("defers", "groups", "module")

    def __init__(self, module: nn.Module, groups: Sequence[ParamGroup] = (), *, defers: bool = False) -> None:
        self.module = module
        self.groups = groups
        self.defers = defers


class Frame:
    """A hooked module that runs, and what it holds.

    Attributes:
        compare: which of its tensors may be written without a trace meanwhile.
        materialized: groups it read without calling their owner, how often that had run then, and what to compare.
    """

    __slots__ = ("called", "compare", "materialized")

    def __init__(self, called: CalledModule, compare: Compare) -> None:
        self.called = called
        self.compare = compare
        self.materialized: dict[ParamGroup, tuple[int, Compare]] | None = None


class ForwardPass:
    """The frames of the pass under way, and the groups that are on the device.

    Attributes:
        compare: which tensors the present pass may write without a trace.
        frames: the modules that run, the outermost first.
    """

    def __init__(self, copy_engine: CopyEngine, member: Member, depth: int) -> None:
        self._budget = copy_engine.budget
        self._copy_engine = copy_engine
        self._member = member
        self._stall_timer = copy_engine.stall_timer
        self.prefetcher = Prefetcher(copy_engine, member, depth)
        self.frames: list[Frame] = []
        self._holders: Holders
        self.compare = Compare.NONE
        self._groups: Sequence[ParamGroup] = ()
        self._residents: list[ParamGroup] = []
        self._on_device: dict[ParamGroup, None] = {}  # onloaded in this pass and not offloaded yet, in order
        self._cached: dict[ParamGroup, None] = {}  # on the device since an earlier pass, in order of last use
        self._deferred: list[ParamGroup] = []
        self._called: dict[int, CalledModule] = {}
        self._is_profiled = False
        self._has_trained = False
        self._retired = 0

    def replace(self, groups: Sequence[ParamGroup], units: Sequence[Unit], tree: ModuleTree) -> None:
        """These are the groups and units from now on, of the modules of ``tree``; none is on the device."""
        self._holders = Holders(tree, groups)
        self.prefetcher.replace(groups, self._holders)
        self._stall_timer.reset()
        self._cached.clear()
        self._groups = groups
        self._residents = [group for group in groups if not group.streams]
        found: dict[int, tuple[nn.Module, list[ParamGroup], bool]] = {}
        for index, unit in enumerate(units):
            needed = [group for group in groups if index in group.spec.units and group.streams]
            for number, (_, trigger) in enumerate(unit.triggers, 1):
                _, known, defers = found.get(id(trigger), (trigger, [], False))
                found[id(trigger)] = (trigger, [*known, *needed], defers or number < len(unit.triggers))
        self._called = {
            key: CalledModule(module, tuple(dict.fromkeys(needed)), defers=defers)
            for key, (module, needed, defers) in found.items()
        }

    def called(self, module: nn.Module) -> CalledModule:
        """``module`` with the groups that it needs when it runs."""
        return self._called.get(id(module)) or CalledModule(module)

    @property
    def caches(self) -> bool:
        """Whether groups are cached on the device between passes now."""
        return bool(self._cached) and not self.frames

    # Passes

    def begin(self, entry: nn.Module) -> None:
        """A pass begins."""
        trains = torch.is_grad_enabled() and any(group.is_trained for group in self._groups)
        self.compare = Compare.TRAINED if trains else Compare.NONE
        self._has_trained |= trains
        self._is_profiled = torch.autograd._profiler_enabled()
        if trains:
            for group in list(self._cached):
                if group.is_trained:
                    self.evict_group(group)
        self.prefetcher.begin(id(entry))
        self._stall_timer.begin(learned=bool(self.prefetcher.order))

    def sweep(self, finished: bool = False) -> None:
        """End the pass: frames that an interruption left behind end here as well."""
        self.exit(0)
        self._deferred.clear()
        stays = self._budget.limit is not None and finished
        if stays:
            self._advance()
        ahead, written_next = self.prefetcher.ahead, False
        for group in (*self._on_device, *ahead):
            group.users = 0
            if self._has_trained and group.has_gradients:
                group.offload(compare=self.compare)
                written_next = True
            elif not stays or self._is_trained(group) or not (group.cached or group in ahead):
                group.offload(compare=self.compare)
            else:
                self._keep(group)
        self._on_device.clear()
        if written_next:
            self._copy_engine.drain()  # an optimizer may write host memory that a copy still reads
        if self.compare is not Compare.NONE:
            self._finish_comparisons()
        if self._budget.slabs.retired != self._retired:
            self._retired = self._budget.slabs.retired
            for group in self._groups:
                group.drop_retired_views()
        self._budget.end_pass()
        self._stall_timer.end(finished)
        self.prefetcher.end(finished)

    def show_held(self) -> None:
        """Take groups that stay on the device for good to the host where other code has a reference to their stored
        memory; the next pass brings them back."""
        for group in self._residents:
            if group.state is GroupState.ONLOADED and group.memory_is_held:
                with engine_mode():
                    group.offload(compare=Compare.ALL)
                    follow_parameters([group])

    def _keep(self, group: ParamGroup) -> None:
        """Leave a group on the device between two passes, if nobody can write it there unseen; see
        [Note: who may write a weight between two passes]."""
        if group.memory_is_held:
            group.offload(compare=self.compare)
        elif group.cached and group.state is not GroupState.PREFETCHED:
            group.keep_on_device()
        elif not self._holders.have_tensors_of(group):
            group.keep_for_next_pass()
        elif group.cached and not group.under_way:
            group.keep_on_device()
        else:
            group.offload(compare=self.compare)
        if group.state is not GroupState.OFFLOADED:
            self._cached[group] = None

    def _finish_comparisons(self) -> None:
        with engine_mode():
            finish_comparisons([one for group in self._groups for one in group.writes.comparisons])
        for group in self._groups:
            group.writes.comparisons.clear()

    # Frames

    def enter(self, called: CalledModule, compare: Compare | None = None, *, prefetch: bool = True) -> None:
        """A module begins to run: what it needs comes to the device."""
        frames, groups = self.frames, called.groups
        first = not frames
        frames.append(Frame(called, self.compare if compare is None else compare))
        stream = None
        if groups:
            for group in groups:
                group.users += 1
                group.runs += 1
            if self._deferred:
                self._offload_deferred()
            stream = self._copy_engine.current_stream
            if self._is_profiled or self._cached:
                for group in groups:
                    self._onload(group, stream)
            else:
                use, on_device, reserve = self.prefetcher.use, self._on_device, self._reserve
                for group in groups:
                    use(group)
                    on_device[group] = None
                    try:
                        group.onload(reserve, stream)
                    except torch.OutOfMemoryError:
                        if not self._budget.relieve(self._member):
                            raise
                        group.onload(reserve, stream)
        elif self._deferred:
            self._offload_deferred()
        elif not first and self._budget.limit is None:
            return  # nothing has changed for what comes next
        if prefetch:
            self._advance(stream)

    def _advance(self, stream: Any = None) -> None:
        """Start copies of what comes next, and take off the device what does not come any more."""
        if not self.prefetcher.reaches:
            return
        for group in self.prefetcher.advance(stream):
            if group.state is GroupState.PREFETCHED:
                group.discard()
            elif not group.users and not group.cached:
                self._offload(group, self.compare)

    def exit(self, depth: int) -> None:
        """End all frames but the outermost ``depth``."""
        try:
            self._exit(depth)
        except BaseException:
            self.compare = Compare.ALL  # the end of the pass tries again, and has to find what the frame has written
            raise

    def _exit(self, depth: int) -> None:
        frames = self.frames
        while len(frames) > depth:
            frame = frames.pop()
            called = frame.called
            if frame.materialized:
                for group, (_, compare) in frame.materialized.items():
                    self._release(group, called, compare)
            if not called.groups:
                continue
            plain = frame.compare is Compare.NONE and not (called.defers or self._is_profiled)
            for group in called.groups:
                if group.users != 1 or not plain:
                    self._release(group, called, frame.compare)
                    continue
                if not group.cached and group not in self.prefetcher.ahead:  # as nearly always
                    group.offload()
                    self._on_device.pop(group, None)
                else:
                    group.stop_using()

    def materialize(self, group: ParamGroup, compare: Compare) -> None:
        """The innermost frame reads a group that no hook announced: it holds it as well.

        Args:
            compare: what the reader may write without a trace.
        """
        frame = self.frames[-1]
        if frame.materialized is None:
            frame.materialized = {}
        else:
            self._end_claims(frame, frame.materialized)
        if group not in frame.materialized:
            group.users += 1
            frame.materialized[group] = (group.runs, compare)
        elif compare is Compare.ALL:
            frame.materialized[group] = (frame.materialized[group][0], compare)
        self._onload(group)

    def _end_claims(self, frame: Frame, claims: dict[ParamGroup, tuple[int, Compare]]) -> None:
        # A module may read the weights of layers just before it calls them. To hold every such group to the end of a
        # long forward would gather the model on the device. Once its owner has run, the next read ends the claim.
        for group, (runs, compare) in list(claims.items()):
            if group.runs > runs:
                del claims[group]
                self._release(group, frame.called, compare)

    def _release(self, group: ParamGroup, called: CalledModule, compare: Compare) -> None:
        if group.users > 1:
            group.users -= 1
            return
        group.users = 0
        if not group.streams:
            return
        if called.defers and compare is not Compare.ALL and self.frames:
            self._deferred.append(group)
        else:
            self._let_go(group, compare)

    def _let_go(self, group: ParamGroup, compare: Compare) -> None:
        """Offload a group that nobody uses, unless it is cached, or used again soon."""
        stays = group.cached and not self._is_trained(group)
        if stays or (compare is not Compare.ALL and group in self.prefetcher.ahead):
            group.stop_using()
        else:
            self._offload(group, compare)

    def _offload_deferred(self) -> None:
        for group in self._deferred:
            if not group.users:
                self._let_go(group, self.compare)
        self._deferred.clear()

    def _offload(self, group: ParamGroup, compare: Compare) -> None:
        if not self._is_profiled:
            group.offload(compare=compare)
        else:
            with profiled("offload", group.spec.name):
                group.offload(compare=compare)
        self._on_device.pop(group, None)  # last: if that fails, the end of the pass tries again

    def _onload(self, group: ParamGroup, stream: Any = None) -> None:
        if group.streams:
            self.prefetcher.use(group)
            self._on_device[group] = None
            if self._cached:
                self._cached.pop(group, None)
        if not self._is_profiled:
            self._bring(group, stream)
            return
        with profiled("onload", group.spec.name):
            self._bring(group, stream)

    def _bring(self, group: ParamGroup, stream: Any) -> None:
        try:
            group.onload(self._reserve, stream)
        except torch.OutOfMemoryError:
            if not self._budget.relieve(self._member):
                raise
            group.onload(self._reserve, stream)

    def _is_trained(self, group: ParamGroup) -> bool:
        return self.compare is Compare.TRAINED and group.is_trained

    def _reserve(self, nbytes: int) -> bool:
        if self._budget.limit is None:
            return True
        displace = self._budget.may_displace(self._member)
        return self._budget.reserve(nbytes, self._member, required=True, displace=displace)

    # Eviction

    def evict(self, nbytes: int) -> None:
        """Take groups that are not in use off the device, those used last first: they are needed latest. What is
        expected next goes only if that is not enough."""
        soon = self.prefetcher.ahead
        later = [group for group in (*self._cached, *self._on_device) if group not in soon]
        for group in (*reversed(later), *reversed(soon)):
            if nbytes <= 0:
                return
            if not group.users and group.device_bytes and group.spec.residency is Residency.STREAMED:
                nbytes -= group.device_bytes
                self.evict_group(group)

    def evict_all(self) -> None:
        """Take everything off the device that is cached there between passes."""
        for group in list(self._cached):
            self.evict_group(group)

    def evict_group(self, group: ParamGroup) -> None:
        """Take a group off the device that nobody uses, whatever was written to it meanwhile."""
        if group.state is GroupState.IDLE or group.device_bytes:
            with engine_mode():
                group.offload(compare=Compare.ALL)
            self._on_device.pop(group, None)
            self.prefetcher.note_evicted(group)
            self._budget.evictions += 1
        self._cached.pop(group, None)
