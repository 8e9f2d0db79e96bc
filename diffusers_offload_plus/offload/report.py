"""What the engine did: tiers, bytes and transfers of each component, and every decision made about a tensor."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import NotOffloadedError
from .hook import Attachment, attachment_of
from .inventory import Decision, Residency
from .targets import components_of

__all__ = ["ComponentReport", "OffloadReport", "offload_report"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """Figures of one component since it was enabled. Sizes are bytes.

    Attributes:
        tier: where weights rest: ``pinned host``, ``host``, or ``in place`` on a CPU onload device.
        groups: number of groups that stream.
        streamed_bytes: bytes a pass moves that uses each group once.
        resident_bytes: bytes kept on the device: buffers, the root's own parameters.
        device_bound: most bytes of weights planned on the device at once; ``peak_device_bytes``: the most there were.
        transfers: host-to-device copies made, of ``transferred_bytes``.
        written_back_bytes: bytes copied device to host because they had been written.
        rehomed: groups packed anew because others had re-pointed their parameters.
        staging_wait_seconds: how long the caller waited for a staging buffer (only with ``low_cpu_mem_usage``).
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
    device_bound: int
    peak_device_bytes: int
    transfers: int
    transferred_bytes: int
    written_back_bytes: int
    rehomed: int
    staging_wait_seconds: float
    decisions: tuple[Decision, ...]


@dataclasses.dataclass(frozen=True)
class OffloadReport:
    """The report of every offloaded component; ``print`` shows it as a table."""

    components: tuple[ComponentReport, ...]

    def __getitem__(self, name: str) -> ComponentReport:
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)

    def __str__(self) -> str:
        head = (
            "component",
            "model",
            "level",
            "tier",
            "groups",
            "streamed",
            "on device",
            "bound",
            "peak",
            "copies",
            "moved",
            "written",
        )
        rows = [head, *(_row(component) for component in self.components)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        for component in self.components:
            lines.extend(f"{component.name}: {d.name}: {d.reason}" for d in component.decisions)
        return "\n".join(lines)


def offload_report(target: Any) -> OffloadReport:
    """Report on ``target``: a pipeline, a components manager, or a model.

    Raises:
        NotOffloadedError: nothing of it is offloaded by this package.
    """
    found = [
        _component(name, attachment)
        for name, module in components_of(target).items()
        if (attachment := attachment_of(module)) is not None
    ]
    if not found:
        raise NotOffloadedError(f"{type(target).__name__} is not offloaded by diffusers_offload_plus.")
    return OffloadReport(tuple(found))


def _component(name: str, attachment: Attachment) -> ComponentReport:
    engine, policy = attachment.engine, attachment.policy
    plan = engine.plan
    served = (
        Decision(name=tensor, reason=f"read by {reader} without its owner being called: lent while that runs")
        for tensor, reader in engine.served.items()
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
        device_bound=plan.device_bound,
        peak_device_bytes=engine.link.peak,
        transfers=engine.link.copies,
        transferred_bytes=engine.link.bytes,
        written_back_bytes=sum(group.written_back for group in engine.groups),
        rehomed=sum(group.rehomed for group in engine.groups),
        staging_wait_seconds=engine.link.staging_wait_seconds,
        decisions=(*plan.decisions, *served),
    )


def _row(c: ComponentReport) -> tuple[str, ...]:
    sizes = (c.streamed_bytes, c.resident_bytes, c.device_bound, c.peak_device_bytes)
    level = c.offload_type.removesuffix("_level")
    return (
        *(c.name, c.model, level, c.tier, str(c.groups)),
        *map(_size, sizes),
        *(str(c.transfers), _size(c.transferred_bytes), _size(c.written_back_bytes)),
    )


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if column < 4 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _size(nbytes: int) -> str:
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{nbytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
