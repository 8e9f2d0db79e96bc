"""The hook on each module, and all hooks of one model taken together.

[Note: the hook and diffusers]
The hook is registered as ``"group_offloading"``, the name diffusers looks for, so execution devices, the guards of
``.to``, LoRA loaders and components managers find it. After changing a model diffusers removes that name everywhere,
reads ``hook.config`` of a removed hook, and applies stock hooks wherever none is registered. Being removed therefore
only marks the attachment stale, and reading ``config`` of a stale one registers ours again, with a fresh inventory,
before diffusers looks.

[Note: compiled forwards]
A compiled forward must run beneath the hook, for no graph can hold the onloading. ``module.compile()`` puts it
above; it is taken from there and called by the hook instead. While it is traced the hook is transparent. So that
nothing runs in between, a hooked module's ``compile`` is, as an attribute of the instance, the hook's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ...errors import CompileOrderError
from ..memory.device_budget import DeviceBudget
from ..model.partition import COMPILED_BENEATH, is_compiled, runs
from ..policy import OffloadPolicy
from ..runtime.engine import OffloadEngine
from .copying import install_reducer, uninstall_reducer
from .diffusers_api import HOOK_NAME, HookRegistry, ModelHook, registry_of, stock_config

__all__ = ["Attachment", "GroupOffloadPlusHook", "attachment_of"]


class GroupOffloadPlusHook(ModelHook):
    """Onloads what its module needs, calls the forward, offloads; also when the forward raises."""

    _is_stateful = False

    def __init__(self, attachment: Attachment, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attachment = attachment
        self.installed: Any = None
        self._registry: Any = None
        self._entered: Any = None
        self.compiled: Callable[..., Any] | None = None
        self.settled: Callable[..., Any] | None = None  # what was compiled when the model was last looked at
        self._module = module

    @property
    def config(self) -> Any:
        """A stock configuration naming our devices; see [Note: the hook and diffusers]."""
        self.attachment.restore()
        return self.attachment.config

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Called by the registry in place of the module's forward."""
        if torch.compiler.is_compiling():
            if self.compiled is None:
                raise CompileOrderError(
                    "An offloaded module is being compiled as part of another. Compile it by itself, "
                    "or compile before enabling group offloading."
                )
            return self._original(*args, **kwargs)
        return self.attachment.engine.run(module, self.compiled or self._original, args, kwargs)

    @property
    def _original(self) -> Callable[..., Any]:
        function: Any = self.fn_ref
        forward: Callable[..., Any] = function.original_forward
        return forward

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:  # diffusers' spelling
        """Called when the hook is removed, by us or by diffusers."""
        if not self.attachment.stale:
            self.attachment.engine.evict_kept()  # whoever removes hooks is about to work on the weights
        self.attachment.stale = True
        uninstall_reducer(module)
        if module.__dict__.get("compile") == self.compile:
            del module.__dict__["compile"]
        self.give_compiled_back()
        return module

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """``module.compile()`` of a hooked module: the same, beneath the hook.

        Raises:
            CompileOrderError: the module is the whole offloaded model.
        """
        if self._module is self.attachment.root:
            raise CompileOrderError(
                f"'{self.attachment.label}' is offloaded: compiled as a whole, one graph would need all its weights "
                "at once. Use `compile_repeated_blocks()`, or compile the blocks one by one."
            )
        type(self._module).compile(self._module, *args, **kwargs)
        self.take_compiled()

    def take_compiled(self) -> None:
        """Call the module's compiled forward from beneath the hook; see [Note: compiled forwards]."""
        module = self._module
        if module._compiled_call_impl is not None:
            self.compiled = module._compiled_call_impl
            module.__dict__[COMPILED_BENEATH] = self.compiled
            module._compiled_call_impl = None

    def give_compiled_back(self) -> None:
        """Undo :meth:`take_compiled`."""
        if self.compiled is not None:
            self._module._compiled_call_impl = self.compiled
            self._module.__dict__.pop(COMPILED_BENEATH, None)
            self.compiled = None

    def fires(self) -> bool:
        """Whether calling the module still reaches this hook, whatever wrapped or replaced its forward since, and what
        it calls was not compiled since."""
        held, function = self._module.__dict__, self.fn_ref
        return (
            function.forward is self._entered
            and self.compiled is self.settled
            and self._registry.hooks.get(HOOK_NAME) is self
            and held.get("_diffusers_hook") is self._registry
            and (held.get("forward") is self.installed or self._is_reachable())
        )

    def note_installed(self) -> None:
        """Remember how the registry reaches this hook, to notice when it no longer does."""
        self.installed = self._module.__dict__["forward"]
        self._registry = registry_of(self._module)
        self._entered = self.fn_ref.forward

    def reclaim(self) -> bool:
        """Take back the place that removing a hook beneath this one gave to the inner forward; False if displaced.

        diffusers' registry then calls the inner forward past us, and still has the removed hook down as our original.
        """
        if self.fn_ref.forward is not self._entered and self._entered is not None:
            inner: Any = self.fn_ref.forward
            self.fn_ref.original_forward = inner
            self.fn_ref.forward = self._entered
        return self._is_reachable()

    def _is_reachable(self) -> bool:
        forward = self._module.__dict__.get("forward")
        while forward is not None:
            if forward is self.installed:
                return True
            forward = getattr(forward, "__wrapped__", None)
        return False

    def __repr__(self) -> str:
        return f"GroupOffloadPlusHook({self.attachment.engine.tree.name_of(self._module)})"


