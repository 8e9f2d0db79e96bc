"""What the engine did: tiers, bytes and transfers of each component, and every decision made about a tensor."""

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

SHOWN = 8  # stalls in print


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """Figures of one component since it was enabled. Sizes are bytes.

    Attributes:
        tier: where weights rest: ``pinned host``, ``host``, ``disk``, several of them, or ``in place`` on a CPU onload
            device without disk tier.
        host_bytes: bytes of groups that rest in host memory, and of staging buffers; ``disk_bytes``: on disk.
        shared_bytes: bytes of those in host memory that all processes of this machine with equal weights share.
        private_bytes: bytes of those on disk or shared that have been written since, and so are in memory of this
            process alone.
        groups: number of groups that stream.
        streamed_bytes: bytes a pass moves that uses each group once.
        resident_bytes: bytes that never leave the device: buffers, the root's own parameters.
        cached_bytes: bytes that are cached on the device between passes, as far as a budget allows.
        budget_bytes: what ``vram_budget`` allowed in the last pass of any component; None without one.
        activation_bytes: what passes were seen to take on the device beside weights, for ``"auto"``; else None.
        device_bound: most bytes of weights planned on the device at once; ``peak_device_bytes``: the most there were.
        transfers: host-to-device copies made, of ``transferred_bytes``.
        written_back_bytes: bytes copied device to host because they had been written.
        repacked: groups packed anew because others had re-pointed their parameters.
        disk_written_bytes: bytes written to the store; ``disk_found_bytes``: lay on disk already, proved bit-equal.
        disk_read_bytes: bytes asked for from disk; the system may have had them in its cache.
        read_wait_seconds: how long the calling thread waited for disk.
        staging_wait_seconds: how long was waited for a staging buffer.
        stalls: groups that made computing wait, those that cost most first; see docs/stalls.md.
        measured_passes: how many passes they were measured in.
        decisions: tensors treated differently from the plain rule, and why.
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
                own = f", {format_bytes(c.private_bytes)} of it written since and its own" if c.private_bytes else ""
                lines.append(f"{c.name}: {format_bytes(c.shared_bytes)} in host memory, shared with other ranks{own}")
        if any(component.stalls for component in self.components):
            lines.extend(["", *_stall_lines(self.components), ""])
        for component in self.components:
            if component.activation_bytes is not None:
                beside = format_bytes(component.activation_bytes)
                lines.append(f"{component.name}: passes were seen to take {beside} of the device beside weights")
            lines.extend(f"{component.name}: {d.name}: {d.reason}" for d in component.decisions)
        return "\n".join(lines)


def offload_report(target: Any) -> OffloadReport:
    """Report on ``target``: a pipeline, a components manager, or a model.

    Raises:
        NotOffloadedError: nothing of it is offloaded by this package.
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
    private = [Decision(name="weights", reason=reason) for reason in (() if shared is None else shared.decisions)]
    if engine.copy_engine.unpinned:
        private.append(
            Decision(
                name="weights",
                reason=f"{engine.copy_engine.unpinned} bytes could not be pinned{lockable()}; copies from pageable "
                "memory are slower. Raise the limit, or free host memory and enable again",
            )
        )
    served = (
        Decision(name=tensor, reason=f"read by {reader} without its owner being called: lent while that runs")
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
        written_back_bytes=sum(group.written_back for group in engine.groups),
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
        decisions=(*plan.decisions, *private, *served),
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
    rows = [("component", "in memory", "on disk", "of which written", "found", "private", "read", "waited")]
    for c in components:
        ours = (c.disk_written_bytes, c.disk_found_bytes, c.private_bytes, c.disk_read_bytes)
        sizes = map(format_bytes, (c.host_bytes, c.disk_bytes, *ours))
        rows.append((c.name, *sizes, f"{c.read_wait_seconds:.2f} s"))  # type: ignore[arg-type]
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
    rest = found[SHOWN:]
    if rest:
        seconds = sum(stall.seconds for _, stall in rest)
        lines.append(f"and {len(rest)} more, {seconds * 1e3:.2f} ms a pass together")
    return lines
