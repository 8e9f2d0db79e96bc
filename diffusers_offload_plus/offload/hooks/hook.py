"""The hook on each module: onload, call the forward, offload.

[Note: the hook and diffusers]
The hook is registered as ``"group_offloading"``, the name that diffusers looks for, so execution devices, the guards
of ``.to``, LoRA loaders and components managers find it. After changing a model diffusers removes that name from all
modules, then reads ``hook.config`` of a removed hook, then applies stock hooks to modules without one. Therefore
removing a hook only marks the attachment stale. Reading ``config`` of a stale attachment registers our hooks again,
with a fresh inventory, before diffusers looks for modules without one.

[Note: compiled forwards]
A compiled forward has to run beneath the hook, because a graph cannot contain the onloading. ``module.compile()``
puts it above the hook. The hook takes it from there and calls it itself. While it is traced the hook does nothing. A
hooked module has the hook's own ``compile`` as an instance attribute, so that this happens at once.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from ...errors import CompileOrderError
from ..model.partition import COMPILED_BENEATH
from ..runtime.engine import OffloadEngine
from ..runtime.forward_pass import CalledModule
from .copying import uninstall_reducer
from .diffusers_api import HOOK_NAME, ModelHook, registry_of

__all__ = ["GroupOffloadPlusHook", "HookOwner"]


class HookOwner(Protocol):
    """The offloaded model that a hook belongs to, as the hook sees it.

    Attributes:
        stale: other code removed or displaced hooks; they are put back before the next use.
        detached: the model is not offloaded any more.
        config: a stock configuration with our devices.
    """

    root: nn.Module
    label: str
    stale: bool
    detached: bool
    engine: OffloadEngine
    config: Any

    def restore(self) -> None:
        """Put back hooks that other code removed. No effect unless stale."""


class GroupOffloadPlusHook(ModelHook):
    """Onloads what its module needs, calls the forward, and offloads, also when the forward raises."""

    _is_stateful = False

    def __init__(self, attachment: HookOwner, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attachment = attachment
        self.called = CalledModule(module)
        self.installed: Any = None
        self.registry: Any = None
        self._entered: Any = None
        self._class_forward: Any = None  # forward of the class; None if the module has one of its own
        self.compiled: Callable[..., Any] | None = None
        self.known_compiled: Callable[..., Any] | None = None  # ``compiled`` as of the last inventory
        self.module = module

    @property
    def config(self) -> Any:
        """The stock configuration with our devices; see [Note: the hook and diffusers]."""
        self.attachment.restore()
        return self.attachment.config

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Called by the registry in place of the module's forward."""
        if self.attachment.detached:  # called through a forward that other code took before
            return self._forward()(*args, **kwargs)
        if torch.compiler.is_compiling():
            if self.compiled is None:
                raise CompileOrderError(
                    "An offloaded module is being compiled as part of another. Compile it by itself, "
                    "or compile before enabling group offloading."
                )
            return self._forward()(*args, **kwargs)
        forward: Any = self.compiled
        if forward is None:
            forward = self._forward()
        return self.attachment.engine.run(self.called, forward, args, kwargs)

    def _forward(self) -> Callable[..., Any]:
        """The module's forward without the hook. A forward of the class is looked up at each call, as Python does."""
        if self._class_forward is not None and type(self.module).forward is not self._class_forward:
            return types.MethodType(type(self.module).forward, self.module)
        function: Any = self.fn_ref
        forward: Callable[..., Any] = function.original_forward
        return forward

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:  # diffusers' spelling
        """Called when the hook is removed, by us or by diffusers."""
        if not self.attachment.stale:
            self.attachment.engine.evict_cached()  # code that removes hooks is about to work on the weights
        self.attachment.stale = True
        self.called = CalledModule(module)  # a reference to the removed hook must not keep weights alive
        uninstall_reducer(module)
        if module.__dict__.get("compile") == self.compile:
            del module.__dict__["compile"]
        self.give_compiled_back()
        return module

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Replacement of ``module.compile()`` on a hooked module: compiles the forward beneath the hook.

        Raises:
            CompileOrderError: the module is the whole offloaded model.
        """
        if self.module is self.attachment.root:
            raise CompileOrderError(
                f"'{self.attachment.label}' is offloaded: compiled as a whole, one graph would need all its weights "
                "at once. Use `compile_repeated_blocks()`, or compile the blocks one by one."
            )
        type(self.module).compile(self.module, *args, **kwargs)
        self.take_compiled()

    def take_compiled(self) -> None:
        """Call the module's compiled forward from beneath the hook; see [Note: compiled forwards]."""
        module = self.module
        if module._compiled_call_impl is not None:
            self.compiled = module._compiled_call_impl
            module.__dict__[COMPILED_BENEATH] = self.compiled
            module._compiled_call_impl = None

    def give_compiled_back(self) -> None:
        """Undo :meth:`take_compiled`."""
        if self.compiled is not None:
            self.module._compiled_call_impl = self.compiled
            self.module.__dict__.pop(COMPILED_BENEATH, None)
            self.compiled = None

    def fires(self) -> bool:
        """Whether a call of the module still reaches this hook, and the forward was not compiled since."""
        attributes, function = self.module.__dict__, self.fn_ref
        return (
            function.forward is self._entered
            and self.compiled is self.known_compiled
            and self.registry.hooks.get(HOOK_NAME) is self
            and attributes.get("_diffusers_hook") is self.registry
            and (attributes.get("forward") is self.installed or self._is_reachable())
        )

    def note_installed(self) -> None:
        """Remember how the registry reaches this hook, to notice when it no longer does."""
        self.installed = self.module.__dict__["forward"]
        self.registry = registry_of(self.module)
        self._entered = self.fn_ref.forward
        of_class = type(self.module).forward
        captured = getattr(self.fn_ref.original_forward, "__func__", None)
        self._class_forward = of_class if captured is of_class else None

    def reclaim(self) -> bool:
        """Repair the chain of forwards after diffusers removed a hook beneath this one.

        diffusers' registry then calls the inner forward without this hook, and this hook would call the removed one.

        Returns:
            Whether a call of the module reaches this hook now; False if other code replaced the module's forward.
        """
        if self.fn_ref.forward is not self._entered and self._entered is not None:
            inner: Any = self.fn_ref.forward
            self.fn_ref.original_forward = inner
            self.fn_ref.forward = self._entered
        return self._is_reachable()

    def _is_reachable(self) -> bool:
        forward = self.module.__dict__.get("forward")
        while forward is not None:
            if forward is self.installed:
                return True
            forward = getattr(forward, "__wrapped__", None)
        return False

    def __repr__(self) -> str:
        return f"GroupOffloadPlusHook({self.attachment.engine.tree.name_of(self.module)})"
