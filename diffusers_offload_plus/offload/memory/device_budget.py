"""The device memory that the engines of one call share: weights never take more of it than a given limit.

[Note: sharing the device]
A group that is cached on the device between passes can be evicted at any time: that costs its transfer when it is used
next, and nothing else. So each component may fill the budget while it runs, and the next component evicts its groups.
That pays off for a component with three or more passes in a row: what it caches saves transfers in each pass but the
first, and costs the other component one transfer. A component with one or two passes in a row (a text encoder, a
ControlNet next to its denoiser) evicts no more than it needs for streaming. How many passes in a row a component makes
is learned from the last time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from ...errors import BudgetExceededError
from ..formatting import format_bytes
from .auto_limit import AutoLimit
from .pass_lock import PassLock
from .slabs import DeviceSlab, SlabPool

__all__ = ["DeviceBudget", "Member", "Usage", "bytes_for_groups", "least_limit", "scratch_bytes"]

LONG_RUN = 3  # passes in a row from which on a component may evict others' groups to cache its own
LARGEST_SCRATCH = 4 << 20  # bytes
LEAST_SCRATCH = 1024  # bytes


@dataclasses.dataclass(slots=True)
class Usage:
    """Device bytes that the weights of one engine hold now."""

    live: int = 0


class Member(Protocol):
    """An engine that shares the budget.

    Attributes:
        label: name of its component.
        fixed_bytes: bytes of its weights that never leave the device.
    """

    label: str
    fixed_bytes: int
    usage: Usage

    @property
    def floor_bytes(self) -> int:
        """Fewest device bytes with which its groups can stream."""

    def evict(self, nbytes: int) -> None:
        """Evict groups that are not in use until ``nbytes`` are free, or none is left."""


def scratch_bytes(limit: int) -> int:
    """Bytes of a limit that are set apart for comparing device copies with host copies."""
    return max(LEAST_SCRATCH, min(LARGEST_SCRATCH, limit // 64))


def least_limit(nbytes: int) -> int:
    """The smallest limit that leaves ``nbytes`` for weights besides :func:`scratch_bytes`."""
    limit = nbytes
    while limit - scratch_bytes(limit) < nbytes:
        limit = nbytes + scratch_bytes(limit)
    return limit


def bytes_for_groups(limit: int, fixed: int) -> int:
    """Bytes of a limit for groups that are cached or streamed, besides ``fixed`` bytes that never leave the device."""
    return max(0, limit - scratch_bytes(limit) - fixed)


class DeviceBudget:
    """The limit, the bytes used of it, and the engines that share it.

    Attributes:
        limit: most bytes of weights on the device; None: no limit, and nothing is cached between passes.
        live: bytes of weights on the device now, without free slabs.
        peak: most bytes that weights and free slabs have taken together.
        lock: taken for each pass of a member, so that groups are evicted only while no other member runs.
        slabs: free memory for reuse; counts against the limit.
        evictions: number of groups that were evicted.
        auto: sets the limit anew for each pass; None: the limit never changes.
    """

    def __init__(self, limit: int | None = None, auto: AutoLimit | None = None) -> None:
        self.limit = limit
        self.auto = auto
        self.live = 0
        self.peak = 0
        self.evictions = 0
        self.lock = PassLock()
        self.slabs = SlabPool()
        self._references: list[weakref.ref[Member]] = []  # the one that ran last is at the end
        self._runs: dict[int, int] = {}  # passes in a row that each member made the last time
        self._reuse: dict[int, float] = {}  # how often its last pass used each group
        self._passes = 0  # passes in a row of the member that ran last

    @property
    def _members(self) -> list[Member]:
        """The engines that share the budget. One that is dropped with its model is no longer there."""
        return [member for reference in self._references if (member := reference()) is not None]

    @property
    def used(self) -> int:
        """Device bytes of weights and free slabs now."""
        return self.live + self.slabs.nbytes

    @property
    def pools(self) -> bool:
        """Whether free slabs are kept in the pool between passes."""
        return self.limit is not None

    def give(self, slab: DeviceSlab) -> None:
        """Put a free slab into the pool.

        Without a limit the pool has only the latest slab, and only to the end of the pass. That is no more memory than
        was in use a moment before.
        """
        if self.limit is None:
            self.slabs.trim(self.slabs.nbytes)
        self.slabs.give(slab)

    def end_pass(self) -> None:
        """End a pass: without a limit the pool is emptied."""
        if self.limit is None:
            self.slabs.trim(self.slabs.nbytes)

    @property
    def scratch(self) -> int:
        """Bytes set apart for comparing a device copy with its host copy, piece by piece."""
        return LARGEST_SCRATCH if self.limit is None else scratch_bytes(self.limit)

    def for_groups(self) -> int:
        """Bytes of the limit for groups that are cached or streamed, whichever member runs."""
        assert self.limit is not None
        return bytes_for_groups(self.limit, sum(member.fixed_bytes for member in self._members))

    def join(self, member: Member) -> None:
        """Add ``member`` to the engines that share the budget. Idempotent."""
        if member not in self._members:
            self._references.insert(0, weakref.ref(member))
            weakref.finalize(member, self._drop, id(member), member.usage).atexit = False

    def leave(self, member: Member) -> None:
        """Remove ``member``, which has nothing on the device any more."""
        self._references = [reference for reference in self._references if reference() is not member]
        self._forget(id(member))

    def _drop(self, key: int, usage: Usage) -> None:
        self.live -= usage.live
        usage.live = 0
        self._references = [reference for reference in self._references if reference() is not None]
        self._forget(key)

    def _forget(self, key: int) -> None:
        self._runs.pop(key, None)
        self._reuse.pop(key, None)
        if self.auto is not None:
            self.auto.forget(key)
        if not self._references:
            self._trim(self.slabs.nbytes)

    @contextlib.contextmanager
    def pass_scope(self, member: Member, called: int, size: int | None) -> Iterator[None]:
        """The scope of one pass of ``member``.

        Args:
            called: id of the called module.
            size: elements of its inputs; None: ``auto`` does not measure the pass.
        """
        self._note_run(member)
        try:
            with self._measured(member, called, size):
                yield
        except torch.OutOfMemoryError as error:
            self._explain(error, member)
            raise

    @contextlib.contextmanager
    def _measured(self, member: Member, called: int, size: int | None) -> Iterator[None]:
        if self.auto is None:
            yield
            return
        finished = False
        self.auto.least = self._least()
        self.limit = self.auto.begin(id(member), called, size, self.used)
        try:
            self._shrink(member)
            self.auto.give_back()
            self.auto.started(self.used)
            yield
            finished = True
        finally:
            around = self.auto.end(finished, self.used)
            if around is not None:
                self.limit = around
            self._shrink(member)  # groups may have grown above the limit, by a cast

    def _least(self) -> int:
        fixed = sum(member.fixed_bytes for member in self._members)
        return least_limit(fixed + max(member.floor_bytes for member in self._members))

    def _note_run(self, member: Member) -> None:
        members = self._members
        if members and members[-1] is member:
            self._passes += 1
            return
        if self._passes and members:
            self._runs[id(members[-1])] = self._passes
        self._references = [reference for reference in self._references if reference() is not member]
        self._references.append(weakref.ref(member))
        self._passes = 1

    def returns(self, member: Member) -> bool:
        """Whether another pass of ``member`` is expected right after this one. Its first run is expected to go on."""
        return self._passes < self._runs.get(id(member), self._passes + 1)

    def may_displace(self, member: Member) -> bool:
        """Whether ``member`` may evict others' groups to cache its own; see [Note: sharing the device]."""
        return self._runs.get(id(member), LONG_RUN) * self._reuse.get(id(member), 1.0) >= LONG_RUN

    def note_reuse(self, member: Member, times: float) -> None:
        """A pass of ``member`` is over that used each group so many ``times``, as a video decoder does that runs frame
        by frame: what it caches is saved that often."""
        self._reuse[id(member)] = times

    def note_change(self, nbytes: int) -> None:
        """Tell the measurement that weights are about to take ``nbytes`` more (negative: fewer)."""
        if nbytes < 0:  # an increase was noted when it was reserved
            self._note_activations()

    def reserve(self, nbytes: int, member: Member, *, required: bool, displace: bool, pooled: bool = True) -> bool:
        """Free device memory so that ``nbytes`` more can be taken.

        Args:
            required: evict any group that is not in use, of this member too; else only as ``displace`` says. Free
                slabs are given back in any case.
            displace: evict other members' groups first.
            pooled: the bytes are one slab, so a free slab of that size will do.

        Returns:
            Whether the bytes can be taken.

        Raises:
            BudgetExceededError: the bytes are required, do not fit besides what is in use, and the limit is a given
                one.
        """
        self._note_activations()
        if self.limit is None or (pooled and self.slabs.has(nbytes)) or self._short(nbytes) <= 0:
            return True
        self._trim(self._short(nbytes))
        if displace:
            self._evict_others(nbytes, member)
        if required and self._short(nbytes) > 0:
            member.evict(self._short(nbytes))
            self._trim(self._short(nbytes))
            self._evict_others(nbytes, member)
        if required and self._short(nbytes) > 0 and self.auto is None:
            raise BudgetExceededError(
                f"'{member.label}' needs {format_bytes(nbytes)} more on the device for the modules that run now. That "
                f"does not fit besides the {format_bytes(self.used)} in use: `vram_budget` would have to be at least "
                f"{least_limit(self.used + nbytes)} bytes. "
                "Enable group offloading again with that. Nothing is lost."
            )
        return required or self._short(nbytes) <= 0

    def relieve(self, member: Member) -> bool:
        """Free all device memory that can be freed, because the device has none left: free slabs, and groups that are
        not in use, of all members.

        Returns:
            Whether any was freed.
        """
        before = self.used
        for other in [*self._members, member]:
            other.evict(before)
        self.slabs.trim(self.slabs.nbytes)
        return self.used < before

    def retry(self, member: Member, work: Callable[[], None]) -> None:
        """Do ``work``; if the device runs out of memory meanwhile, free what can be freed and do it once more."""
        try:
            work()
        except torch.OutOfMemoryError:
            if not self.relieve(member):
                raise
            work()

    def _explain(self, error: BaseException, member: Member) -> None:
        """Add to an error of a device without memory what weights held of it, and what would help."""
        least = self._least()
        held = f"'{member.label}' is offloaded: offloaded weights held {format_bytes(self.used)} of the device"
        if self.limit is not None:
            held += f", of a `vram_budget` of {format_bytes(self.limit)}"
        if self.used > least:
            advice = f"`vram_budget={least}` would leave {format_bytes(self.used - least)} more for all else."
        else:
            advice = (
                "No smaller budget would do: use smaller inputs, or smaller modules (`offload_type='leaf_level'`)."
            )
        error.add_note(f"{held}. {advice} Nothing is lost.")

    def memory_given_back(self) -> None:
        """Tell the measurement that weights have freed device memory, so that it is not taken for activations."""
        if self.auto is not None and self.auto.measures:
            self.auto.restart()

    def _trim(self, nbytes: int) -> None:
        self.slabs.trim(nbytes)
        self.memory_given_back()

    def _note_activations(self) -> None:
        if self.auto is not None and self.auto.measures:
            self.auto.note(self.used)

    def _shrink(self, member: Member) -> None:
        """Evict groups above the limit, which has changed."""
        self._trim(self._short(0))
        self._evict_others(0, member)
        if self._short(0) > 0:
            member.evict(self._short(0))
            self._trim(self._short(0))

    def _short(self, nbytes: int) -> int:
        """Bytes above the limit if ``nbytes`` more were taken; negative if they fit."""
        assert self.limit is not None
        return self.used + nbytes + self.scratch - self.limit

    def _evict_others(self, nbytes: int, member: Member) -> None:
        for other in list(self._members):  # the one that ran longest ago first
            if self._short(nbytes) <= 0:
                return
            if other is not member:
                other.evict(self._short(nbytes))
                self._trim(self._short(nbytes))
