"""The functions that rules look into: those of blocks, of pipelines and of what stands beside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...project.blocks import Block
from ...project.body import Body, Place
from ...project.flow import entry_roles
from ...project.project import Project, once
from ...reading.nodes import AnyFunction, Function, name_of, passed
from ...reading.source import Source
from ...resolution.classes import ClassInfo
from ...resolution.modules import parameters

__all__ = ["call_bodies", "called_by_blocks_only", "functions", "is_encoder", "own_calls", "users"]

ENCODER_FILES = {"encoders", "before_encoder"}


@once
def functions(project: Project) -> list[Body]:
    """Methods of blocks and pipelines, functions beside blocks or called by them, each with its inner functions."""
    return [*_beside_blocks(project), *_called_elsewhere(project)]


def _called_elsewhere(project: Project) -> Iterator[Body]:
    """Functions of linted files without blocks that blocks call."""
    seen: set[ast.AST] = set()
    for block in own_calls(project):
        for body in project.flow(block.info).bodies:
            if body.owner is not None or not body.source.linted or body.function in seen:
                continue
            if not any(info.is_block for info in project.classes.of(body.source)):
                seen.add(body.function)
                yield body


def _beside_blocks(project: Project) -> Iterator[Body]:
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
            yield project.bodies.get(source, function, owner, _roles(owner, function))


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


@once
def own_calls(project: Project) -> list[Block]:
    """Blocks that define ``__call__`` or inherit one that is not the framework's, and do something in it."""
    return [block for block in project.blocks if block.info.call is not None and not _is_abstract(block.info.call[1])]


def _is_abstract(function: Function) -> bool:
    """Whether a function only says what those of heirs do: it is decorated so, or does nothing at all."""
    decorated = any("abstract" in ast.unparse(item) for item in function.decorator_list)
    plain = all(
        isinstance(one, ast.Pass) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in function.body
    )
    raises = isinstance(function.body[-1], ast.Raise) and "NotImplementedError" in ast.unparse(function.body[-1])
    return decorated or plain or (raises and len(function.body) <= 2)


@once
def users(project: Project) -> dict[Function, list[Block]]:
    """The blocks that run each function, in order of place."""
    found: dict[Function, list[Block]] = {}
    for block in own_calls(project):
        for function in dict.fromkeys(body.function for body in project.flow(block.info).bodies):
            found.setdefault(function, []).append(block)
    return found


def call_bodies(project: Project) -> Iterator[tuple[Block, Body]]:
    """The ``__call__`` of each block that defines one itself."""
    for block in own_calls(project):
        function = block.info.own_method("__call__")
        yield from ((block, body) for body in project.flow(block.info).bodies[:1] if body.function is function)


def called_by_blocks_only(project: Project, body: Body, root: str) -> bool:
    """Whether each call of a function in sight hands it the ``root`` of a block, such as its block state."""
    function = body.function
    if function.name == "__call__":
        return True
    seen = _handed(project, root).get(function, set())
    # Not seen is what code that is no block calls, what is called with something else, or handed on as a value.
    return all(node in seen for node in _mentions(project).get(function.name, ()))


@once
def _mentions(project: Project) -> dict[str, list[ast.AST]]:
    """Every place of the linted files where something is used by a name, by that name."""
    found: dict[str, list[ast.AST]] = {}
    for source in project.sources:
        named: list[ast.Attribute | ast.Name] = [*source.nodes(ast.Attribute), *source.nodes(ast.Name)]
        for node in named:
            if isinstance(node.ctx, ast.Load):
                found.setdefault(name_of(node), []).append(node)
    return found


@once
def _handed(project: Project, root: str) -> dict[Function, set[ast.AST]]:
    """For each function, what is called in the calls of blocks that hand ``root`` over."""
    found: dict[Function, set[ast.AST]] = {}
    for block in own_calls(project):
        flow = project.flow(block.info)
        reached = {body.function for body in flow.bodies}
        for body in flow.bodies:
            for call in body.of(ast.Call):
                if not any((root,) in body.places(value) for value in passed(call)):
                    continue
                for function in reached:
                    if function.name == name_of(call.func):
                        found.setdefault(function, set()).add(call.func)
    return found
