"""Rule MOD019: defaults are declared, not filled in by ``__call__``."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.values import Constant, Items, Spec, Value
from ...project.blocks import Block
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Dotted
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import own_calls

__all__ = ["DefaultInCall"]


class DefaultInCall(Rule):
    """A fixed default of an input is filled in by `__call__` instead of being declared."""

    code = "MOD019"
    name = "default-in-call"
    level = Level.WARNING
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        seen: set[ast.AST] = set()
        for block in own_calls(project):
            if block.info.is_assembled:
                continue
            inputs = block.declared("inputs", anywhere=True).names
            for body in project.flow(block.info).bodies:
                if body.in_pipeline:
                    continue
                for node, name, value in self._defaults(project, body):
                    if name in inputs and node not in seen:
                        seen.add(node)
                        message = f"`{name}` falls back on {ast.unparse(value)} here: declare the default"
                        fixable = self._is_movable(block, body, node, name, value)
                        yield from report(self, body.source, node, message, fixable=fixable)

    def _defaults(self, project: Project, body: Body) -> Iterator[tuple[ast.AST, str, ast.expr]]:
        """The places that fill in a default: the node, the name of the input, the default."""
        for node in body.of(ast.If, ast.BoolOp, ast.IfExp):
            if isinstance(node, ast.If) and len(node.body) == 1 and not node.orelse:
                name = _tested_for_none(body, node.test)
                assign = node.body[0]
                if name and isinstance(assign, ast.Assign) and len(assign.targets) == 1:
                    target = assign.targets[0]
                    written = _input_of(body, target) if isinstance(target, Dotted) else ""
                    if written == name and self._is_default(project, body, assign.value):
                        yield assign, name, assign.value
            elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) and len(node.values) == 2:
                name = _input_of(body, node.values[0])
                default = node.values[1]
                if name and self._is_default(project, body, default) and not _is_empty(project, body, default):
                    yield node, name, node.values[1]
            elif isinstance(node, ast.IfExp):
                given, default = node.orelse, node.body
                name = _tested_for_none(body, node.test)
                if not name:
                    name, (given, default) = _tested_for_none(body, node.test, ast.IsNot), (node.body, node.orelse)
                if name and _input_of(body, given) == name and self._is_default(project, body, default):
                    yield node, name, default

    def _is_default(self, project: Project, body: Body, node: ast.expr) -> bool:
        return is_fixed(project, body, node) and not _is_blank(_value(project, body, node))

    def _is_movable(self, block: Block, body: Body, node: ast.AST, name: str, value: ast.expr) -> bool:
        """Whether the default can move to the declaration: in the same class, and no read of the input before."""
        if not isinstance(node, ast.Assign) or body.owner is not block.info or body.function.name != "__call__":
            return False
        condition = body.source.parent(node)
        if not isinstance(condition, ast.If) or condition not in body.function.body:
            return False
        if not isinstance(value, ast.Constant) and not _is_literal(value):
            return False
        specs = [spec for spec in block.own("inputs") if spec.name == name]
        if len(specs) != 1 or not self._takes_default(block, specs[0]):
            return False
        uses = [inner for inner in body.of(ast.Name, ast.Attribute) if isinstance(inner, Dotted)]
        first = min((use.lineno for use in uses if ("block_state", name) in body.places(use)), default=0)
        return first == condition.test.lineno

    def _takes_default(self, block: Block, spec: Spec) -> bool:
        inside = spec.source is block.source and block.source.is_inside(spec.call, block.info.node)
        if not inside or spec.open or spec.constant("required") or spec.constant("default") is not None:
            return False
        if any(isinstance(ancestor, ast.comprehension | ast.For) for ancestor in block.source.ancestors(spec.call)):
            return False
        return "default" not in spec.given and all(keyword.arg for keyword in spec.call.keywords)


def _tested_for_none(body: Body, test: ast.expr, operator: type[ast.cmpop] = ast.Is) -> str:
    """The name of the input that ``test`` compares with None, else ``""``."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], operator):
        other = test.comparators[0]
        if isinstance(other, ast.Constant) and other.value is None:
            return _input_of(body, test.left)
    return ""


def _input_of(body: Body, node: ast.expr) -> str:
    """The name of the block state's attribute that an expression reads, else ``""``."""
    if not isinstance(node, ast.Name | ast.Attribute | ast.Call):
        return ""
    for place in sorted(body.places(node)):
        if place[0] == "block_state" and len(place) == 2:
            return place[1]
    return ""


def is_fixed(project: Project, body: Body, node: ast.expr) -> bool:
    """Whether a value is the same whatever components and inputs are: a literal, or a name of the module for one."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call | ast.Lambda | ast.IfExp | ast.BoolOp | ast.JoinedStr):
            return False
        if isinstance(inner, ast.Name) and (body.places(inner) or _is_local(body, inner.id)):
            return False
    return _is_constant(_value(project, body, node))


def _value(project: Project, body: Body, node: ast.expr) -> Value:
    return project.evaluator.expression(body.source, node, body.function)


def _is_local(body: Body, name: str) -> bool:
    return any(node.id == name and isinstance(node.ctx, ast.Store) for node in body.of(ast.Name))


def _is_constant(value: Value) -> bool:
    if isinstance(value, Items):
        return not value.open and all(_is_constant(item) for item in value.items)
    return isinstance(value, Constant) and value.value is not None


def _is_blank(value: Value) -> bool:
    """Whether a value is an empty text or a list of empty texts, which encoders use for a prompt that is not given."""
    if isinstance(value, Items):
        return bool(value.items) and all(_is_blank(item) for item in value.items)
    return isinstance(value, Constant) and isinstance(value.value, str) and not value.value.strip()


def _is_empty(project: Project, body: Body, node: ast.expr) -> bool:
    value = _value(project, body, node)
    return (isinstance(value, Constant) and not value.value) or (isinstance(value, Items) and not value.items)


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Tuple) and all(isinstance(item, ast.Constant) for item in node.elts)
