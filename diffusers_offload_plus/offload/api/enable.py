"""``enable_group_offload``, ``disable_group_offload`` and ``upgrade``."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ...errors import HookConflictError, InvalidPolicyError, NotOffloadedError
from ..failures import Failures
from ..hooks.attachment import attachment_of
from ..hooks.changeover import Changeover
from ..hooks.diffusers_api import stock_hooks, stock_settings
from ..hooks.stock import RemovedHooks
from ..memory.auto_limit import AutoLimit, DeviceMemory
from ..memory.device_budget import DeviceBudget
from ..memory.process import give_memory_back
from ..model.tensors import plain_bytes
from ..planning.fitting import fit_budgets
from ..policy import AUTO, OffloadPolicy
from .checks import check_model, policy_for
from .components import components_of, split_excluded

__all__ = ["disable_group_offload", "enable_group_offload", "upgrade"]

logger = logging.getLogger("diffusers_offload_plus")


def enable_group_offload(
    target: Any,
    onload_device: str | torch.device,
    offload_device: str | torch.device = "cpu",
    offload_type: str = "block_level",
    num_blocks_per_group: int | None = None,
    non_blocking: bool = False,
    use_stream: bool = False,
    record_stream: bool = False,
    low_cpu_mem_usage: bool = False,
    offload_to_disk_path: str | None = None,
    *,
    block_modules: str | Iterable[str] | None = None,
    exclude_kwargs: str | Iterable[str] | None = None,
    exclude_modules: str | Iterable[str] | None = None,
    host_budget: int | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    keep: bool = False,
    protect: str | None = None,
    vram_budget: int | str | None = None,
    share_host_copy: bool | None = None,
) -> None:
    """Store the weights of ``target`` in host memory or on disk, and onload them group by group as they are used.

    Takes the arguments of diffusers' own methods of that name, in their order. Called again with other settings it
    plans anew; with the same settings it does nothing.

    Args:
        target: a ``DiffusionPipeline``, ``ModularPipeline``, ``ComponentsManager``, or any ``torch.nn.Module``.
        onload_device: where the model computes. On ``"cpu"`` nothing needs to move.
        offload_device: where weights are stored; must be the CPU.
        offload_type: ``"block_level"`` (each block of the model's module lists) or ``"leaf_level"`` (each layer).
        num_blocks_per_group: blocks that move together at block level; 1 if left out.
        non_blocking: without streams, copies do not make the calling thread wait.
        use_stream: copy on a side stream, the next group while the present one computes. Pins host memory.
        record_stream: with ``use_stream``, let copies start without waiting for computation; takes more device memory.
        low_cpu_mem_usage: with ``use_stream``, pin two buffers instead of all weights.
        offload_to_disk_path: a directory; weights are then stored on disk, as views of mapped files. Any number of
            models and processes may share it. Files that are written there belong to this process and end with it.
        block_modules: names of submodules whose own children are cut into blocks; a model's
            ``_group_offload_block_modules`` if left out.
        exclude_kwargs: keyword arguments of forward that are never moved; a model's ``_skip_keys`` if left out.
        exclude_modules: components of a pipeline that are put on ``onload_device`` whole instead.
        host_budget: bytes (or ``"16GiB"``) of host memory for weights and staging buffers. With a disk path, weights
            that do not fit are stored on disk; without a budget all are. Without a disk path, weights that do not fit
            are refused.
        checkpoint: with a disk path, the local snapshot or safetensors file that weights were loaded from; weights
            that are bit-equal there are not written again. A model's own ``_name_or_path`` if left out.
        keep: with a disk path, leave the files that are written for later processes, which find them by content.
        protect: ``"copy"`` if other programs may write the checkpoint's files meanwhile: they are copied (without
            taking space where the file system can do that).
        vram_budget: bytes (or ``"10GiB"``) of weights on the device at most, at any moment, over all components. What
            fits is cached there between passes. The rest streams on a side stream, as far ahead as memory allows, in
            layers, or in blocks where blocks are small. ``use_stream`` and ``offload_type`` need not be given.
            ``"auto"``: the free memory less what activations take, which is measured in the first pass of each
            component, and again when inputs are larger.
        share_host_copy: whether processes of this machine that offload equal weights share one copy of them in host
            memory. If left out, they do where ``torch.distributed`` is initialised with several ranks on this machine
            and weights are not stored on disk. See docs/ranks.md.

    Raises:
        InvalidPolicyError: an argument cannot be used, or a budget cannot be kept.
        UnsupportedModelError: a component cannot be offloaded.
        HookConflictError: a component is offloaded by other means.
        DiskTierError: the disk is full, or it cannot be written.

    In each case, and after any other error (no memory, an interruption), everything is as it was before. Where that
    cannot be, because the weights cannot be moved back, a note on the error says so.
    """
    policy = policy_for(
        onload_device=onload_device,
        offload_device=offload_device,
        offload_type=offload_type,
        num_blocks_per_group=num_blocks_per_group,
        non_blocking=non_blocking,
        use_stream=use_stream,
        record_stream=record_stream,
        low_cpu_mem_usage=low_cpu_mem_usage,
        offload_to_disk_path=offload_to_disk_path,
        block_modules=block_modules,
        exclude_kwargs=exclude_kwargs,
        host_budget=host_budget,
        checkpoint=checkpoint,
        keep=keep,
        protect=protect,
        vram_budget=vram_budget,
        share_host_copy=share_host_copy,
    )
    components, excluded = split_excluded(target, components_of(target), exclude_modules)
    if len(components) > 1:
        _require_known_blocks(policy, components)
    policies = {name: _for_model(policy, module, components) for name, module in components.items()}
    for name, module in components.items():
        check_model(module, policies[name], name)
    policies, limit = fit_budgets(components, policies)
    budget = _budget_of(components, policies, limit)
    with Changeover() as changeover:
        prepared = [changeover.prepare(module, policies[name], name, budget) for name, module in components.items()]
        for attachment in prepared:
            changeover.attach(attachment)
        for module in excluded.values():
            changeover.move(module, policy.device)
    if policy.disk is not None or policy.share_host_copy:
        give_memory_back()


def disable_group_offload(target: Any, *, missing_ok: bool = False) -> None:
    """Remove our hooks from ``target`` and leave its weights, bit for bit, in ordinary host memory.

    Args:
        target: what :func:`enable_group_offload` was given, or one of its components.
        missing_ok: do nothing if nothing of ``target`` is offloaded, instead of raising.

    Raises:
        NotOffloadedError: nothing of ``target`` is offloaded by this package.
        DiskTierError: some weights cannot be read. They stay on disk, and a note on the error names them; all else is
            done, as after any other error.
    """
    found = {id(a): a for a in map(attachment_of, components_of(target).values()) if a is not None}
    if not found and not missing_ok:
        raise NotOffloadedError(
            f"{type(target).__name__} is not offloaded by diffusers_offload_plus, so there is nothing to disable."
        )
    for attachment in found.values():
        if isinstance(target, nn.Module) and attachment.root is not target:
            raise NotOffloadedError(
                f"{type(target).__name__} is part of '{attachment.label}', which is offloaded as a whole. "
                f"Call `disable_group_offload` on '{attachment.label}' itself."
            )
    failures = Failures()
    for attachment in found.values():
        failures.attempt(attachment.detach)
    failures.raise_first()


def upgrade(target: Any) -> None:
    """Replace diffusers' own group-offloading hooks on ``target`` by ours, with the same settings.

    Raises:
        NotOffloadedError: ``target`` has no stock hook.
        HookConflictError: a component is offloaded to disk by stock hooks. Stock diffusers may have mixed up its files
            with those of another component, so they cannot be trusted.
    """
    chosen: dict[str, tuple[nn.Module, OffloadPolicy]] = {}
    for name, module in components_of(target).items():
        found = stock_hooks(module)
        if not found:
            continue
        for _, _, hook in found:
            if hook.config.offload_to_disk_path is not None:
                raise HookConflictError(
                    f"'{name}' is offloaded to '{hook.config.offload_to_disk_path}' by stock hooks. Those files may "
                    "have wrong values (two components in one directory overwrite each other), and the weights are "
                    "nowhere else. Load the pipeline again with `from_pretrained` and call "
                    "`diffusers_offload_plus.enable_group_offload`."
                )
        settings = stock_settings(found[0][2].config, module)
        policy = policy_for(**settings)
        check_model(module, policy, name, allow_stock=True)
        chosen[name] = module, policy
    if not chosen:
        raise NotOffloadedError(
            f"{type(target).__name__} carries no stock group-offloading hooks. Call `enable_group_offload` instead."
        )
    with Changeover() as changeover:
        for name, (module, policy) in chosen.items():
            attachment = changeover.prepare(module, policy, name, None)
            changeover.undo_with(RemovedHooks(module).put_back)
            changeover.attach(attachment)


def _budget_of(
    components: dict[str, nn.Module], policies: dict[str, OffloadPolicy], limit: int | None
) -> DeviceBudget | None:
    """The device budget of the components: the present one if a component stays as it is, else a new one.

    None if there is no limit.
    """
    if limit is None:
        return None
    for name, module in components.items():
        present = attachment_of(module)
        if present is not None and present.policy == policies[name]:
            return present.engine.budget
    policy = next(iter(policies.values()))
    auto = AutoLimit(DeviceMemory(policy.device)) if policy.vram_budget is AUTO else None
    return DeviceBudget(limit, auto)


def _for_model(policy: OffloadPolicy, module: nn.Module, components: dict[str, nn.Module]) -> OffloadPolicy:
    # In a pipeline a name in `block_modules` concerns the components that have such a module, and each component has
    # a share of the host budget.
    if len(components) == 1:
        return policy
    if policy.disk is not None and policy.disk.host_budget is not None:
        share = _nbytes(module) / max(1, sum(map(_nbytes, components.values())))
        disk = dataclasses.replace(policy.disk, host_budget=int(share * policy.disk.host_budget))
        policy = dataclasses.replace(policy, disk=disk)
    if policy.block_modules is None:
        return policy
    known = {name for name, _ in module.named_modules()}
    names = tuple(name for name in policy.block_modules if name in known)
    return dataclasses.replace(policy, block_modules=names or None)


def _nbytes(module: nn.Module) -> int:
    return sum(map(plain_bytes, (*module.parameters(), *module.buffers())))


def _require_known_blocks(policy: OffloadPolicy, components: dict[str, nn.Module]) -> None:
    known = {name for module in components.values() for name, _ in module.named_modules()}
    for name in policy.block_modules or ():
        if name not in known:
            raise InvalidPolicyError(
                f"`block_modules` names '{name}', but none of {', '.join(components)} has a module called that. "
                "Give names as `named_modules()` lists them."
            )
