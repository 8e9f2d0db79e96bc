"""Group offloading for diffusers that is always right, and a linter for modular pipelines.

Public names are imported on first use, so that ``import diffusers_offload_plus`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        BudgetExceededError,
        CompileOrderError,
        ContractError,
        DiskTierError,
        FileChangedError,
        HookConflictError,
        InvalidPolicyError,
        NotOffloadedError,
        OffloadPlusError,
        UnsupportedModelError,
    )
    from .offload.api.enable import disable_group_offload, enable_group_offload, upgrade
    from .offload.api.extend import extend
    from .offload.api.load import load_offloaded
    from .offload.api.onloaded import onloaded
    from .offload.api.preview import PipelinePlan, plan_group_offload
    from .offload.api.report import offload_report

__version__ = "0.1.0"

_MODULE_OF = {
    "BudgetExceededError": ".errors",
    "CompileOrderError": ".errors",
    "ContractError": ".errors",
    "DiskTierError": ".errors",
    "FileChangedError": ".errors",
    "HookConflictError": ".errors",
    "InvalidPolicyError": ".errors",
    "NotOffloadedError": ".errors",
    "OffloadPlusError": ".errors",
    "PipelinePlan": ".offload.api.preview",
    "UnsupportedModelError": ".errors",
    "disable_group_offload": ".offload.api.enable",
    "enable_group_offload": ".offload.api.enable",
    "extend": ".offload.api.extend",
    "load_offloaded": ".offload.api.load",
    "offload_report": ".offload.api.report",
    "onloaded": ".offload.api.onloaded",
    "plan_group_offload": ".offload.api.preview",
    "upgrade": ".offload.api.enable",
}

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
    "PipelinePlan",
    "UnsupportedModelError",
    "__version__",
    "disable_group_offload",
    "enable_group_offload",
    "extend",
    "load_offloaded",
    "offload_report",
    "onloaded",
    "plan_group_offload",
    "upgrade",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
