"""Rules about the pipeline state: blocks write to it and read from it through what they declare only."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Dotted, function_called, literal
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import own_calls

__all__ = ["StateRead", "StateSet"]


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


class StateRead(Rule):
    """A block reads a value from the pipeline state itself instead of from its block state."""

    code = "MOD047"
    name = "state-read"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        seen: set[ast.AST] = set()
        for block in own_calls(project):
            declared = block.declared("inputs", anywhere=True).names
            for body in project.flow(block.info).bodies:
                if body.in_pipeline or not body.knows("state"):
                    continue
                for node, names in _reads(body):
                    if node in seen:
                        continue
                    seen.add(node)
                    what = ", ".join(f"`{name}`" for name in sorted(names))
                    hint = "read it from the block state" if names <= declared else "declare an input"
                    message = f"{block.name} reads {what} from the pipeline state: {hint}"
                    yield from report(self, body.source, node, message)


def _reads(body: Body) -> Iterator[tuple[ast.expr, set[str]]]:
    """The places that read values from the pipeline state by name, with the names."""
    for node in body.of(ast.Call):
        if ("state", "get") in body.places(node.func) and isinstance(node.func, Dotted):
            names = literals(node.args[0] if node.args else None)
            if names:
                yield node, names
    for item in body.of(ast.Subscript):
        name = literal(item.slice)
        if name is not None and isinstance(item.ctx, ast.Load) and ("state", "values") in body.places(item.value):
            yield item, {name}
    for attribute in body.of(ast.Attribute):
        own = attribute.attr in _OF_STATES or attribute.attr.startswith("_")
        if not own and isinstance(attribute.ctx, ast.Load) and ("state",) in body.places(attribute.value):
            yield attribute, {attribute.attr}


_OF_STATES = {"get", "set", "values", "kwargs_mapping", "get_by_kwargs", "to_dict"}


def literals(node: ast.expr | None) -> set[str] | None:
    """The strings that an expression is, by itself or in a list; ``None`` if not all are known."""
    listed = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    found = [literal(one) for one in listed if one is not None]
    return {name for name in found if name is not None} if None not in found and found else None
