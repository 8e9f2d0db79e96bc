"""Rule MOD019: defaults are declared, not filled in by ``__call__``."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.values import Constant, Items, Spec, Value
from ...project.blocks import Block
from ...project.body import SELF, Body
from ...project.project import Project
from ...reading.nodes import Dotted, Function, function_called, method_called
from ..base.declared import triggers
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
            inputs = block.declared("inputs", anywhere=True)
            for body in project.flow(block.info).bodies:
                if body.in_pipeline:
                    continue
                for fallback in fallbacks(project, block, body):
                    if fallback.name not in inputs.names or fallback.node in seen:
                        continue
                    message = _message(fallback, inputs.named(fallback.name))
                    if message:
                        seen.add(fallback.node)
                        fixable = "declare" in message and _is_movable(project, block, body, fallback)
                        yield from report(self, body.source, fallback.node, message, fixable=fixable)


@dataclasses.dataclass(frozen=True)
class Fallback:
    """A place that fills in a default.

    Attributes:
        name: the input; ``value``, ``known``: the default, as it is written and worked out.
        on_none: whether it replaces ``None`` alone, and not whatever counts as false.
    """

    node: ast.AST
    name: str
    value: ast.expr
    known: Value
    on_none: bool


def _message(fallback: Fallback, specs: list[Spec]) -> str:
    """What to say about a fallback beside what is declared; ``""`` for nothing."""
    name, shown = fallback.name, ast.unparse(fallback.value)
    if not all(spec.known("default") for spec in specs):
        return ""
    declared = [spec.constant("default") for spec in specs]
    if all(default is None for default in declared):
        return f"`{name}` falls back on {shown} here: declare the default"
    if any(default is None for default in declared) or not fallback.on_none:
        return ""  # it has a use for some of the declarations, or for what counts as false
    value = fallback.known.value if isinstance(fallback.known, Constant) else None
    if all(type(default) is type(value) and default == value for default in declared):
        return f"`{name}` has the default {shown} already: this fallback is dead"
    return f"`{name}` falls back on {shown} here, but its declared default is {declared[0]!r}, which comes first"


def fallbacks(project: Project, block: Block, body: Body) -> Iterator[Fallback]:
    """The places of a function that fill in a fixed default of an input."""
    for node, name, value, on_none in _candidates(body):
        known = _fixed(project, block, body, value)
        if known is None or _is_blank(known) or (not on_none and _is_empty(known)):
            continue
        yield Fallback(node, name, value, known, on_none)


def _candidates(body: Body) -> Iterator[tuple[ast.AST, str, ast.expr, bool]]:
    """Places that choose between an input and something else: node, input, the other value, whether on None alone."""
    for node in body.of(ast.If, ast.BoolOp, ast.IfExp):
        if isinstance(node, ast.If):
            name, on_none = _absent(body, node.test)
            assign = _only_assignment(node.body)
            if not name or assign is None:
                continue
            target = assign.targets[0]
            if isinstance(target, Dotted) and not node.orelse and _input_of(body, target) == name:
                yield assign, name, assign.value, on_none
            elif (other := _only_assignment(node.orelse)) is not None:
                same = ast.dump(other.targets[0]) == ast.dump(target)
                if same and _input_of(body, other.value) == name:
                    yield assign, name, assign.value, on_none
        elif isinstance(node, ast.BoolOp):
            if isinstance(node.op, ast.Or) and len(node.values) == 2 and (name := _input_of(body, node.values[0])):
                yield node, name, node.values[1], False
        elif isinstance(node, ast.IfExp):
            (name, on_none), given, default = _absent(body, node.test), node.orelse, node.body
            if not name:
                (name, on_none), given, default = _present(body, node.test), node.body, node.orelse
            if name and _input_of(body, given) == name:
                yield node, name, default, on_none


def _only_assignment(statements: list[ast.stmt]) -> ast.Assign | None:
    """The assignment that, beside messages to the log, is all of ``statements``."""
    others = [one for one in statements if not (isinstance(one, ast.Expr) and _is_message(one.value))]
    if len(others) == 1 and isinstance(others[0], ast.Assign) and len(others[0].targets) == 1:
        return others[0]
    return None


def _is_message(node: ast.expr) -> bool:
    logged = method_called(node) in ("info", "warning", "debug", "warning_once", "warn")
    return logged or function_called(node) == "print"


def _absent(body: Body, test: ast.expr) -> tuple[str, bool]:
    """The input whose absence ``test`` asks for, else ``""``; and whether it asks for None alone."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _input_of(body, test.operand), False
    return _compared_with_none(body, test, (ast.Is, ast.Eq)), True


