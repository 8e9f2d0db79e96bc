"""Reads that no hook can see: ``F.linear(x, other.weight)``, ``self.out_proj.weight``, a parameter read by ``encode``.

[Note: lookups]
``module.weight`` reads ``module._parameters["weight"]``. While a model is offloaded that dictionary is a
:class:`WatchedDict`. Looking up a name whose group is not onloaded asks the engine first, unless the caller only asks
for something that needs no values; see [Note: questions]. Before it is iterated (state dicts, optimisers, ``.to``)
copies that still read host memory are waited for, since the caller may be about to write it, and what a budget caches
on the device goes back to the host. While the group is onloaded, the dictionary is an :class:`OnloadedDict`, as fast
as a plain one. Modules under a compiled forward keep plain dictionaries: the hook above them onloads all.
"""

from __future__ import annotations

import sys
from collections.abc import ItemsView, Iterable, Iterator, ValuesView
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from ..groups.buffers import PersistentBuffers
from ..groups.param_group import GroupState, ParamGroup
from ..model.inventory import Entry
from .forward_pass import ForwardPass
from .questions import Question, question_of

__all__ = [
    "OffloadedDict",
    "OnloadedDict",
    "WatchedDict",
    "computes_on",
    "install",
    "uninstall",
    "unwatch_lookups",
    "watch_lookups",
]


class _Engine(Protocol):
    persistent: PersistentBuffers
    forward_pass: ForwardPass

    def buffers_to_device(self) -> None: ...
    def materialize(self, group: ParamGroup, entry: Entry, question: Question) -> torch.Tensor: ...
    def wait_for_copies(self) -> None: ...
    def evict_cached(self) -> None: ...


class OffloadedDict(dict[str, Any]):
    """``_parameters`` or ``_buffers`` of a module whose tensors are offloaded. Copies and pickles as a plain dict."""

    __slots__ = ("_persistent", "_watched", "engine")

    def __init__(
        self,
        plain: dict[str, Any],
        watched: dict[str, tuple[ParamGroup, Entry]],
        persistent: frozenset[str],
        engine: _Engine,
    ) -> None:
        super().__init__(plain)
        self._watched = watched
        self._persistent = persistent
        self.engine = engine

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)

    def plain(self) -> dict[str, Any]:
        """A plain dict with the same values."""
        return dict(dict.items(self))

    def copy(self) -> dict[str, Any]:
        """A plain dict."""
        return self.plain()


class OnloadedDict(OffloadedDict):
    """One whose tensors are all onloaded: lookups are those of a dict."""

    __slots__ = ()


class WatchedDict(OffloadedDict):
    """One whose lookups are answered by the engine."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        watched = self._watched.get(name)
        if watched is not None and (watched[0].state is not GroupState.ONLOADED or not watched[0].users):
            value = dict.__getitem__(self, name)
            if value is not watched[1].tensor:
                return value  # put in since the inventory was taken: nobody's but the caller's
            question = question_of(sys._getframe(1))
            return value if question is Question.METADATA else self.engine.materialize(*watched, question)
        if self.engine.persistent.on_host and name in self._persistent:
            self.engine.buffers_to_device()
        return dict.__getitem__(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict; what is there is looked up."""
        if name not in self:
            return default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        """As of a dict; what is there is looked up."""
        if name in self:
            self[name]
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As of a dict; what is there is looked up."""
        return self[name] if name in self else super().setdefault(name, default)

    def popitem(self) -> tuple[str, Any]:
        """As of a dict, once no copy reads host memory any more."""
        self._show_host()
        return super().popitem()

    def copy(self) -> dict[str, Any]:
        """A plain dict, once no copy reads host memory any more."""
        self._show_host()
        return self.plain()

    def __iter__(self) -> Iterator[str]:
        # Without this, ``dict(...)`` and ``{**...}`` would take the values past the methods here.
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """As of a dict, once no copy reads host memory any more."""
        self._show_host()
        return super().items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """As of a dict, once no copy reads host memory any more."""
        self._show_host()
        return super().values()

    def _show_host(self) -> None:
        if question_of(sys._getframe(2)) is Question.VALUES:
            self.engine.wait_for_copies()
            self.engine.evict_cached()


def install(
    module: nn.Module, watched: dict[str, tuple[ParamGroup, Entry]], persistent: frozenset[str], engine: _Engine
) -> None:
    """Watch the lookups of ``watched`` and ``persistent`` names on ``module``."""
    for slot in ("_parameters", "_buffers"):
        plain: dict[str, Any] = module.__dict__[slot]
        names = {name: watched[name] for name in plain if name in watched}
        if names or not persistent.isdisjoint(plain):
            held = WatchedDict(dict(dict.items(plain)), names, persistent, engine)
            module.__dict__[slot] = held
            groups = {group for group, _ in names.values()}
            if len(groups) == 1 and persistent.isdisjoint(plain):
                (group,) = groups
                group.dicts.append(held)
                group.onloaded_dict, group.watched_dict = OnloadedDict, WatchedDict


def watch_lookups(
    modules: Iterable[nn.Module], groups: Iterable[ParamGroup], persistent: Iterable[torch.Tensor], engine: _Engine
) -> None:
    """Watch ``modules`` for lookups of tensors of ``groups`` and of ``persistent`` ones; groups that are used in place
    need no watching."""
    are_persistent = set(map(id, persistent))
    streaming = [group for group in groups if not group.in_place]
    of_tensor = {id(entry.tensor): (group, entry) for group in streaming for entry in group.spec.entries}
    for module in modules:
        held = [*dict.items(module._parameters), *dict.items(module._buffers)]
        watched = {name: of_tensor[id(tensor)] for name, tensor in held if id(tensor) in of_tensor}
        staying = frozenset(name for name, tensor in held if id(tensor) in are_persistent)
        if watched or staying:
            install(module, watched, staying, engine)


def uninstall(module: nn.Module) -> None:
    """Give ``module`` its plain dictionaries back, with whatever they hold now."""
    for slot in ("_parameters", "_buffers"):
        held = module.__dict__.get(slot)
        if isinstance(held, OffloadedDict):
            module.__dict__[slot] = held.plain()


def unwatch_lookups(modules: Iterable[nn.Module], groups: Iterable[ParamGroup]) -> None:
    """Stop watching ``modules``, where tensors of ``groups`` were watched."""
    for group in groups:
        group.dicts.clear()
    for module in modules:
        uninstall(module)


def computes_on(device: torch.device, modules: set[int]) -> bool:
    """Whether the caller of an attribute lookup is a method of the model at work on tensors of ``device``.

    This tells ``vae.encode`` reading a weight to compute with it from a script (or ``fuse_qkv_projections``) reading
    it to look at or change it. Only asked outside of any hooked forward.

    Args:
        device: where the model computes.
        modules: ``id`` of each module of the model.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_model_code(frame, modules):
        # Frames of ours and of ``nn.Module.__getattr__`` lie between; anything else means foreign code.
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("diffusers_offload_plus", "torch"):
            return False
        frame = frame.f_back
    while frame is not None and _is_model_code(frame, modules):
        if any(isinstance(value, torch.Tensor) and value.device == device for value in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False


def _is_model_code(frame: FrameType, modules: set[int]) -> bool:
    code = frame.f_code
    if code.co_argcount == 0 or code.co_name in ("__getattr__", "__getitem__"):
        return False
    return id(frame.f_locals.get(code.co_varnames[0])) in modules
