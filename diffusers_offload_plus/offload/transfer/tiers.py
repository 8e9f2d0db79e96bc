"""Where each group of one model rests: host memory or disk, as the budget allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..model.inventory import GroupSpec
from ..model.tensors import plain_tensors
from ..planning.plan import groups_in_memory, staging_bytes
from ..planning.residency import packed_bytes
from ..policy import OffloadPolicy
from ..stores.disk.allocator import DiskAllocator
from ..stores.disk.safetensors_files import snapshot_of
from ..stores.host import HostAllocator
from ..stores.protocols import Allocator
from ..stores.shared.allocator import SharedAllocator
from .transfer import CopyEngine

__all__ = ["Tiers"]


class Tiers:
    """The placements of one model, and which of them each group gets.

    Attributes:
        disk: the placement on disk, if the policy has one.
        shared: the placement in memory that processes share, likewise.
    """

    def __init__(self, root: nn.Module, policy: OffloadPolicy, link: CopyEngine, label: str) -> None:
        self._policy = policy
        self._copy_engine = link
        self._host = HostAllocator(link.allocate_host)
        self._on_disk: set[int] = set()
        self._prepared: set[tuple[object, ...]] = set()
        self._sizes: list[int] = []
        self._places: dict[tuple[object, ...], int] = {}
        self.disk: DiskAllocator | None = None
        self.shared: SharedAllocator | None = None
        if policy.share_host_copy:
            register = link.register_host if policy.pins_host_memory else None
            self.shared = SharedAllocator(label, link.allocate_host, register)
        if policy.disk is not None:
            self.disk = DiskAllocator(
                policy.disk.directory,
                label,
                type(root).__name__,
                checkpoint=policy.disk.checkpoint or snapshot_of(root, label),
                keep=policy.disk.keep,
                protect=policy.disk.protect,
            )

    def prepare(self, specs: Sequence[GroupSpec], known: Sequence[GroupSpec] = ()) -> None:
        """Decide about ``specs`` (all groups of the model, in order), and find or write on disk what goes there,
        except for ``known``, which have a home. Changes no tensor.

        Raises:
            DiskTierError: there is no room, or a file cannot be written.
        """
        if self.shared is not None:
            have = {spec.key for spec in known}
            self.shared.prepare([(spec.key, _sources(spec)) for spec in specs if spec.key not in have])
        if self.disk is None or self._policy.disk is None:
            return
        self._sizes = sizes = [packed_bytes(spec) for spec in specs]
        self._places = {spec.key: place for place, spec in enumerate(specs)}
        self._copy_engine.staging_limit = staging_bytes(sizes, self._policy.disk.host_budget) or None
        in_memory = self._in_memory(self._policy.disk.host_budget)
        self._on_disk = {id(spec) for index, spec in enumerate(specs) if index not in in_memory}
        done = self._prepared | {spec.key for spec in known}
        fresh = [spec for spec in specs if id(spec) in self._on_disk and spec.key not in done]
        self.disk.prepare([(spec.key, _sources(spec)) for spec in fresh])
        self._prepared.update(spec.key for spec in fresh)

    def _in_memory(self, host_budget: int | None) -> frozenset[int]:
        staged = self._policy.use_stream and self._policy.low_cpu_mem_usage
        return groups_in_memory(self._sizes, host_budget, staged=staged)

    def would_hold(self, spec: GroupSpec, host_budget: int) -> bool:
        """Whether the group of ``spec`` would rest in memory within ``host_budget``."""
        return self._places[spec.key] in self._in_memory(host_budget)

    @property
    def whole_bytes(self) -> int:
        """A host budget within which no group rests on disk."""
        return sum(self._sizes) + 2 * max(self._sizes, default=0)

    def forget(self) -> None:
        """What was prepared and has no home yet may be changed by others before the next attempt."""
        self._prepared.clear()
        if self.disk is not None:
            self.disk.forget()
        if self.shared is not None:
            self.shared.forget()

    def allocator_of(self, spec: GroupSpec) -> Allocator | None:
        """What gives the group a home; None if it is to stay as it is, in the memory of the device that computes."""
        if id(spec) in self._on_disk:
            return self.disk
        if self.shared is not None:
            return self.shared
        return self._host if self._policy.device.type != "cpu" else None


def _sources(spec: GroupSpec) -> list[torch.Tensor]:
    return [t.detach() for entry in spec.entries for _, t in plain_tensors(entry.tensor)]