def _present(body: Body, test: ast.expr) -> tuple[str, bool]:
    """The input whose presence ``test`` asks for, else ``""``; and whether it asks for anything but None."""
    if name := _compared_with_none(body, test, (ast.IsNot, ast.NotEq)):
        return name, True
    return _input_of(body, test), False


def _compared_with_none(body: Body, test: ast.expr, operators: tuple[type[ast.cmpop], ...]) -> str:
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], operators):
        return ""
    for one, other in ((test.left, test.comparators[0]), (test.comparators[0], test.left)):
        if isinstance(other, ast.Constant) and other.value is None:
            return _input_of(body, one)
    return ""


def _is_movable(project: Project, block: Block, body: Body, fallback: Fallback) -> bool:
    """Whether the default can move to the declaration without a change for any block in sight."""
    node, name, value = fallback.node, fallback.name, fallback.value
    if not isinstance(node, ast.Assign) or body.owner is not block.info or body.function.name != "__call__":
        return False
    condition = body.source.parent(node)
    if not isinstance(condition, ast.If) or condition not in body.function.body or len(condition.body) > 1:
        return False
    if not fallback.on_none or (not isinstance(value, ast.Constant) and not _is_literal(value)):
        return False
    specs = [spec for spec in block.own("inputs") if spec.name == name]
    if len(specs) != 1 or not _takes_default(block, specs[0]):
        return False
    uses = [inner for inner in body.of(ast.Name, ast.Attribute) if isinstance(inner, Dotted)]
    first = min((use.lineno for use in uses if ("block_state", name) in body.places(use)), default=0)
    return first == condition.test.lineno and _is_theirs(project, body.function, specs[0])


def _is_theirs(project: Project, function: Function, spec: Spec) -> bool:
    """Whether the blocks that run ``function`` are exactly those for which ``spec`` declares the input.

    An heir that declares the input anew would lose the default, one with a ``__call__`` of its own would get it.
    """
    for other in own_calls(project):
        runs = any(body.function is function for body in project.flow(other.info).bodies)
        named = other.declared("inputs", anywhere=True).named(spec.name or "")
        declares = any(one.call is spec.call for one in named)
        if runs != declares or (runs and len(named) != 1):
            return False
    # An input that selects a block would be given from the start.
    return not any(spec.name in triggers(project, group) for group in {source.group for source in project.sources})


def _takes_default(block: Block, spec: Spec) -> bool:
    inside = spec.source is block.source and block.source.is_inside(spec.call, block.info.node)
    if not inside or spec.open or spec.constant("required") or spec.constant("default") is not None:
        return False
    if any(isinstance(ancestor, ast.comprehension | ast.For) for ancestor in block.source.ancestors(spec.call)):
        return False
    return "default" not in spec.given and all(keyword.arg for keyword in spec.call.keywords)


def _input_of(body: Body, node: ast.expr) -> str:
    """The name of the block state's attribute that an expression reads, else ``""``."""
    if not isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
        return ""
    for place in sorted(body.places(node)):
        if place[0] == "block_state" and len(place) == 2:
            return place[1]
    return ""


def _fixed(project: Project, block: Block, body: Body, node: ast.expr) -> Value | None:
    """The value of an expression that is the same whatever components and inputs are; ``None`` for any other."""
    if isinstance(node, ast.Attribute) and SELF in body.places(node.value):
        member = block.info.find(node.attr)  # a constant of the class, which no method assigns
        known = project.evaluator.attribute(block.instance, node.attr)
        plain = member is not None and not isinstance(member[1], ast.stmt)
        plain = plain and node.attr not in block.instance.attributes
        return known if plain and _is_constant(known) else None
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call | ast.Lambda | ast.IfExp | ast.BoolOp | ast.JoinedStr):
            return None
        if isinstance(inner, ast.Name) and (body.places(inner) or _is_local(body, inner.id)):
            return None
    known = project.evaluator.expression(body.source, node, body.function)
    return known if _is_constant(known) else None


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


def _is_empty(value: Value) -> bool:
    return (isinstance(value, Constant) and not value.value) or (isinstance(value, Items) and not value.items)


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Tuple) and all(isinstance(item, ast.Constant) for item in node.elts)
