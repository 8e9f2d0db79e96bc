"""Rules about the block state: blocks read and write what they declare, and read it plainly."""

from __future__ import annotations

import ast
import builtins
import keyword
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...project.blocks import Block
from ...project.body import BLOCK_STATE, Access
from ...project.flow import Flow
from ...project.project import Project
from ...reading.nodes import Function, is_call_of
from ...reading.source import Source
from ...resolution.classes import ClassInfo
from ...resolution.modules import parameters
from ..base.accesses import by_place, catches_attribute_error, is_guarded, relatives_agree
from ..base.declared import declared_names, in_loop, kept
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import called_by_blocks_only

__all__ = ["DefensiveRead", "UndeclaredRead", "UndeclaredWrite"]

_HANDOFF = "loop-handoff"


class DefensiveRead(Rule):
    """A block probes for an input or a component that it declares itself."""

    code = "MOD012"
    name = "defensive-read"
    level = Level.WARNING
    fixable = True
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        for root, what in (("block_state", "inputs"), ("components", "expected_components")):
            for access, blocks in by_place(project, root, "probe"):
                if not self._defensive(access):
                    continue
                if all(self._declares(block, what, access.name) for block in blocks):
                    noun = "an input" if root == "block_state" else "a component"
                    message = f"`{access.name}` is {noun} that the block declares: read `{root}.{access.name}`"
                    fixable = _none_default(access.node) and called_by_blocks_only(project, access.body, root)
                    yield from report(self, access.source, access.node, message, fixable=fixable)
            yield from self._caught(project, root, what)

    def _defensive(self, access: Access) -> bool:
        node = access.node
        return isinstance(node, ast.Call) and (access.by == "hasattr" or len(node.args) > 2 or bool(node.keywords))

    def _declares(self, block: Block, what: str, name: str) -> bool:
        return all(name in block.of_variant(index, what).names for index in range(len(block.variants)))

    def _caught(self, project: Project, root: str, what: str) -> Iterator[Finding]:
        """Findings about ``try: components.vae`` with ``except AttributeError``."""
        for access, blocks in by_place(project, root, "read"):
            if not access.body.of(ast.Try):
                continue
            previous: ast.AST = access.node
            for ancestor in access.source.ancestors(access.node):
                if isinstance(ancestor, Function):
                    break
                if isinstance(ancestor, ast.Try) and previous in ancestor.body and len(ancestor.body) == 1:
                    caught = any(catches_attribute_error(handler) for handler in ancestor.handlers)
                    plain = isinstance(previous, ast.Assign | ast.Expr) and previous.value is access.node
                    if caught and plain and all(self._declares(block, what, access.name) for block in blocks):
                        message = f"`{access.name}` is declared by the block and cannot be missing"
                        yield from report(self, access.source, access.node, message)
                previous = ancestor


def _none_default(node: ast.expr) -> bool:
    if not is_call_of(node, "getattr", 3):
        return False
    return len(node.args) == 3 and isinstance(node.args[2], ast.Constant) and node.args[2].value is None


class UndeclaredWrite(Rule):
    """A block writes a name to its block state that it declares neither as input nor as output."""

    code = "MOD013"
    name = "undeclared-write"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {_HANDOFF: Level.INFO}
    fixable = True
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        handed_on: set[tuple[Block, str]] = set()
        for access, blocks in by_place(project, "block_state", "write", "augment"):
            broken = [block for block in blocks if self._undeclared(project, block, access.name)]
            block = relatives_agree(blocks, broken)
            if block is None:
                continue
            kind = _HANDOFF if in_loop(project, block) else ""
            if kind and (block, access.name) in handed_on:
                continue  # the first place is enough for a value that only lives in the loop
            handed_on.add((block, access.name))
            message = f"{block.name} writes `block_state.{access.name}` without declaring it: the value is dropped"
            if kind:
                message = f"{block.name} hands `block_state.{access.name}` on within its loop without declaring it"
            node = access.source.statement(access.node)
            fixable = not kind and len(blocks) == 1 and can_be_local(project, block, access)
            yield from report(self, access.source, node, message, kind=kind, fixable=fixable)

    def _undeclared(self, project: Project, block: Block, name: str) -> bool:
        if block.kind not in ("leaf", "iterative"):
            return False  # what a loop's wrapper keeps for its steps
        names, whole = declared_names(project, block)
        return whole and name not in names


