"""``offload_report``: tiers, bytes and transfers of each component, and each decision about a single tensor."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...errors import NotOffloadedError
from ..formatting import format_bytes, table
from ..hooks.attachment import Attachment, attachment_of
from ..memory.process import ProcessMemory, process_memory
from ..model.inventory import Decision, Residency
from ..runtime.engine import OffloadEngine
from ..stores.disk.slab import DiskSlab
from ..stores.shared.allocator import SharedSlab
from ..transfer.copy_engine import lockable
from .components import components_of
from .stalls import Stall, stalls_of

__all__ = ["ComponentReport", "OffloadReport", "offload_report"]

SHOWN = 8  # stalls in a printed report


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """The figures of one component since it was enabled. Sizes are bytes.

    Attributes:
        tier: where weights are stored: ``host``, ``pinned host``, ``shared host``, ``pinned shared host``, ``disk``,
            several of them joined by ``+``, or ``in place`` on a CPU onload device without disk tier.
        host_bytes: groups stored in host memory, and staging buffers; ``disk_bytes``: groups stored on disk.
        shared_bytes: groups in host memory that this process shares with others that have equal weights.
        private_bytes: pages of weights on disk or shared that have been written since they were stored, so that they
            are in memory of this process alone.
        groups: number of groups that stream.
        streamed_bytes: bytes that a pass copies to the device if it uses each group once.
        resident_bytes: weights that never leave the device: buffers, the root's own parameters.
        cached_bytes: weights that are cached on the device between passes, as far as a budget allows.
        budget_bytes: the limit in the last pass of any component that shares the budget; None without ``vram_budget``.
        activation_bytes: most device memory that a measured pass took besides weights; None without ``"auto"``.
        device_bound: most bytes of weights on the device at once, as planned; ``peak_device_bytes``: as it happened.
        transfers: number of copies from host to device; ``transferred_bytes``: bytes that they copied.
        written_back_bytes: bytes copied from device to host because they had been written on the device.
        repacked: number of times that a group was stored anew because other code had given its weights new memory.
        disk_written_bytes: bytes written to the store; ``disk_found_bytes``: bytes that were on disk already, compared
            and bit-equal.
        disk_read_bytes: bytes requested from disk; the system may have had them in its page cache.
        read_wait_seconds: seconds that the calling thread waited for disk.
        staging_wait_seconds: seconds of waiting for a staging buffer.
        stalls: groups that made computing wait, the longest wait first; see docs/stalls.md.
        measured_passes: number of passes in which stalls were measured.
        decisions: tensors that are treated in a special way, and why.
    """

    name: str
    model: str
    onload_device: str
    offload_type: str
    tier: str
    groups: int
    streamed_bytes: int
    resident_bytes: int
    cached_bytes: int
    budget_bytes: int | None
    activation_bytes: int | None
    device_bound: int
    peak_device_bytes: int
    transfers: int
    transferred_bytes: int
    written_back_bytes: int
    repacked: int
    host_bytes: int
    shared_bytes: int
    disk_bytes: int
    private_bytes: int
    disk_written_bytes: int
    disk_found_bytes: int
    disk_read_bytes: int
    read_wait_seconds: float
    staging_wait_seconds: float
    stalls: tuple[Stall, ...]
    measured_passes: int
    decisions: tuple[Decision, ...]


@dataclasses.dataclass(frozen=True)
class OffloadReport:
    """The report of every offloaded component, and the memory of the process; ``print`` shows it as tables."""

    components: tuple[ComponentReport, ...]
    memory: ProcessMemory

    def __getitem__(self, name: str) -> ComponentReport:
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)

    def __str__(self) -> str:
        head = (
            *("component", "model", "level", "tier", "groups", "streamed"),
            *("on device", "bound", "peak", "copies", "moved", "written"),
        )
        lines = table([head, *(_row(component) for component in self.components)], text_columns=4)
        if any(component.disk_bytes for component in self.components):
            lines.extend(["", *_disk_lines(self.components, self.memory), ""])
        for c in self.components:
            if c.shared_bytes:
                own = f"; {format_bytes(c.private_bytes)} written since and private" if c.private_bytes else ""
                lines.append(f"{c.name}: {format_bytes(c.shared_bytes)} in host memory, shared with other ranks{own}")
        if any(component.stalls for component in self.components):
            lines.extend(["", *_stall_lines(self.components), ""])
        for component in self.components:
            if component.activation_bytes is not None:
                activations = format_bytes(component.activation_bytes)
                lines.append(f"{component.name}: passes took up to {activations} of device memory besides weights")
            lines.extend(f"{component.name}: {d.name}: {d.reason}" for d in component.decisions)
        return "\n".join(lines)


def offload_report(target: Any) -> OffloadReport:
    """Report on ``target``: a pipeline, a components manager, or a model.

    Raises:
        NotOffloadedError: nothing of ``target`` is offloaded by this package.
    """
    found = {
        name: attachment
        for name, module in components_of(target).items()
        if (attachment := attachment_of(module)) is not None
    }
    if not found:
        raise NotOffloadedError(f"{type(target).__name__} is not offloaded by diffusers_offload_plus.")
    engines = list(dict.fromkeys(attachment.engine for attachment in found.values()))
    components = tuple(_component(name, attachment, engines) for name, attachment in found.items())
    return OffloadReport(components, process_memory())


def _component(name: str, attachment: Attachment, engines: list[OffloadEngine]) -> ComponentReport:
    engine, policy = attachment.engine, attachment.policy
    plan, disk, shared = engine.plan, engine.tiers.disk, engine.tiers.shared
    stalls = stalls_of(engine, engines)
    stored = [Decision(name="weights", reason=reason) for reason in (() if shared is None else shared.decisions)]
    if engine.copy_engine.unpinned:
        stored.append(
            Decision(
                name="weights",
                reason=f"{engine.copy_engine.unpinned} bytes could not be pinned{lockable()}; copies from pageable "
                "memory are slower. Raise the limit, or free host memory and enable again",
            )
        )
    lookups = (
        Decision(name=tensor, reason=f"read by {reader} without a call of its owner: onloaded while that runs")
        for tensor, reader in engine.lookups.items()
    )
    return ComponentReport(
        name=name,
        model=type(attachment.root).__name__,
        onload_device=str(policy.onload_device),
        offload_type=policy.offload_type.value,
        tier=" + ".join(dict.fromkeys(group.tier for group in plan.groups)) or "in place",
        groups=sum(group.residency is Residency.STREAMED for group in plan.groups),
        streamed_bytes=plan.streamed_bytes,
        resident_bytes=plan.resident_bytes,
        cached_bytes=plan.cached_bytes,
        budget_bytes=engine.budget.limit,
        activation_bytes=None if engine.budget.auto is None else engine.budget.auto.need_of(id(engine)),
        device_bound=plan.device_bound,
        peak_device_bytes=engine.copy_engine.peak,
        transfers=engine.copy_engine.copies,
        transferred_bytes=engine.copy_engine.bytes,
        written_back_bytes=sum(group.writes.nbytes for group in engine.groups),
        repacked=sum(group.repacked for group in engine.groups),
        host_bytes=plan.host_bytes + engine.copy_engine.staging_bytes,
        shared_bytes=plan.shared_bytes,
        disk_bytes=plan.bytes_on("disk"),
        private_bytes=sum(
            g.storage.private_bytes for g in engine.groups if isinstance(g.storage, (DiskSlab, SharedSlab))
        ),
        disk_written_bytes=0 if disk is None else disk.written,
        disk_found_bytes=0 if disk is None else disk.found,
        disk_read_bytes=engine.copy_engine.disk_bytes,
        read_wait_seconds=engine.copy_engine.read_wait_seconds,
        staging_wait_seconds=engine.copy_engine.staging_wait_seconds,
        stalls=stalls.found,
        measured_passes=stalls.passes,
        decisions=(*plan.decisions, *stored, *lookups),
    )


def _row(c: ComponentReport) -> tuple[str, ...]:
    sizes = (c.streamed_bytes, c.resident_bytes + c.cached_bytes, c.device_bound, c.peak_device_bytes)
    level = c.offload_type.removesuffix("_level")
    return (
        *(c.name, c.model, level, c.tier, str(c.groups)),
        *map(format_bytes, sizes),
        *(str(c.transfers), format_bytes(c.transferred_bytes), format_bytes(c.written_back_bytes)),
    )


def _disk_lines(components: tuple[ComponentReport, ...], memory: ProcessMemory) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("component", "in memory", "on disk", "of which written", "found", "private", "read", "waited")
    ]
    for c in components:
        ours = (c.disk_written_bytes, c.disk_found_bytes, c.private_bytes, c.disk_read_bytes)
        sizes = map(format_bytes, (c.host_bytes, c.disk_bytes, *ours))
        rows.append((c.name, *sizes, f"{c.read_wait_seconds:.2f} s"))
    parts = {"anonymous": memory.anonymous, "file-backed": memory.file_backed, "peak of cgroup": memory.cgroup_peak}
    known = ", ".join(f"{name} {format_bytes(value)}" for name, value in parts.items() if value is not None)
    return [*table(rows, text_columns=1), f"memory of the process: {known or 'not known'}"]


def _stall_lines(components: tuple[ComponentReport, ...]) -> list[str]:
    found = [(c.name, stall) for c in components for stall in c.stalls]
    found.sort(key=lambda named: -named[1].seconds)
    rows = [("component", "group", "late on", "bytes", "waited a pass", "worst", "passes", "remedy")]
    for name, s in found[:SHOWN]:
        times = (f"{s.seconds * 1e3:.2f} ms", f"{s.worst * 1e3:.2f} ms", str(s.passes))
        rows.append((name, s.group, s.bottleneck, format_bytes(s.nbytes), *times, s.remedy))
    lines = ["groups that made computing wait:", *table(rows, text_columns=3, remarks=True)]
    more = found[SHOWN:]
    if more:
        seconds = sum(stall.seconds for _, stall in more)
        lines.append(f"and {len(more)} more, {seconds * 1e3:.2f} ms a pass together")
    return lines
