"""Rule MOD045: blocks are put together, not run by other blocks with a state made by hand."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from ...core.finding import Finding, Level
from ...project.body import STATE, Body
from ...project.project import Project
from ...reading.nodes import Dotted, name_of, passed
from ...reading.source import FRAMEWORK_PACKAGE
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions

__all__ = ["BlockByHand"]


class BlockByHand(Rule):
    """A block makes another block and runs it with a state that it makes by hand."""

    code = "MOD045"
    name = "block-by-hand"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for body in functions(project):
            states = _made(project, body, _is_state)
            if not states:
                continue
            blocks = _made(project, body, _is_block)
            for node in body.of(ast.Call):
                direct = isinstance(node.func, ast.Call) and _is_block(project, body, node.func.func)
                if not direct and name_of(node.func) not in blocks:
                    continue
                given = passed(node)
                by_hand = any(name_of(one) in states or _is_made(project, body, one) for one in given)
                if by_hand and not any(STATE in body.places(one) for one in given):
                    message = "runs another block with a state made by hand: put both into a sequence"
                    yield from report(self, body.source, node, message)


def _made(project: Project, body: Body, kind: Callable[[Project, Body, ast.expr], bool]) -> set[str]:
    """The local names and attributes that hold what a class of a ``kind`` makes; ``"?"`` for one without a name."""
    found = set()
    for node in body.of(ast.Call):
        if kind(project, body, node.func):
            parent = body.source.parent(node)
            targets = parent.targets if isinstance(parent, ast.Assign) else []
            found |= {name_of(target) for target in targets} or {"?"}
    return found


def _is_made(project: Project, body: Body, node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _is_state(project, body, node.func)


def _is_state(project: Project, body: Body, node: ast.expr) -> bool:
    dotted = project.dotted(body.source, node) if isinstance(node, Dotted) else None
    return (
        dotted is not None and dotted.startswith("diffusers.") and dotted.endswith((".PipelineState", ".BlockState"))
    )


def _is_block(project: Project, body: Body, node: ast.expr) -> bool:
    if not isinstance(node, Dotted):
        return False
    found = project.classes.named(body.source, node, body.function)
    if isinstance(found, ClassInfo):
        return bool(found.kind)
    return isinstance(found, str) and found.startswith(FRAMEWORK_PACKAGE + ".") and found.endswith(("Step", "Blocks"))
