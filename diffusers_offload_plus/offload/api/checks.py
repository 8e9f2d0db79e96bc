"""What makes a model unfit for group offloading, found before anything is changed."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from torch import nn

from ...errors import CompileOrderError, HookConflictError, UnsupportedModelError
from ..hooks.attachment import attachment_of
from ..hooks.diffusers_api import HOOK_NAME, registry_of, stock_hooks
from ..hooks.hook import GroupOffloadPlusHook
from ..model.inventory import take_inventory
from ..policy import OffloadPolicy

__all__ = ["check_model"]


def check_model(
    root: nn.Module, policy: OffloadPolicy, label: str, *, allow_stock: bool = False, values: bool = True
) -> None:
    """Raise if ``root`` cannot be offloaded under ``policy``; changes nothing.

    Args:
        allow_stock: stock group-offloading hooks are about to be replaced, so they are no reason to refuse.
        values: tensors on the meta device are a reason.

    Raises:
        UnsupportedModelError: the model's class, or a tensor of it, rules offloading out.
        HookConflictError: another offloading scheme is active on it.
        CompileOrderError: the whole model was compiled.
    """
    if getattr(root, "_supports_group_offloading", True) is False:
        raise UnsupportedModelError(
            f"{type(root).__name__} ('{label}') declares `_supports_group_offloading = False`: diffusers knows "
            f"that its weights are used where "
            "no hook sees it. Leave it out with `exclude_modules`, or offload it as a whole with accelerate."
        )
    _refuse_accelerate(root, label)
    _refuse_nesting(root, label)
    if not allow_stock and (found := stock_hooks(root)):
        name = f"{label}.{found[0][0]}".rstrip(".")
        raise HookConflictError(
            f"'{name}' already carries diffusers' own group-offloading hooks ({len(found)} in '{label}'). "
            "Replace them, settings kept, with `diffusers_offload_plus.upgrade(...)`."
        )
    if root._compiled_call_impl is not None:
        raise CompileOrderError(
            f"'{label}' was compiled as a whole with `.compile()`: one graph needs all weights at once, so "
            f"nothing could be offloaded. "
            "Use `compile_repeated_blocks()` instead."
        )
    if not isinstance(root, torch.jit.ScriptModule):
        take_inventory(root, policy, label, values=values)
        return
    raise UnsupportedModelError(
        f"'{label}' is a TorchScript module, whose parameters cannot be re-pointed. Load the eager model."
    )


def _refuse_accelerate(root: nn.Module, label: str) -> None:
    for name, module in root.named_modules():
        hook: Any = getattr(module, "_hf_hook", None)
        hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
        if any(isinstance(one, (AlignDevicesHook, CpuOffload)) for one in hooks):
            raise HookConflictError(
                f"'{label}' is already offloaded by accelerate ({type(hook).__name__} on '{name or label}'). "
                f"Remove that first, "
                "with `pipe.remove_all_hooks()` or `accelerate.hooks.remove_hook_from_module(model, recurse=True)`."
            )


def _refuse_nesting(root: nn.Module, label: str) -> None:
    for name, module in root.named_modules():
        registry = registry_of(module)
        hook = None if registry is None else registry.get_hook(HOOK_NAME)
        if isinstance(hook, GroupOffloadPlusHook) and hook.attachment.root is not root:
            raise HookConflictError(
                f"'{label}' and '{hook.attachment.label}' contain one another, and the latter is offloaded "
                f"already (at '{name or label}'). "
                f"Call `disable_group_offload` on '{hook.attachment.label}' first."
            )
    attachment = attachment_of(root)
    assert attachment is None or attachment.root is root
