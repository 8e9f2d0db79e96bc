"""Stalls: the groups that made computing wait, how long, at which bottleneck, and what would remove the wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from ..formatting import format_bytes, round_up
from ..groups.param_group import ParamGroup
from ..memory.device_budget import bytes_for_groups, least_limit
from ..model.inventory import Residency
from ..planning.fitting import streams_well
from ..policy import OffloadType, supports_streams
from ..runtime.engine import OffloadEngine
from ..transfer.timing import Bottleneck

__all__ = ["Stall", "Stalls", "stalls_of"]

STEPS = 16  # number of sizes that are tried for a remedy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stall:
    """A group that made computing wait.

    Attributes:
        group: name of the group.
        bottleneck: what made the group late: ``"host to device"`` copies, or ``"disk"`` if its bytes had not been read
            when they were needed.
        nbytes: bytes of the group.
        seconds: seconds that a pass waited for the group, mean of ``passes`` measured passes; ``worst``: in the worst
            of them.
        remedy: what would remove the wait.
    """

    group: str
    bottleneck: str
    nbytes: int
    seconds: float
    worst: float
    passes: int
    remedy: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stalls:
    """The stalls of one component.

    Attributes:
        passes: number of measured passes: the first few in which the order of use was known, then every sixteenth.
            Until there is one, the first pass counts, which learns the order.
        found: the stalls, most time lost first.
    """

    passes: int
    found: tuple[Stall, ...]


def stalls_of(engine: OffloadEngine, sharing: Iterable[OffloadEngine]) -> Stalls:
    """The stalls that ``engine`` has measured so far.

    Args:
        sharing: all engines of the report, ``engine`` too; some share its budget.
    """
    learned, tally = engine.copy_engine.stall_timer.read()
    remedies = _Remedies(engine, list(sharing), learned)
    known = set(engine.groups)
    found = [
        Stall(
            group=group.spec.name,
            bottleneck=bottleneck.value,
            nbytes=group.nbytes,
            seconds=waited.seconds / tally.passes,
            worst=waited.worst,
            passes=tally.passes,
            remedy=remedies.of(group, bottleneck),
        )
        for (group, bottleneck), waited in tally.waited.items()
        if isinstance(group, ParamGroup) and group in known
    ]
    found.sort(key=lambda stall: -stall.seconds)
    return Stalls(passes=tally.passes, found=tuple(found))


class _Remedies:
    """Finds what would remove a wait, and says it in one sentence.

    Sizes in it are rounded up and suffice: they were tried with the code that would act on them.
    """

    def __init__(self, engine: OffloadEngine, sharing: list[OffloadEngine], learned: bool) -> None:
        self._engine = engine
        self._policy = engine.policy
        self._alone = len(sharing) == 1
        self._sharing = [other for other in sharing if other.budget is engine.budget]
        self._learned = learned

    def of(self, group: ParamGroup, bottleneck: Bottleneck) -> str:
        policy = self._policy
        if not self._learned and (policy.prefetch_depth or policy.vram_budget is not None):
            return "none needed: the order of use is known after the first pass"
        if bottleneck is Bottleneck.DISK:
            return self._of_disk(group)
        if group.spec.residency is not Residency.STREAMED:
            return "none needed: it never leaves the device once it is there"
        if not policy.use_stream and supports_streams(self._engine.device) and not self._is_first(group):
            return "`use_stream=True` copies it while the group before it computes"
        if self._engine.budget.auto is not None:
            return "activations leave no device memory for it: smaller inputs leave more"
        remedy = self._of_displacement() if group.cached else self._of_memory(group)
        if policy.low_cpu_mem_usage:
            remedy += "; `low_cpu_mem_usage=False` spares the copy to a pinned buffer"
        return remedy

    def _is_first(self, group: ParamGroup) -> bool:
        order = self._engine.forward_pass.prefetcher.order
        return bool(order) and self._engine.groups[order[0]] is group

    def _of_disk(self, group: ParamGroup) -> str:
        disk, tiers = self._policy.disk, self._engine.tiers
        assert disk is not None
        present = disk.host_budget or 0
        more = _enough(lambda more: tiers.would_hold(group.spec, present + more), tiers.whole_bytes - present)
        share = "" if self._alone else " for this component, which has a share of it,"
        return f"a faster disk; {_larger('host_budget', more, present)}{share} stores it in host memory"

    def _of_memory(self, group: ParamGroup) -> str:
        engine, place = self._engine, self._engine.streamed.index(group)
        fixed = sum(engine.fixed_bytes for engine in self._sharing)
        total, floor = sum(group.nbytes for group in engine.streamed), engine.floor_bytes
        leaves = self._policy.offload_type is OffloadType.LEAF_LEVEL
        present = engine.budget.limit or 0

        def caches(more: int) -> bool:
            nbytes = bytes_for_groups(present + more, fixed)
            # Where blocks are too large for the budget the model is cut into layers, which are other groups.
            suits = floor <= nbytes and (leaves or streams_well(total, floor, nbytes))
            return suits and place in engine.cache_choice(nbytes).cached

        change = _larger("vram_budget", _enough(caches, least_limit(fixed + total) - present), present)
        if leaves and present:
            # With more memory the model may be cut into blocks, unless the caller asks for layers.
            return f"{change} with `offload_type='leaf_level'` caches it on the device"
        return f"{change} caches it on the device"

    def _of_displacement(self) -> str:
        budget = self._engine.budget
        assert budget.limit is not None
        if len(self._sharing) == 1:
            return "code that reads its weights between passes brings it to the host; without that it stays cached"
        whole = sum(engine.fixed_bytes + sum(g.nbytes for g in engine.streamed) for engine in self._sharing)
        more = least_limit(whole) - budget.limit
        if more <= 0:
            return "none needed: all components fit at once"
        change = _larger("vram_budget", round_up(more), budget.limit)
        return f"{change} caches it besides the other components, which displaced it"


def _enough(suffices: Callable[[int], bool], whole: int) -> int:
    """The smallest of some round sizes that ``suffices``; ``whole`` does."""
    sizes = (round_up(max(1, whole * step // STEPS)) for step in range(1, STEPS))
    return next((nbytes for nbytes in sizes if suffices(nbytes)), round_up(whole))


def _larger(argument: str, more: int, present: int) -> str:
    if present:
        return f"a larger `{argument}` (about {format_bytes(more)} more)"
    return f"a `{argument}` of about {format_bytes(more)}"
