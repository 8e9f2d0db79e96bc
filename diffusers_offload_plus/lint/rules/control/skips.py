"""Rules about blocks that skip their work: without an input, or for an output format."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.blocks import Block
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Dotted, Listing, literal, method_called
from ..base.declared import in_loop
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import call_bodies, functions

__all__ = ["LatentOutputBranch", "NoopSkip"]


def is_presence_test(body: Body, node: ast.expr, inputs: frozenset[str]) -> bool:
    """Whether a condition only asks whether inputs are there, or are true."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return is_presence_test(body, node.operand, inputs)
    if isinstance(node, ast.BoolOp):
        return all(is_presence_test(body, value, inputs) for value in node.values)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = node.comparators[0]
        if isinstance(node.ops[0], ast.Is | ast.IsNot | ast.Eq | ast.NotEq) and isinstance(other, ast.Constant):
            fixed = other.value is None or isinstance(other.value, bool)
            return fixed and is_presence_test(body, node.left, inputs)
        return False
    if isinstance(node, ast.Name | ast.Attribute | ast.Call):
        return any(place[0] == "block_state" and len(place) == 2 and place[1] in inputs for place in body.places(node))
    return False


class NoopSkip(Rule):
    """A leaf block does nothing unless an input is given."""

    code = "MOD015"
    name = "noop-skip"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for block, body in call_bodies(project):
            if block.kind != "leaf" or in_loop(project, block) or project.loops_of(block):
                continue
            inputs = block.inputs.names
            for node in self._early_returns(body, inputs):
                gate = self._gate(project, block)
                yield from report(self, body.source, node, f"{block.name} returns early without an input{gate}")
            whole = self._whole_body(body, inputs)
            if whole is not None:
                gate = self._gate(project, block)
                yield from report(self, body.source, whole, f"{block.name} does nothing without an input{gate}")

    def _early_returns(self, body: Body, inputs: frozenset[str]) -> Iterator[ast.Return]:
        statements = _flat(body.function.body)
        for index, statement in enumerate(statements[:-1]):
            if isinstance(statement, ast.If) and is_presence_test(body, statement.test, inputs):
                last = statement.body[-1]
                idle = all(_is_idle(item) for item in statement.body[:-1])
                before = all(_is_preparation(body, item) for item in statements[:index])
                if isinstance(last, ast.Return) and idle and before:
                    yield last

    def _whole_body(self, body: Body, inputs: frozenset[str]) -> ast.If | None:
        work = [
            statement
            for statement in _flat(body.function.body)
            if not _is_preparation(body, statement)
            and not _is_idle(statement)
            and not isinstance(statement, ast.Return)
        ]
        if len(work) != 1 or not isinstance(work[0], ast.If) or work[0].orelse:
            return None
        condition = work[0]
        if not is_presence_test(body, condition.test, inputs) or isinstance(
            condition.body[-1], ast.Raise | ast.Return
        ):
            return None
        asked = {
            place for node in ast.walk(condition.test) if isinstance(node, ast.expr) for place in body.places(node)
        }
        for node in [inner for statement in condition.body for inner in ast.walk(statement)]:
            stored = isinstance(node, Dotted) and isinstance(node.ctx, ast.Store)
            if stored and asked & body.places(node) and _asks_for_none(condition.test):  # type: ignore[arg-type]
                return None
        return condition

    def _gate(self, project: Project, block: Block) -> str:
        for outer in project.assemblies.get(block.info, ()):
            if outer.info.selects:
                return f"; {outer.name} already selects it"
        return "; select it with an AutoPipelineBlocks"


def _asks_for_none(test: ast.expr) -> bool:
    return (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Is)) or isinstance(test, ast.UnaryOp)


def _is_idle(statement: ast.stmt) -> bool:
    """Whether a statement does no work: it saves the state, logs, or sets something to a fixed value."""
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Expr):
        call = statement.value
        if isinstance(call, ast.Constant):
            return True
        return method_called(call) in ("set_block_state", "info", "warning", "debug", "warning_once")
    if isinstance(statement, ast.Assign):
        value = statement.value
        return isinstance(value, ast.Constant) or (
            isinstance(value, ast.List | ast.Tuple | ast.Dict) and not ast.unparse(value).strip("[](){}")
        )
    return False


def _flat(statements: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a function, with those under ``try`` and ``finally`` as if they stood there alone."""
    found: list[ast.stmt] = []
    for one in statements:
        plain = isinstance(one, ast.Try) and not one.handlers and not one.orelse
        found += [*_flat(one.body), *_flat(one.finalbody)] if plain and isinstance(one, ast.Try) else [one]
    return found


def _is_preparation(body: Body, statement: ast.stmt) -> bool:
    """Whether a statement only gives a name to something that is there already."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.AnnAssign):
        targets: list[ast.expr] = [statement.target]
    else:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
    value = getattr(statement, "value", None)
    names = [one for target in targets for one in (target.elts if isinstance(target, Listing) else [target])]
    if value is None or not names or not all(isinstance(name, ast.Name) for name in names):
        return False
    return all(_is_there(body, one) for one in (value.elts if isinstance(value, Listing) else [value]))


def _is_there(body: Body, node: ast.expr) -> bool:
    """Whether an expression is a name, an attribute or a constant, or a state that a call hands out or back."""
    if isinstance(node, ast.Call):
        return any(len(place) == 1 for place in body.places(node))
    return isinstance(node, ast.Name | ast.Attribute | ast.Constant)


class LatentOutputBranch(Rule):
    """A decoder branches on `output_type == "latent"`."""

    code = "MOD037"
    name = "latent-output-branch"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        for body in functions(project):
            for node in body.of(ast.Compare):
                if len(node.ops) != 1:
                    continue
                sides = [node.left, node.comparators[0]]
                latent = any(literal(side) == "latent" for side in sides)
                if latent and any(self._is_output_type(body, side) for side in sides):
                    yield from report(self, body.source, node, 'branches on `output_type == "latent"`')

    def _is_output_type(self, body: Body, node: ast.expr) -> bool:
        if ("block_state", "output_type") in body.places(node):
            return True
        return isinstance(node, ast.Name) and node.id == "output_type"