class Attachment:
    """One offloaded model: its engine and the hooks on its modules.

    Attributes:
        stale: hooks were removed or displaced by others, and are to be put back before the next use.
    """

    def __init__(self, root: nn.Module, policy: OffloadPolicy, label: str, budget: DeviceBudget | None = None) -> None:
        self.root = root
        self.policy = policy
        self.label = label
        self.stale = False
        self.engine = OffloadEngine(root, policy, label, budget)
        self.engine.refresh = self._refresh
        self.engine.intact = self._intact
        self.config = stock_config(policy.onload_device, policy.offload_device)
        self._hooked: dict[int, nn.Module] = {}
        self._hooks_below: dict[int, list[GroupOffloadPlusHook | None]] = {}

    def prepare(self) -> None:
        """Find out that the model can be offloaded, and make room on disk, without changing anything."""
        self.engine.prepare()

    def attach(self) -> None:
        """Take the inventory, move the weights into their slabs and register the hooks. All or nothing."""
        try:
            self._refresh()
        except BaseException:
            self.detach()
            raise

    def detach(self, *, leave: bool = True) -> None:
        """Remove every hook of ours and leave the weights, bit for bit, in plain host memory.

        Args:
            leave: if not, the weights stay where they rest, for another attachment to take over.
        """
        for module in [*self._hooked.values(), *self.root.modules()]:
            self._unhook(module)
        self._hooked.clear()
        try:
            self.engine.tear_down(leave=leave)
        finally:
            self._invalidate()

    def restore(self) -> None:
        """Put hooks back that others removed. No effect unless stale."""
        if self.stale:
            self._refresh()

    def hook_on(self, module: nn.Module) -> GroupOffloadPlusHook | None:
        """Our hook on ``module``, if it is this attachment's."""
        registry = registry_of(module)
        hook = None if registry is None else registry.get_hook(HOOK_NAME)
        return hook if isinstance(hook, GroupOffloadPlusHook) and hook.attachment is self else None

    def _refresh(self) -> None:
        self.stale = False
        for module in self.root.modules():
            self._unhook_displaced(module)
        self.engine.build()
        modules = list(self._to_hook())
        wanted = {id(module) for module in modules}
        for module in list(self._hooked.values()):
            if id(module) not in wanted:
                self._unhook(module)
        for module in modules:
            self._hook(module)
        self._hooked = {id(module): module for module in modules}
        self._hooks_below.clear()
        self.engine.tree.settle()
        self.stale = False
        self._invalidate()

    def _to_hook(self) -> Iterator[nn.Module]:
        # Where nothing is triggered a hook only frames the pass. diffusers' re-application looks at the root and at
        # list children.
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
        hook.take_compiled()
        hook.settled = hook.compiled

    def _unhook(self, module: nn.Module) -> None:
        hook = self.hook_on(module)
        if hook is not None:
            hook.reclaim()
            registry = registry_of(module)
            assert registry is not None
            registry.remove_hook(HOOK_NAME, recurse=False)
            _tidy(module, registry)

    def _unhook_displaced(self, module: nn.Module) -> None:
        # Removing the hook sets ``forward`` to what lay beneath it when it was registered; what displaced it stays
        # instead.
        hook = self.hook_on(module)
        if hook is not None and not hook.reclaim():
            kept = module.__dict__.get("forward")
            self._unhook(module)
            if kept is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = kept

    def _intact(self, entry: nn.Module) -> bool:
        hooks = self._hooks_below.get(id(entry))
        if hooks is None:
            hooked = (m for m in (self.root, *entry.modules()) if id(m) in self._hooked)
            hooks = self._hooks_below[id(entry)] = list(map(self.hook_on, hooked))
        return all(hook is not None and hook.fires() for hook in hooks)

    def _invalidate(self) -> None:
        registry = registry_of(self.root)
        if registry is not None:
            registry.invalidate_child_registries_cache()


def attachment_of(module: nn.Module) -> Attachment | None:
    """The attachment of the first module at or below ``module`` that carries a hook of ours."""
    for part in module.modules():
        registry = registry_of(part)
        hook = None if registry is None else registry.get_hook(HOOK_NAME)
        if isinstance(hook, GroupOffloadPlusHook):
            return hook.attachment
    return None


def _tidy(module: nn.Module, registry: HookRegistry) -> None:
    # Leave the instance as it was found: no empty registry, and no ``forward`` where the class's own will do.
    if registry.hooks:
        return
    module.__dict__.pop("_diffusers_hook", None)
    forward = module.__dict__.get("forward")
    if getattr(forward, "__func__", None) is type(module).forward and getattr(forward, "__self__", None) is module:
        del module.__dict__["forward"]
