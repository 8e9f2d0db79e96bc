"""The caller's settings, validated once and then immutable. ``api/checks`` checks what the machine can do."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Iterable
from typing import Any

import torch

from ..errors import InvalidPolicyError
from .formatting import first_line, parse_bytes

__all__ = [
    "AUTO",
    "LEAST_BUDGET",
    "DiskTier",
    "OffloadPolicy",
    "OffloadType",
    "computing_device",
    "no_checkpoint",
    "resolve_device",
    "supports_streams",
]


class OffloadType(enum.StrEnum):
    """How a model is cut into groups, with the values that diffusers uses."""

    BLOCK_LEVEL = "block_level"
    LEAF_LEVEL = "leaf_level"


class Auto(enum.Enum):
    """The value of a setting that is measured instead of given."""

    AUTO = "auto"


AUTO = Auto.AUTO
LEAST_BUDGET = 1024  # bytes of host memory for staging buffers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiskTier:
    """The disk settings of a policy.

    Attributes:
        directory: path of the store; absolute once ``api/checks`` has resolved it.
        checkpoint: file or directory that may contain the weights already; None: where the model was loaded from.
        host_budget: bytes of host memory for weights and staging buffers; None: as few as possible.
        keep: files that are written are left for later processes.
        protect: checkpoint files are copied first, so that other programs may write the originals.
    """

    directory: str
    checkpoint: str | None = None
    host_budget: int | None = None
    keep: bool = False
    protect: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffloadPolicy:
    """The settings of one offloaded model. Two models with equal policies are offloaded alike.

    Build one with ``policy_for`` of ``api/checks``, or with :meth:`from_arguments` where the machine does not matter.
    Fields are named after diffusers' arguments.

    Attributes:
        onload_device: the device that computes, as it was given; ``device``: the same device with its index.
        vram_budget: most device bytes of weights, for all models of one call together; None: no limit; ``AUTO``: what
            activations leave, measured.
        host_budget: most host bytes of weights and staging buffers, where no disk tier takes the rest.
        share_host_copy: weights in host memory are shared with other processes that have equal weights.
    """

    onload_device: torch.device
    device: torch.device
    offload_device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    offload_type: OffloadType = OffloadType.BLOCK_LEVEL
    num_blocks_per_group: int = 1
    non_blocking: bool = False
    use_stream: bool = False
    record_stream: bool = False
    low_cpu_mem_usage: bool = False
    block_modules: tuple[str, ...] | None = None
    exclude_kwargs: tuple[str, ...] | None = None
    disk: DiskTier | None = None
    vram_budget: int | Auto | None = None
    host_budget: int | None = None
    share_host_copy: bool = False

    @property
    def prefetch_depth(self) -> int:
        """How many groups are onloaded ahead of the one in use."""
        return 1 if self.use_stream or (self.disk is not None and self.onload_device.type == "cpu") else 0

    @property
    def pins_host_memory(self) -> bool:
        """Whether weights are stored in pinned host memory."""
        return self.use_stream and not self.low_cpu_mem_usage

    @property
    def tier(self) -> str:
        """The tier of weights that are not on disk, as reports name it."""
        if not self.share_host_copy:
            return "pinned host" if self.pins_host_memory else "host"
        return "pinned shared host" if self.pins_host_memory and self.device.type == "cuda" else "shared host"

    @classmethod
    def from_arguments(
        cls,
        *,
        onload_device: str | int | torch.device,
        offload_device: str | torch.device = "cpu",
        offload_type: str | OffloadType = "block_level",
        num_blocks_per_group: int | None = None,
        non_blocking: bool = False,
        use_stream: bool = False,
        record_stream: bool = False,
        low_cpu_mem_usage: bool = False,
        offload_to_disk_path: object = None,
        block_modules: str | Iterable[str] | None = None,
        exclude_kwargs: str | Iterable[str] | None = None,
        host_budget: int | str | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        keep: bool = False,
        protect: str | None = None,
        vram_budget: int | str | None = None,
        share_host_copy: bool | None = None,
    ) -> OffloadPolicy:
        """Validate the values of the arguments of ``enable_group_offload`` and return the policy they describe.

        What depends on the machine stays as it was given: the device's index, paths, and a ``share_host_copy`` of
        None.

        Raises:
            InvalidPolicyError: an argument has a wrong value. The message names it, what was expected and what to do.
        """
        device = computing_device(onload_device)
        host = _device("offload_device", offload_device)
        if host.type != "cpu":
            raise InvalidPolicyError(
                f"`offload_device` must be the CPU, got '{host}'. Weights are stored in host memory; "
                "leave the argument out."
            )
        try:
            kind = OffloadType(offload_type)
        except ValueError:
            expected = " or ".join(f"'{member.value}'" for member in OffloadType)
            raise InvalidPolicyError(f"`offload_type` must be {expected}, got {offload_type!r}.") from None
        flags = {
            "non_blocking": non_blocking,
            "use_stream": use_stream,
            "record_stream": record_stream,
            "low_cpu_mem_usage": low_cpu_mem_usage,
            "keep": keep,
        }
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise InvalidPolicyError(f"`{name}` must be True or False, got {value!r}.")
        limit = _device_limit(vram_budget, device)
        use_stream = use_stream or (limit is not None and supports_streams(device))
        if use_stream and not supports_streams(device):
            raise InvalidPolicyError(
                f"`use_stream=True` needs an onload device with streams, got '{device}'. Pass `use_stream=False`."
            )
        if record_stream and not use_stream:
            raise InvalidPolicyError("`record_stream=True` needs `use_stream=True`. Pass both, or neither.")
        blocks, names = _blocks(num_blocks_per_group), _names("block_modules", block_modules)
        excluded = _names("exclude_kwargs", exclude_kwargs)
        return cls(
            onload_device=device,
            device=device,
            offload_device=host,
            offload_type=kind,
            num_blocks_per_group=blocks,
            non_blocking=non_blocking,
            use_stream=use_stream,
            record_stream=record_stream,
            low_cpu_mem_usage=low_cpu_mem_usage,
            block_modules=names,
            exclude_kwargs=excluded,
            disk=_disk_tier(offload_to_disk_path, host_budget, checkpoint, keep, protect),
            vram_budget=limit,
            host_budget=None if host_budget is None else parse_bytes("host_budget", host_budget),
            share_host_copy=_shares(share_host_copy, on_disk=offload_to_disk_path is not None),
        )


def _device_limit(vram_budget: object, device: torch.device) -> int | Auto | None:
    if vram_budget is None:
        return None
    limit = AUTO if vram_budget in ("auto", AUTO) else parse_bytes("vram_budget", vram_budget)
    if device.type == "cpu":
        raise InvalidPolicyError(
            f"`vram_budget` bounds the weights on a device with memory of its own, and `onload_device` is '{device}', "
            "where nothing has to move. Leave it out, or name the device."
        )
    return limit


def _disk_tier(
    directory: object, host_budget: object, checkpoint: object, keep: bool, protect: object
) -> DiskTier | None:
    given = {"checkpoint": checkpoint, "keep": keep or None, "protect": protect}
    if directory is None:
        for name, value in given.items():
            if value is not None:
                raise InvalidPolicyError(
                    f"`{name}` concerns weights on disk, so it needs `offload_to_disk_path`, which was not given. "
                    f"Name a directory, or leave `{name}` out."
                )
        return None
    if protect not in (None, "copy"):
        raise InvalidPolicyError(f"`protect` must be 'copy' or None, got {protect!r}.")
    budget = None if host_budget is None else parse_bytes("host_budget", host_budget)
    if budget is not None and budget < LEAST_BUDGET:
        raise InvalidPolicyError(
            f"`host_budget` must be at least {LEAST_BUDGET} bytes for staging buffers, got {host_budget!r}. "
            "Leave it out to use as little host memory as is sensible."
        )
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        raise no_checkpoint(checkpoint)
    if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory) or "\0" in str(os.fspath(directory)):
        raise InvalidPolicyError(
            f"`offload_to_disk_path` must be a directory's path, got {directory!r}. Leave it out for no disk tier."
        )
    return DiskTier(
        directory=os.fspath(directory),
        checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        host_budget=budget,
        keep=keep,
        protect=protect == "copy",
    )


def no_checkpoint(value: object) -> InvalidPolicyError:
    """The error for a ``checkpoint`` that is no safetensors file and no directory of such files."""
    return InvalidPolicyError(
        f"`checkpoint` must be a local safetensors file, or a directory that contains some, got {value!r}. "
        "Give the snapshot that the weights were loaded from, or leave it out."
    )


def _shares(wanted: object, *, on_disk: bool) -> bool:
    if wanted not in (None, True, False):
        raise InvalidPolicyError(
            f"`share_host_copy` must be True, False or None, got {wanted!r}. Leave it out to share among the ranks of "
            "a machine."
        )
    if wanted and on_disk:
        raise InvalidPolicyError(
            "`share_host_copy=True` concerns weights in host memory, and `offload_to_disk_path` puts them on disk, "
            "where processes share them anyway. Leave one of them out."
        )
    return bool(wanted)


def supports_streams(device: torch.device) -> bool:
    """Whether copies to ``device`` can overlap with its computation."""
    return device.type not in ("cpu", "mps") and hasattr(torch.get_device_module(device.type), "Stream")


def resolve_device(device: torch.device) -> torch.device:
    """``device`` with an index: that of the current device where none is given. The CPU has no index."""
    if device.type == "cpu" or device.index is not None:
        return device
    module = torch.get_device_module(device.type)
    current = getattr(module, "current_device", None)
    return torch.device(device.type, current() if current is not None else 0)


def _device(name: str, value: Any) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        reason = first_line(error)
        raise InvalidPolicyError(
            f"`{name}` must name a torch device such as 'cuda' or 'cuda:1', got {value!r}: {reason}"
        ) from None


def computing_device(value: Any) -> torch.device:
    """The argument ``onload_device`` as a torch device, whether this machine has it or not.

    Raises:
        InvalidPolicyError: ``value`` names no device that computes.
    """
    device = _device("onload_device", value)
    if device.type == "meta":
        raise InvalidPolicyError("`onload_device` must be a device that computes, got 'meta'.")
    return device


def _blocks(value: int | None) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidPolicyError(
            f"`num_blocks_per_group` must be an integer of at least 1, got {value!r}. Leave it out for 1."
        )
    return value


def _names(argument: str, value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise InvalidPolicyError(f"`{argument}` must be a list of names, got {name!r} in it.")
    return names
