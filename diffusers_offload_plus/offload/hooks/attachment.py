"""The hooks of one offloaded model together: registered, checked, put back and removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from operator import attrgetter, is_
from typing import Any

from torch import nn

from ..memory.device_budget import DeviceBudget
from ..model.originals import Originals
from ..model.partition import is_compiled, runs
from ..policy import OffloadPolicy
from ..runtime.engine import OffloadEngine
from .copying import install_reducer
from .diffusers_api import HOOK_NAME, HookRegistry, registry_of, stock_config
from .hook import GroupOffloadPlusHook

__all__ = ["Attachment", "attachment_of"]


class Attachment:
    """One offloaded model: its engine and the hooks on its modules.

    Attributes:
        stale: other code removed or displaced hooks; they are put back before the next use.
        detached: hooks are removed for good. Forwards that other code took before go straight to the module's own.
        config: the stock configuration that diffusers reads from a hook.
    """

    def __init__(self, root: nn.Module, policy: OffloadPolicy, label: str, budget: DeviceBudget | None = None) -> None:
        self.root = root
        self.policy = policy
        self.label = label
        self.stale = False
        self.detached = False
        self.engine = OffloadEngine(root, policy, label, budget)
        self.engine.refresh = self._refresh_in_call
        self.engine.intact = self._intact
        self.config = stock_config(policy.onload_device, policy.offload_device)
        self._hooked: dict[int, nn.Module] = {}
        self._hooks_below: dict[int, _Hooks] = {}

    def prepare(self) -> None:
        """Check that the model can be offloaded, and find or write its bytes on disk. Changes nothing in the model."""
        self.engine.prepare()

    def attach(self) -> None:
        """Store the weights on their tier and register the hooks. If that fails, :meth:`detach` undoes it."""
        self._refresh()

    def detach(self, *, leave: bool = True) -> None:
        """Remove all our hooks and leave the weights, bit for bit, in plain host memory. An error does not end it
        half-way: weights that cannot be moved stay where they are, and the error is raised when all else is done.

        Args:
            leave: False: the weights stay where they are stored, for another attachment to take over.
        """
        for module in [*self._hooked.values(), *self.root.modules()]:
            self._unhook(module)
        self._hooked.clear()
        self._hooks_below.clear()
        self.detached = True
        try:
            self.engine.tear_down(leave=leave)
        finally:
            self._invalidate()

    def take_back(self) -> None:
        """Offload the model again, after another attachment took the weights over and was detached."""
        self.engine.originals.give_back()
        self.attach()
        self.settle()

    def settle(self) -> None:
        """Let go of what is held so that attaching can be undone: it is not to be undone any more."""
        self.engine.originals = Originals()

    def abandon(self) -> None:
        """Let go of all that was prepared or stored: the model never got this attachment, or has another one now."""
        engine = self.engine
        self.settle()
        engine.groups = []
        engine.tiers.forget()
        engine.budget.leave(engine)
        engine.refresh, engine.intact = (lambda: None), (lambda module: True)  # they would keep it alive

    def restore(self) -> None:
        """Put back hooks that other code removed. No effect unless stale."""
        if self.stale:
            self._refresh()

    def hook_on(self, module: nn.Module) -> GroupOffloadPlusHook | None:
        """The hook of this attachment on ``module``, or None."""
        registry = registry_of(module)
        hook = None if registry is None else registry.get_hook(HOOK_NAME)
        return hook if isinstance(hook, GroupOffloadPlusHook) and hook.attachment is self else None

    def _refresh(self) -> None:
        self.stale = False
        for module in self.root.modules():
            self._unhook_displaced(module)
        try:
            self.engine.build()
        except BaseException:
            self._put_hooks_back()  # so that the next use tries again
            raise
        modules = list(self._to_hook())
        wanted = {id(module) for module in modules}
        for module in list(self._hooked.values()):
            if id(module) not in wanted:
                self._unhook(module)
        for module in modules:
            self._hook(module)
        self._hooked = {id(module): module for module in modules}
        self._hooks_below.clear()
        self.engine.tree.note_compiled()
        self.stale = False
        self._invalidate()

    def _refresh_in_call(self) -> None:
        """Put hooks back, and plan anew, in a call that found the model changed.

        Where other code wraps the root's forward, that code runs at this moment. It may have put other modules in the
        place of blocks until its call ends. So the root is hooked above it, and structure is looked at in the next
        call, before that code runs; unless there are weights that have to be onloaded now.
        """
        hook, device = self.hook_on(self.root), self.engine.device
        is_wrapped = hook is not None and not hook.reclaim() and not self.stale
        if not is_wrapped or any(tensor.device != device for tensor in self.engine.tree.unknown_tensors()):
            self._refresh()
            return
        self._unhook_displaced(self.root)
        self._hook(self.root)
        self.stale = False
        self._hooks_below.clear()
        self._invalidate()

    def _put_hooks_back(self) -> None:
        for module in self._hooked.values():
            self._hook(module)

    def _to_hook(self) -> Iterator[nn.Module]:
        # The triggers of units onload. Hooks on other modules only open a frame; they are on the modules where
        # diffusers would otherwise apply a stock hook: the root and the children of its lists.
        compiled = {id(m) for m in self.root.modules() if is_compiled(m)}
        found: dict[int, nn.Module] = {id(self.root): self.root}
        for child in self.root.children():
            if isinstance(child, (nn.ModuleList, nn.Sequential)):
                found.update((id(block), block) for block in child.children())
            if runs(child):
                found.setdefault(id(child), child)
        for unit in self.engine.units:
            found.update((id(trigger), trigger) for _, trigger in unit.triggers)
        beneath = {
            id(m) for owner in self.root.modules() if id(owner) in compiled for m in owner.modules() if m is not owner
        }
        return (module for key, module in found.items() if key not in beneath)

    def _hook(self, module: nn.Module) -> None:
        hook = self.hook_on(module)
        if hook is None:
            registry = registry_of(module, create=True)
            assert registry is not None
            hook = GroupOffloadPlusHook(self, module)
            registry.register_hook(hook, HOOK_NAME)
            hook.note_installed()
            install_reducer(module, self.engine.to_host)
            module.__dict__.setdefault("compile", hook.compile)
        hook.called = self.engine.forward_pass.called(module)
        hook.take_compiled()
        hook.known_compiled = hook.compiled

    def _unhook(self, module: nn.Module) -> None:
        hook = self.hook_on(module)
        if hook is not None:
            hook.reclaim()
            registry = registry_of(module)
            assert registry is not None
            registry.remove_hook(HOOK_NAME, recurse=False)
            _tidy(module, registry)

    def _unhook_displaced(self, module: nn.Module) -> None:
        # Removing the hook sets ``forward`` to what was beneath it when it was registered. The forward that displaced
        # it is newer and has to stay.
        hook = self.hook_on(module)
        if hook is not None and not hook.reclaim():
            displacing = module.__dict__.get("forward")
            self._unhook(module)
            if displacing is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = displacing

    def _intact(self, called: nn.Module) -> bool:
        hooks = self._hooks_below.get(id(called))
        if hooks is None:
            hooked = (m for m in (self.root, *called.modules()) if id(m) in self._hooked)
            hooks = self._hooks_below[id(called)] = _Hooks(map(self.hook_on, hooked))
        return hooks.fire()

    def _invalidate(self) -> None:
        registry = registry_of(self.root)
        if registry is not None:
            registry.invalidate_child_registries_cache()


class _Hooks:
    """Some hooks, and how a call of each module reached its hook when last checked.

    Each pass compares all hooks with that, so it is done by functions that loop in C.
    """

    def __init__(self, hooks: Iterable[GroupOffloadPlusHook | None]) -> None:
        found = list(hooks)
        self._hooks = [hook for hook in found if hook is not None]
        self._lost = len(self._hooks) < len(found)
        self._modules = [vars(hook.module) for hook in self._hooks]
        self._registries = [hook.registry for hook in self._hooks]
        self._known: list[Any] = []

    def fire(self) -> bool:
        """Whether calls of the modules still reach all hooks."""
        reached = self._reached()
        if len(reached) == len(self._known) and all(map(is_, reached, self._known)):
            return True
        if self._lost or not all(hook.fires() for hook in self._hooks):
            return False
        self._known = reached
        return True

    def _reached(self) -> list[Any]:
        return [
            *map(_forward, map(_function, self._hooks)),
            *map(_compiled, self._hooks),
            *map(dict.get, map(_hooks_of, self._registries), repeat(HOOK_NAME)),
            *map(dict.get, self._modules, repeat("_diffusers_hook")),
            *map(dict.get, self._modules, repeat("forward")),
        ]


_function, _forward, _compiled, _hooks_of = map(attrgetter, ("fn_ref", "forward", "compiled", "hooks"))


def attachment_of(module: nn.Module) -> Attachment | None:
    """The attachment of the first module, at or below ``module``, that has a hook of ours. None if none has."""
    for part in module.modules():
        registry = registry_of(part)
        hook = None if registry is None else registry.get_hook(HOOK_NAME)
        if isinstance(hook, GroupOffloadPlusHook) and isinstance(hook.attachment, Attachment):
            return hook.attachment
    return None


def _tidy(module: nn.Module, registry: HookRegistry) -> None:
    # The instance is left as it was before: no empty registry, and no ``forward`` that equals the class's own.
    if registry.hooks:
        return
    module.__dict__.pop("_diffusers_hook", None)
    forward = module.__dict__.get("forward")
    if getattr(forward, "__func__", None) is type(module).forward and getattr(forward, "__self__", None) is module:
        del module.__dict__["forward"]
