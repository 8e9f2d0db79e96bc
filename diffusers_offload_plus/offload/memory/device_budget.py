"""Device memory that the engines of one call share, as a promise: never more than the limit at any moment.

[Note: sharing the device]
Groups that are kept on the device between passes are a loan like any other: dropping one costs its transfer when it
is used next, nothing else. So each component may fill the budget while it works, and whoever comes after takes the
room back. That pays if it comes for more than two passes in a row: what it keeps is then saved in each pass but the
first, and costs the other component one transfer. One that comes for a pass or two (a text encoder, a ControlNet
beside its denoiser) streams, and takes no more room than that needs. How many passes in a row a component makes is
learned from the last time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

from ...errors import BudgetExceededError
from ..formatting import format_bytes
from .auto_limit import AutoLimit
from .slabs import DeviceSlab, SlabPool

__all__ = ["DeviceBudget", "Member", "Usage", "bytes_for_groups", "least_limit", "scratch_bytes"]

LONG_RUN = 3  # passes in a row from which on taking others' room pays
LARGEST_SCRATCH = 4 << 20
LEAST_SCRATCH = 1024


@dataclasses.dataclass(slots=True)
class Usage:
    """Device bytes that the weights of one engine hold now."""

    live: int = 0


class Member(Protocol):
    """An engine as the budget sees it."""

    label: str
    fixed_bytes: int
    usage: Usage

    @property
    def floor_bytes(self) -> int:
        """Device bytes without which its groups cannot be used."""

    def evict(self, nbytes: int) -> None:
        """Take groups that are not in use off the device until ``nbytes`` are free, or none is left."""


def scratch_bytes(limit: int) -> int:
    """Bytes of a limit that are set apart for comparing."""
    return max(LEAST_SCRATCH, min(LARGEST_SCRATCH, limit // 64))


def least_limit(nbytes: int) -> int:
    """The smallest limit that leaves ``nbytes`` beside what is set apart."""
    limit = nbytes
    while limit - scratch_bytes(limit) < nbytes:
        limit = nbytes + scratch_bytes(limit)
    return limit


def bytes_for_groups(limit: int, fixed: int) -> int:
    """Bytes of a limit left for groups that come and go, beside ``fixed`` bytes that never leave the device."""
    return max(0, limit - scratch_bytes(limit) - fixed)


class DeviceBudget:
    """The limit, what is used of it, and who may be asked to make room.

    Attributes:
        limit: bytes of weights on the device at most; None: no limit, and nothing is kept between passes.
        live: bytes held by weights now, without free slabs.
        peak: the most that ``live`` and free slabs were together.
        lock: held during each pass of a member, so that one makes room while no other runs.
        slabs: memory kept for reuse; counts against the limit.
        evictions: groups taken off the device for want of room.
        auto: sets the limit anew for each pass; None: it never changes.
    """

    def __init__(self, limit: int | None = None, auto: AutoLimit | None = None) -> None:
        self.limit = limit
        self.auto = auto
        self.live = 0
        self.peak = 0
        self.evictions = 0
        self.lock = threading.RLock()
        self.slabs = SlabPool()
        self._references: list[weakref.ref[Member]] = []  # the one that ran last at the end
        self._runs: dict[int, int] = {}
        self._reuse: dict[int, float] = {}
        self._passes = 0

    @property
    def _members(self) -> list[Member]:
        """The engines that share the budget. One that is dropped with its model is no longer there."""
        return [member for reference in self._references if (member := reference()) is not None]

    @property
    def used(self) -> int:
        """Device bytes taken now: weights and free slabs."""
        return self.live + self.slabs.nbytes

    @property
    def pools(self) -> bool:
        """Whether the device's memory is kept for reuse between two transfers."""
        return self.limit is not None

    def give(self, slab: DeviceSlab) -> None:
        """Keep memory for the next transfer. Without a limit only the latest, and only to the end of the pass: so much
        was needed a moment ago."""
        if self.limit is None:
            self.slabs.trim(self.slabs.nbytes)
        self.slabs.give(slab)

    def end_pass(self) -> None:
        """A pass is over: without a limit no memory is kept."""
        if self.limit is None:
            self.slabs.trim(self.slabs.nbytes)

    @property
    def scratch(self) -> int:
        """Bytes set apart for comparing a group with its host copy, a piece at a time."""
        return LARGEST_SCRATCH if self.limit is None else scratch_bytes(self.limit)

    def for_groups(self) -> int:
        """Bytes of the limit that are left for groups that come and go, whoever works."""
        assert self.limit is not None
        return bytes_for_groups(self.limit, sum(member.fixed_bytes for member in self._members))

    def join(self, member: Member) -> None:
        """Let ``member`` share the budget. Idempotent."""
        if member not in self._members:
            self._references.insert(0, weakref.ref(member))
            weakref.finalize(member, self._drop, id(member), member.usage).atexit = False

    def leave(self, member: Member) -> None:
        """``member`` is done, and holds nothing any more."""
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
    def pass_scope(self, member: Member, entry: int, size: int | None) -> Iterator[None]:
        """A pass of ``member``, through ``entry`` with inputs of ``size`` elements, runs inside."""
        self._note_run(member)
        if self.auto is None:
            yield
            return
        finished = False
        self.auto.least = self._least()
        self.limit = self.auto.begin(id(member), entry, size, self.used)
        try:
            self._shrink(member)
            self.auto.started(self.used)
            yield
            finished = True
        finally:
            around = self.auto.end(finished, self.used)
            if around is not None:
                self.limit = around
            self._shrink(member)  # a cast may have made groups larger than the limit had room for

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
        """Whether another pass of ``member`` is expected right after this one; it is until learned otherwise."""
        return self._passes < self._runs.get(id(member), self._passes + 1)

    def may_displace(self, member: Member) -> bool:
        """Whether keeping groups of ``member`` is worth others' room."""
        return self._runs.get(id(member), LONG_RUN) * self._reuse.get(id(member), 1.0) >= LONG_RUN

    def note_reuse(self, member: Member, times: float) -> None:
        """A pass of ``member`` is over that used each group so many ``times``, as a video decoder does that runs frame
        by frame: what it caches is saved that often."""
        self._reuse[id(member)] = times

    def note_change(self, nbytes: int) -> None:
        """Weights take ``nbytes`` more from now on (negative: less); that is none of what passes need beside them."""
        if nbytes < 0:
            self._note_beside()

    def reserve(self, nbytes: int, member: Member, *, required: bool, displace: bool, pooled: bool = True) -> bool:
        """See that ``nbytes`` more can be taken.

        Args:
            pooled: they are to be one piece, and a free slab serves.
            required: the bytes are needed now, whatever has to go; else only free slabs go.
            displace: other members' groups may go before.

        Raises:
            BudgetExceededError: they are required, and what is in use leaves no room below a limit that is a promise.
        """
        self._note_beside()
        if self.limit is None or (pooled and self.slabs.has(nbytes)) or self._short(nbytes) <= 0:
            return True
        self._trim(self._short(nbytes))
        if displace:
            self._ask_others(nbytes, member)
        if required and self._short(nbytes) > 0:
            member.evict(self._short(nbytes))
            self._trim(self._short(nbytes))
            self._ask_others(nbytes, member)
        if required and self._short(nbytes) > 0 and self.auto is None:
            raise BudgetExceededError(
                f"'{member.label}' needs {format_bytes(nbytes)} more on the device for what runs now, which does not "
                f"fit beside the {format_bytes(self.used)} in use: `vram_budget` would have to be at least "
                f"{least_limit(self.used + nbytes)} bytes. "
                "Enable group offloading again with that. Nothing is lost."
            )
        return required or self._short(nbytes) <= 0

    def memory_given_back(self) -> None:
        """What was given back is free by now: what is measured beside weights no longer has it in it."""
        if self.auto is not None and self.auto.measures:
            self.auto.restart()

    def _trim(self, nbytes: int) -> None:
        self.slabs.trim(nbytes)
        self.memory_given_back()

    def _note_beside(self) -> None:
        if self.auto is not None and self.auto.measures:
            self.auto.note(self.used)

    def _shrink(self, member: Member) -> None:
        """See that no more is used than the limit, which has changed."""
        self._trim(self._short(0))
        self._ask_others(0, member)
        if self._short(0) > 0:
            member.evict(self._short(0))
            self._trim(self._short(0))

    def _short(self, nbytes: int) -> int:
        assert self.limit is not None
        return self.used + nbytes + self.scratch - self.limit

    def _ask_others(self, nbytes: int, member: Member) -> None:
        for other in list(self._members):  # who ran longest ago first
            if self._short(nbytes) <= 0:
                return
            if other is not member:
                other.evict(self._short(nbytes))
                self._trim(self._short(nbytes))
