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
from ..base.declared import declared_names
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import call_bodies
from .paths import Paths

__all__ = ["StateProtocol"]


class StateProtocol(Rule):
    """A block returns without saving its block state, writes to it later, or returns something else than it should."""

    code = "MOD020"
    name = "state-protocol"
    level = Level.ERROR
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for block, body in call_bodies(project):
            if block.info.is_assembled or len(body.function.args.args) < 3:
                continue
            step = block.kind == "leaf" and takes_block_state(body.function)
            paths = Paths(project, block.info, body)
            needs = not step and _has_to_save(project, block, paths)
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
            if not step:
                yield from self._lost(project, block, body, paths)

    def _lost(self, project: Project, block: Block, body: Body, paths: Paths) -> Iterator[Finding]:
        """Findings about declared values that are written once the state has been saved."""
        names, whole = declared_names(project, block)
        for access in project.flow(block.info).of("block_state", "write", "augment"):
            node = access.source.statement(access.node)
            if access.body is not body or not whole or access.name not in names:
                continue
            if body.source.function_of(access.node) is not body.function:
                continue
            if paths.saved_before(node) and not paths.saved_later(node) and not paths.saves(node):
                message = f"{block.name} writes `block_state.{access.name}` after saving the state: the value is lost"
                yield from report(self, body.source, node, message)


def _has_to_save(project: Project, block: Block, paths: Paths) -> bool:
    if block.kind == "iterative":  # its steps save what they write
        written = project.flow(block.info).of("block_state", "write", "augment")
        return bool(written or block.declared("loop_intermediate_outputs").specs)
    return paths.gets_state or bool(block.outputs.specs)


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
