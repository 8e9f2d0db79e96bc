"""Which tier each group of one model is stored on: host memory or disk, as the budget allows."""

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
from ..stores.shared.allocator import SharedAllocator
from ..stores.storage import Allocator
from .copy_engine import CopyEngine

__all__ = ["Tiers"]


class Tiers:
    """The allocators of one model, and which of them each group gets.

    Attributes:
        disk: stores groups on disk; None: the policy has no disk tier.
        shared: stores groups in memory that processes share; None: the policy does not share.
    """

    def __init__(self, root: nn.Module, policy: OffloadPolicy, copy_engine: CopyEngine, label: str) -> None:
        self._policy = policy
        self._copy_engine = copy_engine
        self._host = HostAllocator(copy_engine.allocate_host)
        self._on_disk: set[int] = set()
        self._prepared: set[tuple[object, ...]] = set()
        self._sizes: list[int] = []
        self._indices: dict[tuple[object, ...], int] = {}
        self.disk: DiskAllocator | None = None
        self.shared: SharedAllocator | None = None
        if policy.share_host_copy:
            register = copy_engine.register_host if policy.pins_host_memory else None
            self.shared = SharedAllocator(label, copy_engine.allocate_host, register)
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
        """Decide where to store ``specs`` (all groups of the model, in order), and find or write the bytes of those
        that go to disk. Changes no tensor.

        Args:
            known: groups that are stored already.

        Raises:
            DiskTierError: the disk is full, or a file cannot be written.
        """
        stored = {spec.key for spec in known}
        if self.shared is not None:
            self.shared.prepare([(spec.key, _sources(spec)) for spec in specs if spec.key not in stored])
        if self.disk is None or self._policy.disk is None:
            return
        self._sizes = sizes = [packed_bytes(spec) for spec in specs]
        self._indices = {spec.key: index for index, spec in enumerate(specs)}
        self._copy_engine.staging_limit = staging_bytes(sizes, self._policy.disk.host_budget) or None
        in_memory = self._in_memory(self._policy.disk.host_budget)
        self._on_disk = {id(spec) for index, spec in enumerate(specs) if index not in in_memory}
        done = self._prepared | stored
        fresh = [spec for spec in specs if id(spec) in self._on_disk and spec.key not in done]
        self.disk.prepare([(spec.key, _sources(spec)) for spec in fresh])
        self._prepared.update(spec.key for spec in fresh)

    def _in_memory(self, host_budget: int | None) -> frozenset[int]:
        staged = self._policy.use_stream and self._policy.low_cpu_mem_usage
        return groups_in_memory(self._sizes, host_budget, staged=staged)

    def would_hold(self, spec: GroupSpec, host_budget: int) -> bool:
        """Whether the group of ``spec`` would be stored in memory within ``host_budget``."""
        return self._indices[spec.key] in self._in_memory(host_budget)

    @property
    def whole_bytes(self) -> int:
        """A host budget within which no group is stored on disk."""
        return sum(self._sizes) + 2 * max(self._sizes, default=0)

    def forget(self) -> None:
        """Drop what was prepared and not stored: others may change the tensors before the next attempt."""
        self._prepared.clear()
        for allocator in (self.disk, self.shared):
            if allocator is not None:
                allocator.forget()

    def tensors_on_disk(self, specs: Sequence[GroupSpec]) -> list[torch.Tensor]:
        """The tensors of those ``specs``, as given to the last :meth:`prepare`, that are stored on disk."""
        return [entry.tensor for spec in specs if id(spec) in self._on_disk for entry in spec.entries]

    def allocator_of(self, spec: GroupSpec) -> Allocator | None:
        """What stores the group; None if it stays as it is, in the memory of the device that computes."""
        if id(spec) in self._on_disk:
            return self.disk
        if self.shared is not None:
            return self.shared
        return self._host if self._policy.device.type != "cpu" else None


def _sources(spec: GroupSpec) -> list[torch.Tensor]:
    return [t.detach() for entry in spec.entries for _, t in plain_tensors(entry.tensor)]
