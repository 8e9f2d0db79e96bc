"""The names of ``diffusers.hooks`` that this package relies on, public or private. No other file imports that module.

A name that is gone or has changed raises :class:`~..errors.ContractError` at import. The error says which name it is.
``tests/offload/hooks/test_contracts.py`` pins what each of them does.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...errors import ContractError

if TYPE_CHECKING:
    from diffusers.hooks.hooks import HookRegistry, ModelHook

__all__ = [
    "HOOK_NAME",
    "STOCK_HELPER_HOOKS",
    "HookRegistry",
    "ModelHook",
    "StockHook",
    "is_pipeline_class",
    "registry_of",
    "stock_config",
    "stock_hooks",
]

REGISTRY_ATTRIBUTE = "_diffusers_hook"


def _require(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        import diffusers

        raise ContractError(
            f"diffusers {diffusers.__version__} has no `{module}.{name}`, which diffusers_offload_plus relies on. "
            "Install a diffusers release that its documentation lists as tested, or a newer diffusers_offload_plus."
        ) from None


def _require_parameters(owner: Any, *names: str) -> None:
    known = inspect.signature(owner).parameters
    missing = [name for name in names if name not in known]
    if missing:
        raise ContractError(
            f"`{owner.__module__}.{owner.__qualname__}` no longer takes {', '.join(missing)}, on which "
            "diffusers_offload_plus relies. Install a diffusers release that its documentation lists as tested."
        )


_HOOKS, _GROUP = "diffusers.hooks.hooks", "diffusers.hooks.group_offloading"

if not TYPE_CHECKING:
    HookRegistry = _require(_HOOKS, "HookRegistry")
    ModelHook = _require(_HOOKS, "ModelHook")
StockHook: type[Any] = _require(_GROUP, "GroupOffloadingHook")
_StockConfig: type[Any] = _require(_GROUP, "GroupOffloadingConfig")
_StockType: type[Any] = _require(_GROUP, "GroupOffloadingType")
HOOK_NAME: str = _require(_GROUP, "_GROUP_OFFLOADING")
STOCK_HELPER_HOOKS: tuple[str, ...] = (
    _require(_GROUP, "_LAYER_EXECUTION_TRACKER"),
    _require(_GROUP, "_LAZY_PREFETCH_GROUP_OFFLOADING"),
)
for _name in (
    "register_hook",
    "remove_hook",
    "get_hook",
    "check_if_exists_or_initialize",
    "invalidate_child_registries_cache",
):
    _require(_HOOKS, "HookRegistry")
    if not hasattr(HookRegistry, _name):
        raise ContractError(
            f"diffusers' HookRegistry has no `{_name}` any more, on which diffusers_offload_plus relies. Install a "
            "diffusers release that its documentation lists as tested."
        )
_require_parameters(
    _StockConfig,
    *("onload_device", "offload_device", "offload_type", "num_blocks_per_group", "block_modules", "exclude_kwargs"),
    *("non_blocking", "stream", "record_stream", "low_cpu_mem_usage", "offload_to_disk_path"),
)


def is_pipeline_class(cls: type) -> bool:
    """Whether ``cls.from_pretrained`` loads components from the subdirectories of a checkpoint."""
    return issubclass(cls, _require("diffusers", "DiffusionPipeline"))


def registry_of(module: nn.Module, *, create: bool = False) -> HookRegistry | None:
    """The hook registry of ``module``. If it has none: None, or a new one with ``create``."""
    if create:
        return HookRegistry.check_if_exists_or_initialize(module)
    return module.__dict__.get(REGISTRY_ATTRIBUTE)


def stock_config(onload_device: torch.device, offload_device: torch.device) -> Any:
    """The stock configuration that diffusers reads from our hooks, under which it adds no hook of its own.

    It is block level, one block a group, no streams. diffusers then applies hooks only to the root and to the children
    of the root's direct ``ModuleList`` and ``Sequential`` children, which all have ours.
    """
    return _StockConfig(
        onload_device=onload_device,
        offload_device=offload_device,
        offload_type=_StockType.BLOCK_LEVEL,
        non_blocking=False,
        record_stream=False,
        low_cpu_mem_usage=False,
        num_blocks_per_group=1,
        offload_to_disk_path=None,
        stream=None,
        block_modules=None,
        exclude_kwargs=None,
    )


def stock_hooks(root: nn.Module) -> list[tuple[str, nn.Module, Any]]:
    """Every stock group-offloading hook below ``root``: name of the module, module, hook."""
    found = []
    for name, module in root.named_modules():
        registry = registry_of(module)
        hook = None if registry is None else registry.get_hook(HOOK_NAME)
        if isinstance(hook, StockHook):
            found.append((name, module, hook))
    return found


def stock_settings(config: Any, root: nn.Module) -> dict[str, Any]:
    """The settings of a stock hook on ``root`` as arguments of ``enable_group_offload``.

    Lists that are the class's own defaults are left out, since they may name children that an instance does not have;
    enabling takes the defaults again.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for derived in ("module_prefix", "block_modules", "exclude_kwargs"):
        settings.pop(derived, None)
    settings["use_stream"] = settings.pop("stream") is not None
    settings["offload_type"] = settings["offload_type"].value
    if settings["num_blocks_per_group"] is None:
        settings.pop("num_blocks_per_group")
    for name, default in (("block_modules", "_group_offload_block_modules"), ("exclude_kwargs", "_skip_keys")):
        given = getattr(config, name)
        if given is not None and given is not getattr(root, default, None):
            settings[name] = given
    return settings
