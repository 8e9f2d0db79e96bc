"""The units that a model is cut into: which modules onload which part of the model when they run.

A *unit* is a set of modules whose weights move together, and the modules whose forward triggers the move. The cut
follows the modules that run: weights of a module without forward (``ParameterList``, say) move with its nearest
ancestor that runs. Nothing here looks at the memory of tensors; :mod:`.inventory` handles tied weights.

[Note: wrapped blocks]
Libraries that skip blocks (cache-dit, ParaAttention) put one module in the place of a model's block list for the time
of a forward. It holds the blocks, and often the model itself. Blocks that were units stay units, so a module that
holds some of them is looked into; and a module that is found below itself is not entered again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from ...errors import InvalidPolicyError
from ..policy import OffloadPolicy, OffloadType

_OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, torch.jit.ScriptModule)

COMPILED_BENEATH = "_offload_plus_compiled"
"""Instance attribute of a hooked module that has its compiled forward, which the hook calls."""

__all__ = ["COMPILED_BENEATH", "Unit", "compiled_call", "is_compiled", "is_opaque", "partition", "paths", "runs"]


@dataclasses.dataclass(kw_only=True)
class Unit:
    """Modules that move together.

    Attributes:
        name: qualified name of the first module; "" for the root.
        triggers: modules whose forward needs the unit, with their names.
        owners: modules whose direct tensors belong to the unit, with their names.
        reason: why the cut is not the usual one, for the report; else empty.
    """

    name: str
    triggers: list[tuple[str, nn.Module]]
    owners: list[tuple[str, nn.Module]]
    reason: str = ""


def runs(module: nn.Module) -> bool:
    """Whether ``module`` has a forward of its own that can be called."""
    return type(module).forward is not nn.Module.forward


def is_opaque(module: nn.Module) -> bool:
    """Whether ``module`` uses the weights of its submodules without calling them, so that all move as one unit."""
    return isinstance(module, _OPAQUE) or is_compiled(module)


def compiled_call(module: nn.Module) -> Any:
    """The compiled forward of ``module``, above or beneath our hook; None if it was not compiled."""
    return module._compiled_call_impl or module.__dict__.get(COMPILED_BENEATH)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` has a compiled forward, above or beneath our hook."""
    return compiled_call(module) is not None


