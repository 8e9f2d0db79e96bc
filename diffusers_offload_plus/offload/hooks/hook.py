"""The hook on each module.

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
    """What a hook knows of the offloaded model that it belongs to.

    Attributes:
        stale: hooks were removed or displaced by others, and are to be put back before the next use.
        config: a stock configuration with our devices.
    """

    root: nn.Module
    label: str
    stale: bool
    engine: OffloadEngine
    config: Any

    def restore(self) -> None:
        """Put hooks back that others removed. No effect unless stale."""


class GroupOffloadPlusHook(ModelHook):
    """Onloads what its module needs, calls the forward, offloads; also when the forward raises."""

    _is_stateful = False

    def __init__(self, attachment: HookOwner, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attachment = attachment
        self.called = CalledModule(module)
        self.installed: Any = None
        self.registry: Any = None
        self._entered: Any = None
        self._class_forward: Any = None  # called unless the module has a forward of its own
        self.compiled: Callable[..., Any] | None = None
        self.known_compiled: Callable[..., Any] | None = None  # when the model was last looked at
        self.module = module

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
            return self._forward()(*args, **kwargs)
        forward: Any = self.compiled
        if forward is None:
            forward = self._forward()
        return self.attachment.engine.run(self.called, forward, args, kwargs)

    def _forward(self) -> Callable[..., Any]:
        """What the module's forward was before the hook; that of its class is looked up anew, as Python does."""
        if self._class_forward is not None and type(self.module).forward is not self._class_forward:
            return types.MethodType(type(self.module).forward, self.module)
        function: Any = self.fn_ref
        forward: Callable[..., Any] = function.original_forward
        return forward

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:  # diffusers' spelling
        """Called when the hook is removed, by us or by diffusers."""
        if not self.attachment.stale:
            self.attachment.engine.evict_cached()  # whoever removes hooks is about to work on the weights
        self.attachment.stale = True
        self.called = CalledModule(module)  # whoever holds the hook holds no weights
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
        """Whether calling the module still reaches this hook, whatever wrapped or replaced its forward since, and what
        it calls was not compiled since."""
        held, function = self.module.__dict__, self.fn_ref
        return (
            function.forward is self._entered
            and self.compiled is self.known_compiled
            and self.registry.hooks.get(HOOK_NAME) is self
            and held.get("_diffusers_hook") is self.registry
            and (held.get("forward") is self.installed or self._is_reachable())
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
        """Take back the place that removing a hook beneath this one gave to the inner forward; False if displaced.

        diffusers' registry then calls the inner forward past us, and still has the removed hook down as our original.
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
