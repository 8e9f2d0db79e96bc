"""Which functions a rule looks into, and what the names in them stand for."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from ..project import Block, ClassInfo, Project, Source
from ..project.body import Access, Body, Place
from ..project.classes import Function
from ..project.flow import entry_roles
from ..project.modules import parameters
from ..project.nodes import AnyFunction

__all__ = ["Scope", "is_encoder", "leaf_accesses", "own_calls", "scopes", "users"]

ENCODER_FILES = {"encoders", "before_encoder"}


@dataclasses.dataclass(frozen=True, eq=False)
class Scope:
    """A function of a block, of a pipeline or beside them, with what its names stand for."""

    source: Source
    function: Function
    owner: ClassInfo | None
    body: Body


def scopes(project: Project) -> list[Scope]:
    """Methods of blocks and pipelines, functions beside blocks or called by them; inner functions belong to these."""
    return project.cached(("scopes",), lambda: list(_scopes(project)))


def _scopes(project: Project) -> Iterator[Scope]:
    yield from _beside_blocks(project)
    yield from _called_elsewhere(project)


def _called_elsewhere(project: Project) -> Iterator[Scope]:
    """Functions of linted files without blocks that blocks call."""
    seen: set[ast.AST] = set()
    for block in own_calls(project):
        for body in project.flow(block.info).bodies:
            if body.owner is not None or not body.source.linted or body.function in seen:
                continue
            if not any(info.is_block for info in project.classes.of(body.source)):
                seen.add(body.function)
                yield Scope(body.source, body.function, None, body)


def _beside_blocks(project: Project) -> Iterator[Scope]:
    for source in project.block_sources:
        has_blocks = any(info.is_block for info in project.classes.of(source))
        for function in source.functions:
            owner: ClassInfo | None = None
            inner = False
            for ancestor in source.ancestors(function):
                if isinstance(ancestor, AnyFunction):
                    inner = True
                    break
                if isinstance(ancestor, ast.ClassDef):
                    owner = project.classes.info(source, ancestor)
                    break
            if inner or (owner is None and not has_blocks):
                continue
            if owner is not None and not owner.is_block and not owner.is_pipeline:
                continue
            yield Scope(source, function, owner, project.body(source, function, owner, _roles(owner, function)))


def _roles(owner: ClassInfo | None, function: Function) -> dict[str, set[Place]]:
    if owner is not None and owner.is_block:
        return entry_roles(owner, function)
    names = parameters(function)
    roles: dict[str, set[Place]] = {
        name: {(name,)} for name in names if name in ("components", "block_state", "state")
    }
    if owner is not None and names:
        roles[names[0]] = {("components",)}  # a pipeline is what blocks call components
    return roles


def is_encoder(source: Source, owner: ClassInfo | None) -> bool:
    """Whether code is where encoding belongs: in an encoder's file or class."""
    return source.stem in ENCODER_FILES or (owner is not None and "Encode" in owner.name)


def own_calls(project: Project) -> list[Block]:
    """Blocks that define ``__call__`` or inherit one that is not the framework's."""
    return project.cached(("own calls",), _own_calls, project)


def _own_calls(project: Project) -> list[Block]:
    found = []
    for block in project.blocks:
        method = block.info.method("__call__")
        if method is not None and not method[0].source.in_framework:
            found.append(block)
    return found


def users(project: Project) -> dict[Function, list[Block]]:
    """The blocks that run each function, in order of place."""
    return project.cached(("users",), _users, project)


def _users(project: Project) -> dict[Function, list[Block]]:
    found: dict[Function, list[Block]] = {}
    for block in own_calls(project):
        for function in dict.fromkeys(body.function for body in project.flow(block.info).bodies):
            found.setdefault(function, []).append(block)
    return found


def leaf_accesses(project: Project, root: str) -> Iterator[tuple[Block, Access]]:
    """Uses of direct attributes of ``root`` in what blocks run, where pipelines' own code is left out."""
    for block in own_calls(project):
        for access in project.flow(block.info).of(root):
            if access.body.owner is None or not access.body.owner.is_pipeline:
                yield block, access
