"""Rule MOD014: blocks write to the pipeline state through declared outputs only."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Dotted, function_called
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import own_calls

__all__ = ["StateSet"]


class StateSet(Rule):
    """A block writes to the pipeline state directly."""

    code = "MOD014"
    name = "state-set"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        seen: set[ast.AST] = set()
        for body in dict.fromkeys(body for block in own_calls(project) for body in project.flow(block.info).bodies):
            if not body.knows("state") or body.in_pipeline:
                continue
            for node in body.of(ast.Call, ast.Attribute, ast.Subscript):
                if node not in seen and self._writes(body, node):
                    seen.add(node)
                    message = "writes to the pipeline state: declare an output and use set_block_state"
                    yield from report(self, body.source, node, message)

    def _writes(self, body: Body, node: ast.expr) -> bool:
        places = body.places
        state = ("state",)
        if isinstance(node, ast.Call):
            found = places(node.func)
            held = isinstance(node.func, Dotted)
            if held and any(place in (("state", "set"), ("state", "__setattr__")) for place in found):
                return True
            changing = ("update", "pop", "setdefault", "clear", "popitem")
            if any(len(place) == 3 and place[:2] in _DICTS and place[2] in changing for place in found):
                return True
            setter = function_called(node) in ("setattr", "delattr")
            return setter and bool(node.args) and state in places(node.args[0])
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            return state in places(node.value)
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            return any(place in _DICTS for place in places(node.value))
        if isinstance(node, ast.Attribute) and node.attr == "set" and state in places(node.value):
            parent = body.source.parent(node)
            return isinstance(parent, ast.Call) and parent.func is not node
        return False


_DICTS = (("state", "values"), ("state", "kwargs_mapping"), ("state", "__dict__"))
