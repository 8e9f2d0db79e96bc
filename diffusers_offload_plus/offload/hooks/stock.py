"""Taking diffusers' own group-offloading hooks off a model, and putting them back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..model.tensors import map_plain, plain_tensors, repoint
from .diffusers_api import HOOK_NAME, STOCK_HELPER_HOOKS, HookRegistry, registry_of, stock_hooks

__all__ = ["RemovedHooks"]


class RemovedHooks:
    """The stock hooks of a model, which have been removed."""

    def __init__(self, root: nn.Module) -> None:
        """Remove them. The memory of weights is left to the parameters alone.

        Stock hooks may leave a group on the device after an exception. That is no problem: our inventory takes values
        from any device.
        """
        groups = {id(hook.group): hook.group for _, _, hook in stock_hooks(root)}
        self._groups = list(groups.values())
        self._registries = [_Registry(m, found) for m in root.modules() if (found := registry_of(m)) is not None]
        # The copies that a group with a stream holds, as keys and whether they are pinned.
        self._copies = [{key: _is_pinned(value) for key, value in g.cpu_param_dict.items()} for g in self._groups]
        for registry in self._registries:
            for name in (HOOK_NAME, *STOCK_HELPER_HOOKS):
                registry.registry.remove_hook(name, recurse=False)
        for group in self._groups:
            group.cpu_param_dict.clear()

    def put_back(self) -> None:
        """Put the hooks back as they were, with the weights as they are now. If that fails, the model has none."""
        copies: list[dict[torch.Tensor, torch.Tensor]] = []
        for pinned in self._copies:
            copies.append({key: _copy_of(key, pinned=pin) for key, pin in pinned.items()})
        for group, held in zip(self._groups, copies, strict=True):
            for key, value in held.items():
                repoint(key, value)
            group.cpu_param_dict.update(held)
        for registry in self._registries:
            registry.put_back()


class _Registry:
    """The hooks of one module, and how its forward reaches them."""

    def __init__(self, module: nn.Module, registry: HookRegistry) -> None:
        self.registry = registry
        self._module = module
        self._forward = module.__dict__.get("forward")
        self._hooks = dict(registry.hooks)
        self._order: list[str] = list(registry._hook_order)
        self._functions = [(function, vars(function).copy()) for function in registry._fn_refs]

    def put_back(self) -> None:
        registry: Any = self.registry
        registry.hooks.clear()
        registry.hooks.update(self._hooks)
        registry._hook_order[:] = self._order
        registry._fn_refs[:] = [function for function, _ in self._functions]
        for function, attributes in self._functions:
            vars(function).update(attributes)
        self._module.__dict__["_diffusers_hook"] = registry
        if self._forward is not None:
            self._module.__dict__["forward"] = self._forward


def _is_pinned(tensor: torch.Tensor) -> bool:
    return all(plain.is_pinned() for _, plain in plain_tensors(tensor))


def _copy_of(tensor: torch.Tensor, *, pinned: bool) -> torch.Tensor:
    def on_host(plain: torch.Tensor) -> torch.Tensor:
        plain = plain.cpu()
        return plain.pin_memory() if pinned else plain

    return map_plain(tensor.detach(), on_host)
