"""Checks of the arguments, of the machine and of the model, made before anything is changed."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from torch import nn

from ...errors import CompileOrderError, HookConflictError, InvalidPolicyError, UnsupportedModelError
from ..hooks.attachment import attachment_of
from ..hooks.diffusers_api import HOOK_NAME, registry_of, stock_hooks
from ..hooks.hook import GroupOffloadPlusHook
from ..memory.auto_limit import tells_memory
from ..model.inventory import take_inventory
from ..policy import AUTO, DiskTier, OffloadPolicy, computing_device, no_checkpoint, resolve_device
from ..stores.disk.directory import resolve_directory
from ..stores.shared.memory import can_share_memory

__all__ = ["check_model", "existing_device", "policy_for"]


def policy_for(
    *,
    onload_device: str | int | torch.device,
    share_host_copy: bool | None = None,
    must_exist: bool = True,
    **arguments: Any,
) -> OffloadPolicy:
    """The policy that the arguments of ``enable_group_offload`` describe, checked against this machine.

    Paths, the device's index and ``share_host_copy`` are decided.

    Args:
        must_exist: whether this machine has to have the onload device; a plan may be for another machine.

    Raises:
        InvalidPolicyError: an argument cannot be used here. The message names it, what was expected and what to do.
    """
    device = existing_device(onload_device) if must_exist else computing_device(onload_device)
    policy = OffloadPolicy.from_arguments(onload_device=device, share_host_copy=share_host_copy, **arguments)
    if policy.vram_budget is AUTO and not tells_memory(device):
        raise InvalidPolicyError(
            f"`vram_budget='auto'` needs a device that tells its free memory, and '{device}' does not. "
            "Give bytes, such as '10GiB'."
        )
    if share_host_copy and not can_share_memory():
        raise InvalidPolicyError(
            f"`share_host_copy=True` needs Linux with `memfd_create`, and this is {sys.platform}. Leave it out."
        )
    if share_host_copy is None:
        share_host_copy = policy.disk is None and can_share_memory() and _has_local_peers()
    return dataclasses.replace(
        policy,
        device=resolve_device(device) if must_exist else device,
        disk=None if policy.disk is None else _resolved(policy.disk),
        share_host_copy=share_host_copy,
    )


def existing_device(value: Any) -> torch.device:
    """The argument ``onload_device`` as a device of this machine.

    Raises:
        InvalidPolicyError: this machine does not have it.
    """
    device = computing_device(value)
    if device.type == "cpu":
        return device
    try:
        module = torch.get_device_module(device.type)
        available, count = module.is_available(), module.device_count()
    except (RuntimeError, AttributeError):
        available, count = False, 0
    if not available or count == 0:
        raise InvalidPolicyError(
            f"`onload_device` is '{device}', but this machine has no usable '{device.type}' device. "
            "Name a device that exists, or 'cpu'."
        )
    if device.index is not None and device.index >= count:
        raise InvalidPolicyError(
            f"`onload_device` is '{device}', but the highest '{device.type}' index on this machine is {count - 1}."
        )
    return device


def _resolved(disk: DiskTier) -> DiskTier:
    """``disk`` with absolute paths. The directory can be written and the checkpoint exists."""
    if not sys.platform.startswith("linux"):
        raise InvalidPolicyError(
            f"`offload_to_disk_path` needs Linux, and this is {sys.platform}. Leave it out: weights are then stored "
            "in host memory."
        )
    checkpoint = disk.checkpoint
    if checkpoint is not None:
        if not os.path.exists(os.path.expanduser(checkpoint)):
            raise no_checkpoint(checkpoint)
        checkpoint = os.path.realpath(os.path.expanduser(checkpoint))
    directory = resolve_directory(disk.directory, checkpoint)
    return dataclasses.replace(disk, directory=directory, checkpoint=checkpoint)


def _has_local_peers() -> bool:
    # torchrun and accelerate set LOCAL_WORLD_SIZE. A launcher that does not may have put all ranks on this machine.
    if not (dist.is_available() and dist.is_initialized()):
        return False
    world = dist.get_world_size()
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return world > 1 and (int(local) if local.isdecimal() else world) > 1


def check_model(
    root: nn.Module, policy: OffloadPolicy, label: str, *, allow_stock: bool = False, values: bool = True
) -> None:
    """Raise if ``root`` cannot be offloaded under ``policy``. Changes nothing.

    Args:
        allow_stock: accept stock group-offloading hooks, which the caller is about to replace.
        values: refuse tensors on the meta device.

    Raises:
        UnsupportedModelError: the model's class, or one of its tensors, does not support offloading.
        HookConflictError: another offloading scheme is active on it.
        CompileOrderError: the whole model was compiled.
    """
    if getattr(root, "_supports_group_offloading", True) is False:
        raise UnsupportedModelError(
            f"{type(root).__name__} ('{label}') declares `_supports_group_offloading = False`: its weights are used "
            "where no hook sees it. Leave it out with `exclude_modules`, or offload it as a whole with accelerate."
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
            f"'{label}' was compiled as a whole with `.compile()`: one graph needs all weights at once, so nothing "
            "could be offloaded. Use `compile_repeated_blocks()` instead."
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
                f"'{label}' is already offloaded by accelerate ({type(hook).__name__} on '{name or label}'). Remove "
                "that first, with `pipe.remove_all_hooks()` or "
                "`accelerate.hooks.remove_hook_from_module(model, recurse=True)`."
            )


def _refuse_nesting(root: nn.Module, label: str) -> None:
    for name, module in root.named_modules():
        registry = registry_of(module)
        hook = None if registry is None else registry.get_hook(HOOK_NAME)
        if isinstance(hook, GroupOffloadPlusHook) and hook.attachment.root is not root:
            raise HookConflictError(
                f"One of '{label}' and '{hook.attachment.label}' contains the other, and the latter is offloaded "
                f"already (at '{name or label}'). Call `disable_group_offload` on '{hook.attachment.label}' first."
            )
    attachment = attachment_of(root)
    assert attachment is None or attachment.root is root
