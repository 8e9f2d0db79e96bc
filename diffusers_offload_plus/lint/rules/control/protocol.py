"""Rule MOD020: every path through a block saves its state and returns components and state."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.blocks import Block
from ...project.body import Body
from ...project.flow import takes_block_state
from ...project.project import Project
from ...reading.nodes import Function, method_called
from ...resolution.modules import parameters
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import call_bodies

__all__ = ["StateProtocol"]


class StateProtocol(Rule):
    """A block returns without saving its block state, or returns something else than components and state."""

    code = "MOD020"
    name = "state-protocol"
    level = Level.ERROR
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for block, body in call_bodies(project):
            if block.info.is_assembled or len(body.function.args.args) < 3:
                continue
            step = block.kind == "leaf" and takes_block_state(body.function)
            paths = _Paths(project, block, body)
            paths.run(body.function.body, frozenset({False}))
            needs = not step and (paths.gets_state or bool(block.outputs.specs))
            for node, saved in paths.returns:
                problem = _wrong_return(node, body.function)
                if problem:
                    yield from report(self, body.source, node, f"{block.name} returns {problem}")
                elif needs and not saved and not isinstance(node.value, ast.Call):
                    message = f"{block.name} returns without `self.set_block_state(state, block_state)`"
                    fixable = node is body.function.body[-1] and _keeps_block_state(body)
                    yield from report(self, body.source, node, message, fixable=fixable)
            if paths.falls_through:
                yield from report(self, body.source, body.function, f"{block.name}.__call__ can end without a return")


def _keeps_block_state(body: Body) -> bool:
    """Whether the block state is in a variable called ``block_state`` by the end."""
    return any(
        isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and method_called(statement.value) == "get_block_state"
        for statement in body.function.body
    )


def _wrong_return(node: ast.Return, function: Function) -> str:
    """What a return statement returns wrongly; ``""`` if nothing is known to be wrong."""
    names = parameters(function)
    components, state = names[1], names[2]
    value = node.value
    if value is None or isinstance(value, ast.Constant):
        return "nothing instead of components and state"
    if isinstance(value, ast.Name) and value.id in (components, state):
        return f"`{value.id}` alone"
    if isinstance(value, ast.Tuple):
        if len(value.elts) != 2:
            return f"{len(value.elts)} values instead of components and state"
        first, second = value.elts
        if isinstance(first, ast.Name) and first.id in (state, "block_state", "state"):
            return f"`{first.id}` first instead of components"
        if isinstance(second, ast.Name) and second.id == components:
            return f"`{second.id}` second instead of the state"
        if isinstance(second, ast.Name) and second.id == "block_state" and state != "block_state":
            return "the block state instead of the state"
    return ""


_PLAIN = ast.Assign | ast.Expr | ast.AnnAssign | ast.AugAssign


class _Paths:
    """The paths through a function, with whether the state has been saved on each."""

    def __init__(self, project: Project, block: Block, body: Body) -> None:
        self._saving = self._saving_methods(project, block)
        self._source = body.source
        self._saves = [node for node in body.of(ast.Call) if method_called(node) in self._saving]
        self.returns: list[tuple[ast.Return, bool]] = []
        self.gets_state = any(method_called(node) == "get_block_state" for node in body.of(ast.Call))
        self.falls_through = False
        self._top = body.function.body

    def _saving_methods(self, project: Project, block: Block) -> set[str]:
        """Methods of the block that save the state."""
        names = {"set_block_state"}
        for info in block.info.mro:
            if info.source.in_framework:
                break
            for name, member in info.members.items():
                if not isinstance(member, ast.FunctionDef) or name == "__call__":
                    continue
                if any(method_called(node) == "set_block_state" for node in info.source.within(member, ast.Call)):
                    names.add(name)
        return names

    def run(self, statements: list[ast.stmt], saved: frozenset[bool]) -> frozenset[bool]:
        """The possible answers to whether the state is saved after ``statements``; empty if they never end."""
        top = statements is self._top
        for statement in statements:
            saved = self._statement(statement, saved)
            if not saved:
                return saved
        self.falls_through = self.falls_through or (top and bool(saved))
        return saved

    def _statement(self, node: ast.stmt, saved: frozenset[bool]) -> frozenset[bool]:
        nothing: frozenset[bool] = frozenset()
        if isinstance(node, _PLAIN):
            return frozenset({True}) if self._saves_in(node) else saved
        if isinstance(node, ast.Return):
            done = self._saves_in(node)
            self.returns.append((node, done or saved == frozenset({True})))
            return nothing
        if isinstance(node, ast.Raise | ast.Continue | ast.Break):
            return nothing if isinstance(node, ast.Raise) else saved
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return saved
        if isinstance(node, ast.If):
            return self.run(node.body, saved) | self.run(node.orelse, saved)
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            return saved | self.run(node.body, saved) | self.run(node.orelse, saved)
        if isinstance(node, ast.With | ast.AsyncWith):
            return self.run(node.body, saved)
        if isinstance(node, ast.Try | ast.TryStar):
            after = self.run([*node.body, *node.orelse], saved)
            for handler in node.handlers:
                after |= self.run(handler.body, saved)
            if not node.finalbody:
                return after
            ended = self.run(node.finalbody, after or saved)
            return ended if after else nothing
        if isinstance(node, ast.Match):
            after = saved
            for case in node.cases:
                after |= self.run(case.body, saved)
            return after
        return frozenset({True}) if self._saves_in(node) else saved

    def _saves_in(self, node: ast.AST) -> bool:
        return any(self._source.is_inside(call, node) for call in self._saves)
