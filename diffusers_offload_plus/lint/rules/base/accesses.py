"""Questions about the uses of attributes: who runs them, whether they are guarded, whether they are undone."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...project.blocks import Block
from ...project.body import Access
from ...project.project import Project, once
from ...reading.nodes import Function, is_call_of, literal
from ...reading.source import Source
from .scope import own_calls

__all__ = [
    "by_place",
    "catches_attribute_error",
    "is_guarded",
    "is_restored",
    "is_restoring",
    "relatives_agree",
]


def _leaf_accesses(project: Project, root: str) -> Iterator[tuple[Block, Access]]:
    """The uses of attributes of ``root`` in what blocks run, with the block; methods of pipelines are left out."""
    for block in own_calls(project):
        for access in project.flow(block.info).of(root):
            if not access.body.in_pipeline:
                yield block, access


def by_place(project: Project, root: str, *kinds: str) -> Iterator[tuple[Access, list[Block]]]:
    """Accesses to attributes of ``root``, each with all blocks that run it."""
    return ((access, blocks) for access, blocks in _places(project, root) if access.kind in kinds)


@once
def _places(project: Project, root: str) -> list[tuple[Access, list[Block]]]:
    found: dict[ast.AST, tuple[Access, list[Block]]] = {}
    for block, access in _leaf_accesses(project, root):
        found.setdefault(access.node, (access, []))[1].append(block)
    return list(found.values())


def relatives_agree(blocks: list[Block], broken: list[Block]) -> Block | None:
    """The first block in ``broken`` of which no base class and no subclass in ``blocks`` keeps the rule."""
    kept = [block for block in blocks if block not in broken]
    for block in broken:
        if not any(other.info in block.info.mro or block.info in other.info.mro for other in kept):
            return block
    return None


def catches_attribute_error(handler: ast.ExceptHandler) -> bool:
    """Whether an ``except`` clause names ``AttributeError``."""
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(name, ast.Name) and name.id == "AttributeError" for name in names)


def is_guarded(access: Access) -> bool:
    """Whether a read happens only after ``hasattr`` of the same name, or under ``try``."""
    for ancestor in access.source.ancestors(access.node):
        if isinstance(ancestor, Function):
            return False
        if isinstance(ancestor, ast.Try):
            return any(catches_attribute_error(handler) for handler in ancestor.handlers)
        if isinstance(ancestor, ast.If | ast.IfExp | ast.BoolOp):
            test = ancestor if isinstance(ancestor, ast.BoolOp) else ancestor.test
            if any(_asks_for(node, access.name) for node in access.source.below(test)):
                return True
    return False


def _asks_for(node: ast.AST, name: str) -> bool:
    """Whether ``node`` is ``hasattr(..., name)``."""
    return is_call_of(node, "hasattr", 2) and literal(node.args[1]) == name


def is_restoring(access: Access) -> bool:
    """Whether a write puts back what was read from the same place before."""
    value = access.value
    if not isinstance(value, ast.Name):
        return False
    return any(
        any(isinstance(target, ast.Name) and target.id == value.id for target in node.targets)
        and node.lineno < access.node.lineno
        and access.place in access.body.places(node.value)
        for node in access.body.of(ast.Assign)
    )


def is_restored(access: Access) -> bool:
    """Whether a write happens under, or right before, a ``try`` whose ``finally`` writes the same place."""
    statement = access.source.statement(access.node)
    for node in access.body.of(ast.Try):
        if not node.finalbody:
            continue
        inside = any(access.source.is_inside(access.node, child) for child in node.body)
        before = _next_statement(access.source, statement) is node
        if not inside and not before:
            continue
        written = [inner for child in node.finalbody for inner in access.source.within(child, ast.Attribute)]
        if any(
            isinstance(inner.ctx, ast.Store)
            and access.place in {(*p, inner.attr) for p in access.body.places(inner.value)}
            for inner in written
        ):
            return True
    return False


def _next_statement(source: Source, statement: ast.AST) -> ast.AST | None:
    parent = source.parent(statement)
    for field in ("body", "orelse", "finalbody"):
        body = getattr(parent, field, None)
        if isinstance(body, list) and statement in body:
            index = body.index(statement)
            return body[index + 1] if index + 1 < len(body) else None
    return None
