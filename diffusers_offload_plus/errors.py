"""The errors that the package raises on purpose.

Each class derives from :class:`OffloadPlusError` and from the builtin that fits best, so that code which already
catches ``ValueError`` or ``RuntimeError`` keeps working. A message names the parameter or module, what was expected,
what was found and what to do next.
"""

from __future__ import annotations

__all__ = [
    "BudgetExceededError",
    "CompileOrderError",
    "ContractError",
    "DiskTierError",
    "FileChangedError",
    "HookConflictError",
    "InvalidPolicyError",
    "NotOffloadedError",
    "OffloadPlusError",
    "UnsupportedModelError",
]


class OffloadPlusError(Exception):
    """Base class of all errors raised by diffusers_offload_plus."""


class InvalidPolicyError(OffloadPlusError, ValueError):
    """An argument of ``enable_group_offload`` is wrong; nothing has been changed."""


class UnsupportedModelError(OffloadPlusError, ValueError):
    """The model does not support group offloading as it is; nothing has been changed."""


class HookConflictError(OffloadPlusError, ValueError):
    """Another offloading scheme already manages this model; nothing has been changed."""


class NotOffloadedError(OffloadPlusError, ValueError):
    """The call needs an offloaded model, and the given one is not offloaded by this package."""


class BudgetExceededError(OffloadPlusError, RuntimeError):
    """A pass needs more device memory for weights than ``vram_budget`` allows; no weight is lost."""


class CompileOrderError(OffloadPlusError, RuntimeError):
    """A compiled forward would run above the offloading hook, where weights cannot be onloaded."""


class DiskTierError(OffloadPlusError, OSError):
    """A file of the disk tier cannot be written or read; ``errno`` and ``filename`` come from the system's error."""


class FileChangedError(DiskTierError):
    """Another program changed or truncated a file that offloaded weights are mapped from."""


class ContractError(OffloadPlusError, ImportError):
    """A name of diffusers or torch that this package relies on is gone or has changed."""