def paths(root: nn.Module, name: str = "", above: tuple[nn.Module, ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    """All modules of ``root`` with each of their names. A module that is found below itself is left out there."""
    yield name, root
    above = (*above, root)
    for child_name, child in root._modules.items():
        if child is not None and not any(child is module for module in above):
            yield from paths(child, _join(name, child_name), above)


def partition(root: nn.Module, policy: OffloadPolicy, known: Collection[int] = ()) -> list[Unit]:
    """The units of ``root`` under ``policy``. Every module with direct tensors is an owner in at least one unit.

    Args:
        known: ids of modules that were triggers of units before; see [Note: wrapped blocks].
    """
    if policy.offload_type is OffloadType.LEAF_LEVEL:
        units = list(_leaf_level("", root, None, ()))
    else:
        names = _block_modules(root, policy)
        units = list(_Blocks(policy.num_blocks_per_group, names, known).cut("", root, None, ()))
    merged: dict[int, Unit] = {}
    for unit in units:
        first = merged.setdefault(id(unit.triggers[0][1]), unit)
        if first is not unit:
            first.owners.extend(unit.owners)
            first.reason = "; ".join(dict.fromkeys(part for part in (first.reason, unit.reason) if part))
    for unit in merged.values():
        unit.owners = list({id(module): (name, module) for name, module in unit.owners}.values())
    return list(merged.values())


def _has_direct_tensors(module: nn.Module) -> bool:
    return any(p is not None for p in module._parameters.values()) or any(
        b is not None for b in module._buffers.values()
    )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _subtree(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(module.named_modules(prefix=name))


_Named = tuple[str, nn.Module]
_Above = tuple[nn.Module, ...]  # the modules that a module was reached through


def _children(module: nn.Module, above: _Above) -> Iterator[_Named]:
    return ((name, child) for name, child in module.named_children() if not any(child is one for one in above))


def _leaf_level(name: str, module: nn.Module, runner: _Named | None, above: _Above) -> Iterator[Unit]:
    # Tensors whose owners never run move with the root, even if the root does not run itself.
    here = (name, module)
    if runner is None or runs(module):
        runner = here
    if is_opaque(module):
        yield _whole(name, module)
        return
    if _has_direct_tensors(module):
        yield _own_tensors(here, runner)
    above = (*above, module)
    for child_name, child in _children(module, above):
        yield from _leaf_level(_join(name, child_name), child, runner, above)


def _whole(name: str, module: nn.Module) -> Unit:
    reason = "compiled: moves whole" if is_compiled(module) else "its submodules are used without being called"
    return Unit(name=name, triggers=[(name, module)], owners=_subtree(name, module), reason=reason)


def _own_tensors(here: _Named, runner: _Named) -> Unit:
    reason = "" if runner is here else f"'{here[0]}' has no forward: its weights move with '{runner[0]}'"
    return Unit(name=runner[0], triggers=[runner], owners=[here], reason=reason)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The cut at block level: ``size`` blocks a unit; modules called ``names`` are cut like the root."""

    size: int
    names: frozenset[str]
    known: Collection[int]

    def cut(self, name: str, module: nn.Module, runner: _Named | None, above: _Above) -> Iterator[Unit]:
        """The units of a module that is no block."""
        here = (name, module)
        if runner is None or runs(module):
            runner = here
        if _has_direct_tensors(module):
            yield _own_tensors(here, runner)
        above = (*above, module)
        for child_name, child in _children(module, above):
            full = _join(name, child_name)
            if isinstance(child, (nn.ModuleList, nn.Sequential)) and not is_opaque(child):
                yield from self._cut_list(full, child, runner, above)
            elif is_opaque(child):
                reason = (
                    "compiled: moves whole" if is_compiled(child) else "its submodules are used without being called"
                )
                yield Unit(name=full, triggers=[(full, child)], owners=_subtree(full, child), reason=reason)
            elif not runs(child) or full in self.names or _contains_blocks(child) or self._wraps(child):
                yield from self.cut(full, child, runner, above)
            else:
                yield Unit(name=full, triggers=[(full, child)], owners=_subtree(full, child))

    def _cut_list(self, name: str, container: nn.Module, runner: _Named, above: _Above) -> Iterator[Unit]:
        above = (*above, container)
        if _has_direct_tensors(container):
            owner = (name, container) if runs(container) else runner
            yield Unit(name=owner[0], triggers=[owner], owners=[(name, container)])
        chunk: list[_Named] = []
        for child_name, block in _children(container, above):
            full = _join(name, child_name)
            if not runs(block) or self._wraps(block):
                yield from self.cut(full, block, runner, above)
                continue
            if is_compiled(block):
                yield Unit(name=full, triggers=[(full, block)], owners=_subtree(full, block))
                continue
            chunk.append((full, block))
            if len(chunk) == self.size:
                yield _chunk(chunk)
                chunk = []
        if chunk:
            yield _chunk(chunk)

    def _wraps(self, module: nn.Module) -> bool:
        """Whether ``module`` is no block but holds some."""
        if not self.known or id(module) in self.known or is_opaque(module):
            return False
        return any(id(below) in self.known for below in module.modules())


def _chunk(blocks: list[tuple[str, nn.Module]]) -> Unit:
    owners = [item for name, block in blocks for item in _subtree(name, block)]
    return Unit(name=blocks[0][0], triggers=list(blocks), owners=owners)


def _contains_blocks(module: nn.Module) -> bool:
    return any(
        isinstance(child, (nn.ModuleList, nn.Sequential)) and next(child.parameters(), None) is not None
        for child in module.modules()
    )


def _block_modules(root: nn.Module, policy: OffloadPolicy) -> frozenset[str]:
    if policy.block_modules is None:
        return frozenset(getattr(root, "_group_offload_block_modules", None) or ())
    known = dict(root.named_modules())
    for name in policy.block_modules:
        if name not in known:
            children = ", ".join(repr(child) for child, _ in root.named_children())
            raise InvalidPolicyError(
                f"`block_modules` names '{name}', but {type(root).__name__} has no module of that name. Its children "
                f"are: {children}."
            )
    return frozenset(policy.block_modules)
