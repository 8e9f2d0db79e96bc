"""Which groups made computing wait, for how long, on which link, and what would remove it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..formatting import format_bytes
from ..memory.device_budget import least_limit
from ..model.inventory import Residency
from ..policy import OffloadType, supports_streams
from ..runtime.engine import OffloadEngine
from ..runtime.param_group import ParamGroup
from ..transfer.timing import Bottleneck

__all__ = ["Stall", "Stalls", "stalls_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stall:
    """A group that made computing wait.

    Attributes:
        group: its name.
        link: where it was late: ``"host to device"``, or ``"disk"`` if its bytes had not been read when they were
            needed.
        nbytes: bytes it moves.
        seconds: how long computing waited for it in a pass, mean of ``passes`` measured ones; ``worst``: in the worst.
        remedy: what would remove the wait.
    """

    group: str
    link: str
    nbytes: int
    seconds: float
    worst: float
    passes: int
    remedy: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stalls:
    """Those of one component, most time lost first.

    Attributes:
        passes: measured passes; the first few in which the order of use was known, then every sixteenth. Before there
            are any, the first pass counts, in which it is learned.
    """

    passes: int
    found: tuple[Stall, ...]


def stalls_of(engine: OffloadEngine, sharing: Iterable[OffloadEngine]) -> Stalls:
    """What ``engine`` has measured so far.

    Args:
        sharing: the engines that may share its budgets, itself too.
    """
    learned, tally = engine.copy_engine.stall_timer.read()
    remedies = _Remedies(engine, list(sharing), learned)
    known = set(engine.groups)
    found = [
        Stall(
            group=group.spec.name,
            link=link.value,
            nbytes=group.nbytes,
            seconds=waited.seconds / tally.passes,
            worst=waited.worst,
            passes=tally.passes,
            remedy=remedies.of(group, link),
        )
        for (group, link), waited in tally.waited.items()
        if isinstance(group, ParamGroup) and group in known
    ]
    found.sort(key=lambda stall: -stall.seconds)
    return Stalls(passes=tally.passes, found=tuple(found))


class _Remedies:
    """What would remove a wait, in one sentence. Sizes are computed by what would choose with them."""

    def __init__(self, engine: OffloadEngine, sharing: list[OffloadEngine], learned: bool) -> None:
        self._engine = engine
        self._policy = engine.policy
        self._alone = len(sharing) == 1
        self._sharing = [other for other in sharing if other.budget is engine.budget]
        self._learned = learned

    def of(self, group: ParamGroup, link: Bottleneck) -> str:
        policy = self._policy
        if not self._learned and (policy.prefetch_depth or policy.vram_budget is not None):
            return "none needed: the order of use is known after the first pass"
        if link is Bottleneck.DISK:
            return self._of_disk(group)
        if group.spec.residency is not Residency.STREAMED:
            return "none needed: it never leaves the device once it is there"
        if not policy.use_stream and supports_streams(self._engine.device) and not self._is_first(group):
            return "`use_stream=True` brings it while the group before it computes"
        if self._engine.budget.auto is not None:
            return "the device has no room for it beside what passes need: smaller inputs leave more"
        remedy = self._of_displacement() if group.cached else self._of_memory(group)
        if policy.low_cpu_mem_usage:
            remedy += "; `low_cpu_mem_usage=False` spares it the copy to a pinned buffer"
        return remedy

    def _is_first(self, group: ParamGroup) -> bool:
        order = self._engine.forward_pass.prefetcher.order
        return bool(order) and self._engine.groups[order[0]] is group

    def _of_disk(self, group: ParamGroup) -> str:
        disk = self._policy.disk
        assert disk is not None
        needed = self._engine.tiers.host_budget_holding(group.spec)
        if disk.host_budget is None:
            change = _argument("host_budget", needed)
        else:
            change = _more("host_budget", needed - disk.host_budget)
        share = "" if self._alone else " for this component, which has a share of it,"
        return f"a faster disk; {change}{share} holds it in memory"

    def _of_memory(self, group: ParamGroup) -> str:
        engine, keeper = self._engine, self._engine.keeper
        fixed = sum(engine.fixed_bytes for engine in self._sharing)
        present = engine.budget.limit
        above = keeper.floor - 1 if present is None else engine.budget.for_groups()
        needed = least_limit(fixed + keeper.least_keeping(engine.streamed.index(group), above))
        if present is None:
            change = _argument("vram_budget", needed)
        else:
            change = _more("vram_budget", needed - present)
        if self._policy.offload_type is OffloadType.LEAF_LEVEL and present is not None:
            # With more memory whole blocks may fit, unless layers are asked for.
            return f"{change} with `offload_type='leaf_level'` keeps it on the device"
        return f"{change} keeps it on the device"

    def _of_displacement(self) -> str:
        budget = self._engine.budget
        assert budget.limit is not None
        if len(self._sharing) == 1:
            return "looking at its weights between passes brings it to the host; without that it stays on the device"
        whole = sum(engine.fixed_bytes + sum(g.nbytes for g in engine.streamed) for engine in self._sharing)
        more = least_limit(whole) - budget.limit
        if more <= 0:
            return "none needed: there is room for all components at once"
        return f"{_more('vram_budget', more)} leaves room for it beside the other components, which displaced it"


def _more(argument: str, nbytes: int) -> str:
    return f"`{argument}` larger by {nbytes} bytes ({format_bytes(nbytes)})"


def _argument(argument: str, nbytes: int) -> str:
    return f"`{argument}={nbytes}` ({format_bytes(nbytes)})"
