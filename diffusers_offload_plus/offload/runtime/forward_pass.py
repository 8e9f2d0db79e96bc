"""What is on the device while the model runs: onload before use, prefetch what comes next, offload after.

[Note: passes and frames]
A *pass* is one outermost call into the model, by whatever door: ``model(x)``, ``vae.encode``, a block called alone.
A *frame* is one hooked module running inside it. A frame holds the groups its module needs; a group is offloaded
when no frame holds it. At the end of a pass, however it ends, nothing that streams is left on the device, but for
what a budget has room to keep.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..memory.device_budget import Member
from ..model.inventory import Residency
from ..model.partition import Unit
from ..transfer.transfer import CopyEngine
from .modes import engine_mode, profiled
from .param_group import ParamGroup, State
from .prefetch import Prefetcher

__all__ = ["ForwardPass", "Frame"]


class Frame:
    """A hooked module that runs, and what it holds.

    Attributes:
        compare: the groups may be written without a trace meanwhile.
        served: groups it read without calling their owner, and how often that had run then.
    """

    __slots__ = ("compare", "groups", "module", "served")

    def __init__(self, module: nn.Module, groups: Sequence[ParamGroup], compare: bool) -> None:
        self.module = module
        self.groups = groups
        self.compare = compare
        self.served: dict[ParamGroup, int] = {}


class ForwardPass:
    """The frames of the pass under way, and the groups it has touched.

    Attributes:
        compare: the present pass may write weights without a trace.
        kept: groups that are to stay on the device, in the order in which they were used.
    """

    def __init__(self, link: CopyEngine, member: Member, depth: int) -> None:
        self._budget = link.budget
        self._member = member
        self._waits = link.stall_timer
        self.prefetcher = Prefetcher(link, member, depth)
        self.frames: list[Frame] = []
        self.compare = False
        self._active: dict[ParamGroup, None] = {}  # touched in this pass, in order
        self._deferred: list[ParamGroup] = []
        self._cached: dict[ParamGroup, None] = {}  # on the device between passes, in the order of their last use
        self._groups_of: dict[int, tuple[ParamGroup, ...]] = {}
        self._keeps_until_later: set[int] = set()

    def replace(self, groups: Sequence[ParamGroup], units: Sequence[Unit]) -> None:
        """These are the groups and units from now on; none is on the device."""
        self.prefetcher.replace(groups)
        self._waits.reset()
        self._cached.clear()
        needed: dict[int, list[ParamGroup]] = {}
        self._keeps_until_later = set()
        for index, unit in enumerate(units):
            found = [group for group in groups if index in group.spec.units]
            for _, trigger in unit.triggers:
                needed.setdefault(id(trigger), []).extend(found)
            self._keeps_until_later.update(id(trigger) for _, trigger in unit.triggers[:-1])
        self._groups_of = {module: tuple(dict.fromkeys(found)) for module, found in needed.items()}

    def groups_of(self, module: nn.Module) -> tuple[ParamGroup, ...]:
        """The groups that ``module`` needs when it runs."""
        return self._groups_of.get(id(module), ())

    @property
    def keeps(self) -> bool:
        """Whether groups are on the device between passes now."""
        return bool(self._cached) and not self.frames

    # ForwardPass

    def begin(self, entry: nn.Module) -> None:
        """A pass begins."""
        self.compare = torch.is_grad_enabled()
        with engine_mode():
            if self.compare:
                self.evict_all()
            self.prefetcher.begin(id(entry))
            self._waits.begin(learned=bool(self.prefetcher.order))

    def sweep(self, finished: bool = False) -> None:
        """End the pass: frames that an interruption left behind end here as well."""
        self.exit(0)
        with engine_mode():
            self._deferred.clear()
            stays = self._staying(finished)
            for group in self._active:
                group.users = 0
                if group in stays and not group.under_way:
                    group.stay()
                    self._cached[group] = None
                else:
                    group.offload(compare=self.compare)
            self._active.clear()
        self._budget.rest()
        self._waits.end(finished)
        self.prefetcher.end(finished)

    def _staying(self, finished: bool) -> set[ParamGroup]:
        if self._budget.limit is None or self.compare or not finished:
            return set()
        return {*self.prefetcher.ahead, *(group for group in self._active if group.kept)}

    # Frames

    def enter(self, frame: Frame, *, prefetch: bool = True) -> None:
        """A module begins to run: what it needs comes to the device."""
        self.frames.append(frame)
        if not frame.groups and not self._deferred and not self.prefetcher.reaches:
            return
        for group in frame.groups:
            group.users += 1
            group.runs += 1
        with engine_mode():
            if self._deferred:
                for group in self._deferred:
                    if not group.users:
                        self._offload(group, compare=self.compare)
                self._deferred.clear()
            for group in frame.groups:
                self._onload(group)
            if prefetch:
                for group in self.prefetcher.advance():
                    self._active[group] = None

    def exit(self, depth: int) -> None:
        """End all frames but the outermost ``depth``."""
        frames = self.frames
        while len(frames) > depth and not frames[-1].groups and not frames[-1].served:
            frames.pop()
        if len(frames) <= depth:
            return
        with engine_mode():
            while len(frames) > depth:
                frame = frames.pop()
                for group in frame.served:
                    self._release(group, frame, compare=True)
                for group in frame.groups:
                    self._release(group, frame, compare=frame.compare)

    def serve(self, group: ParamGroup) -> None:
        """The innermost frame reads a group that no hook announced: it holds it as well."""
        frame = self.frames[-1]
        self._end_claims(frame)
        if group not in frame.served:
            group.users += 1
            frame.served[group] = group.runs
        self._onload(group)

    def _end_claims(self, frame: Frame) -> None:
        # Many readers look at ``layer.weight.dtype`` just before they call the layer; holding every such group to the
        # end of a long forward would gather the model on the device. Once its owner has run, the next read ends it.
        for group, runs in list(frame.served.items()):
            if group.runs > runs:
                del frame.served[group]
                self._release(group, frame, compare=True)

    def _release(self, group: ParamGroup, frame: Frame, *, compare: bool) -> None:
        group.users = max(0, group.users - 1)
        if group.users or group.spec.residency is Residency.RESIDENT:
            return
        if id(frame.module) in self._keeps_until_later and not compare and self.frames:
            self._deferred.append(group)
            return
        self._offload(group, compare=compare)

    def _offload(self, group: ParamGroup, *, compare: bool) -> None:
        if group.kept and not self.compare and not compare:
            return
        with profiled("offload", group.spec.name):
            group.offload(compare=compare)

    def _onload(self, group: ParamGroup) -> None:
        if group.spec.residency is Residency.STREAMED:
            self.prefetcher.use(group)
            self._active[group] = None
            if self._cached:
                self._cached.pop(group, None)
        with profiled("onload", group.spec.name):
            group.onload(self._make_room)

    def _make_room(self, nbytes: int) -> bool:
        displace = self._budget.may_displace(self._member)
        return self._budget.reserve(nbytes, self._member, required=True, displace=displace)

    # Room

    def evict(self, nbytes: int) -> None:
        """Take groups that are not in use off the device, those used last first: they are needed latest. What is
        expected next goes only if that is not enough."""
        soon = self.prefetcher.ahead
        later = [group for group in (*self._cached, *self._active) if group not in soon]
        for group in (*reversed(later), *reversed(list(soon))):
            if nbytes <= 0:
                return
            if not group.users and group.device_bytes and group.spec.residency is Residency.STREAMED:
                nbytes -= group.device_bytes
                self.bring_home(group)

    def evict_all(self) -> None:
        """Take everything off the device that is there between passes."""
        for group in list(self._cached):
            self.bring_home(group)

    def bring_home(self, group: ParamGroup) -> None:
        """Take a group off the device that nobody uses, whatever was written to it meanwhile."""
        self._cached.pop(group, None)
        if group.state is State.KEPT or group.device_bytes:
            self._budget.evictions += 1
            with engine_mode():
                group.offload(compare=True)
