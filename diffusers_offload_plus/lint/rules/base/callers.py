"""Questions about who calls a function: a fix must keep the meaning for every caller and heir in sight."""

from __future__ import annotations

import ast

from ...project.body import Body
from ...project.project import Project, once
from ...reading.nodes import Function, name_of, passed
from .scope import own_calls

__all__ = ["called_by_blocks_only"]


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