def can_be_local(project: Project, block: Block, access: Access) -> bool:
    """Whether ``block_state.name`` can become a local variable: it never leaves the function that writes it."""
    flow = project.flow(block.info)
    name, body = access.name, access.body
    if body.function.name != "__call__" or flow.escaped("block_state"):
        return False
    uses = [use for use in flow.of("block_state") if use.name == name]
    if any(use.body is not body or not isinstance(use.node, ast.Attribute) for use in uses):
        return False
    if any(use.kind == "delete" for use in uses) or uses[0].kind != "write":
        return False
    source = body.source
    if any(isinstance(use.node.value, ast.Name) is False for use in uses if isinstance(use.node, ast.Attribute)):
        return False
    functions = {source.function_of(use.node) for use in uses}
    if functions != {body.function}:
        return False
    taken = {node.id for node in body.of(ast.Name)} | set(parameters(body.function))
    taken |= {node.arg for node in body.of(ast.arg)}
    if name in taken or keyword.iskeyword(name) or hasattr(builtins, name):
        return False
    first = source.statement(uses[0].node)
    # A write inside a branch may not happen. Then a local variable would fail in another way than an attribute.
    return first in body.function.body


class UndeclaredRead(Rule):
    """A block reads a name from its block state that is neither declared nor written before."""

    code = "MOD031"
    name = "undeclared-read"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {_HANDOFF: Level.OFF}
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        for access, blocks in by_place(project, "block_state", "read", "augment"):
            if access.name.startswith("__") or access.name in ("as_dict",):
                continue
            broken = [block for block in blocks if self._unknown(project, block, access)]
            block = relatives_agree(blocks, broken)
            if block is None:
                continue
            kind = ""
            if in_loop(project, block) or block.kind == "loop":
                if self._provided_by_loop(project, block, access.name):
                    continue
                kind = "" if block.kind == "loop" else _HANDOFF
            message = f"{block.name} reads `block_state.{access.name}`, which it neither declares nor writes before"
            yield from report(self, access.source, access.node, message, kind=kind)

    def _unknown(self, project: Project, block: Block, access: Access) -> bool:
        names, whole = declared_names(project, block)
        inputs, outputs = (declared.names for declared in kept(block))
        if not whole or (access.name in names and access.name in inputs):
            return False
        if access.name in names and access.name not in outputs:
            return False  # tagged
        if is_guarded(access) or (access.by == "subscript" and access.name in outputs):
            return False  # a subscript of something that is not there gives None
        writes = [use for use in project.flow(block.info).of("block_state", "write") if use.name == access.name]
        dynamic = any(place == ("block_state",) for place, _, _ in project.flow(block.info).escapes)
        if dynamic or self._set_by_computed_name(project, block):
            return False
        return not any(_may_come_first(use, access) for use in writes)

    def _set_by_computed_name(self, project: Project, block: Block) -> bool:
        return any(BLOCK_STATE in body.computed("setattr") for body in project.flow(block.info).bodies)

    def _provided_by_loop(self, project: Project, block: Block, name: str) -> bool:
        loops = [loop for loop in project.loops_of(block) if loop.kind == "loop"] if block.kind == "leaf" else [block]
        if not loops:
            return True
        return all(self._provides(project, loop, name) for loop in loops)

    def _provides(self, project: Project, loop: Block, name: str) -> bool:
        names, whole = declared_names(project, loop)
        infos: list[ClassInfo] = [loop.info, *(instance.info for _, instance in loop.sub_blocks[0])]
        written = {use.name for info in infos for use in project.flow(info).of("block_state", "write")}
        unknown = not whole or not loop.sub_blocks[0] or not loop.sub_blocks[1]
        return name in names or name in written or unknown or any(map(self._escapes, map(project.flow, infos)))

    def _escapes(self, flow: Flow) -> bool:
        return flow.escaped("block_state") or any(BLOCK_STATE in body.computed("setattr") for body in flow.bodies)


def _may_come_first(write: Access, read: Access) -> bool:
    """Whether ``write`` may happen before ``read``, so that the name is there."""
    body, source = read.body, read.source
    if write.body is not body:
        return True  # a helper, which may run before
    if source.function_of(read.node) is not body.function or source.function_of(write.node) is not body.function:
        return True  # an inner function, which may run later
    here, there = source.statement(read.node), source.statement(write.node)
    if here is there:
        return isinstance(here, ast.For | ast.With) and not source.is_inside(read.node, _evaluated_first(here))
    if source.comes_before(there, here):
        return True
    return _in_later_round(source, read.node, write.node)


def _evaluated_first(node: ast.For | ast.With) -> ast.AST:
    return node.iter if isinstance(node, ast.For) else node.items[0].context_expr


def _in_later_round(source: Source, read: ast.AST, write: ast.AST) -> bool:
    """Whether a read stands under a condition in a loop that has already come to the write in an earlier round."""
    conditional = False
    for ancestor in source.ancestors(read):
        if isinstance(ancestor, ast.For | ast.While) and source.is_inside(write, ancestor):
            return conditional
        conditional = conditional or isinstance(ancestor, ast.If | ast.IfExp | ast.BoolOp | ast.Try | ast.Match)
    return False
