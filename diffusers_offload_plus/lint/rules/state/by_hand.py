"""Rule MOD045: blocks are put together, not run by other blocks with a state made by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.values import Instance
from ...project.body import BLOCK_STATE, SELF, STATE, Body
from ...project.project import Project
from ...reading.nodes import Dotted, Listing
from ...reading.source import FRAMEWORK_PACKAGE
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions

__all__ = ["BlockByHand"]


class BlockByHand(Rule):
    """A block makes another block and runs it with a state that is not the pipeline's."""

    code = "MOD045"
    name = "block-by-hand"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for body in functions(project):
            for node in body.of(ast.Call):
                name = "" if body.in_pipeline else _block(project, body, node.func)
                if name and _is_by_hand(body, _state(node)):
                    message = f"runs {name} with a state made by hand: put both blocks into a sequence"
                    yield from report(self, body.source, node, message)


def _block(project: Project, body: Body, node: ast.expr, hops: int = 2) -> str:
    """The name of the block that ``node`` is an instance of, else ``""``."""
    if isinstance(node, ast.Call):
        return _block_class(project, body, node.func)
    if isinstance(node, ast.Attribute) and SELF in body.places(node.value):
        if body.owner is None or not body.owner.is_block:
            return ""
        value = project.evaluator.attribute(project.block(body.owner).instance, node.attr)
        return value.info.name if isinstance(value, Instance) and value.info.kind else ""
    if isinstance(node, ast.Name) and hops:
        values = (value for value in _bound(body, node.id) if isinstance(value, ast.Call | ast.Attribute))
        return next(filter(None, (_block(project, body, value, hops - 1) for value in values)), "")
    return ""


def _block_class(project: Project, body: Body, node: ast.expr) -> str:
    found = project.classes.named(body.source, node, body.function) if isinstance(node, Dotted) else None
    if isinstance(found, ClassInfo):
        return found.name if found.kind else ""
    known = isinstance(found, str) and found.startswith(FRAMEWORK_PACKAGE + ".") and found.endswith(("Step", "Blocks"))
    return str(found).rpartition(".")[2] if known else ""


def _state(node: ast.Call) -> ast.expr | None:
    """What a block is called with as its state."""
    named = next((word.value for word in node.keywords if word.arg == "state"), None)
    return node.args[1] if len(node.args) > 1 and not isinstance(node.args[0], ast.Starred) else named


def _is_by_hand(body: Body, node: ast.expr | None) -> bool:
    """Whether a state has been made here, and is not the one that this block runs with."""
    if node is None or {STATE, BLOCK_STATE} & set(body.places(node)):
        return False
    if isinstance(node, ast.Name):
        return any(isinstance(value, ast.Call) for value in _bound(body, node.id))
    return isinstance(node, ast.Call)


def _bound(body: Body, name: str) -> Iterator[ast.expr]:
    """What a local name is bound to, by itself or as one of several."""
    for node in body.of(ast.Assign):
        for target in node.targets:
            names = target.elts if isinstance(target, Listing) else [target]
            if any(isinstance(one, ast.Name) and one.id == name for one in names):
                yield node.value
