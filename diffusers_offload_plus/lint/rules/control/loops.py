"""Rules about loops of blocks: the keywords of their steps, and their description."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.blocks import Block
from ...project.flow import takes_block_state
from ...project.project import Project
from ...reading.nodes import Function, method_called
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule

__all__ = ["LoopDescription", "LoopSignature"]


def passed_keywords(project: Project, loop: Block) -> list[frozenset[str]] | None:
    """The keywords of each ``self.loop_step(...)`` of a loop; ``None`` if they are not known."""
    if loop.info.call is None:
        return None
    found: list[frozenset[str]] = []
    for body in project.flow(loop.info).bodies:
        for node in body.of(ast.Call):
            if method_called(node) == "loop_step":
                names = [keyword.arg for keyword in node.keywords]
                if None in names:
                    return None
                found.append(frozenset(name for name in names if name not in (None, "components", "state")))
    return found or None


class LoopSignature(Rule):
    """A step of a loop does not take the keywords that its loop passes."""

    code = "MOD018"
    name = "loop-signature"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.leaves:
            if block.info.call is None:
                continue
            owner, function = block.info.call
            wanted = self._wanted(project, block)
            if wanted is None:
                continue
            for keywords in wanted:
                problem = _mismatch(function, keywords)
                if problem:
                    passed = ", ".join(sorted(keywords))
                    message = f"{block.name} {problem}; its loop passes {passed or 'no keywords'}"
                    yield from report(self, owner.source, function, message)
                    break

    def _wanted(self, project: Project, block: Block) -> list[frozenset[str]] | None:
        loops = project.loops_of(block)
        found: list[frozenset[str]] = []
        for loop in loops:
            keywords = passed_keywords(project, loop)
            found += keywords or []
        if found:
            return found
        method = block.info.method("__call__")
        if method is None or not takes_block_state(method[1]) or loops:
            return None
        names = extra_parameters(method[1])
        if names in (["i", "t"], ["k"], []) or method[1].args.kwarg is not None:
            return None
        return [frozenset({"i", "t"})]


def extra_parameters(function: Function) -> list[str]:
    """The names of the parameters after ``self, components, block_state``."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)][3:]
    return names + [argument.arg for argument in given.kwonlyargs]


def _mismatch(function: Function, keywords: frozenset[str]) -> str:
    given = function.args
    names = extra_parameters(function)
    positional = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    if len(positional) < 3 and given.vararg is None:
        return "takes fewer than components and block state"
    optional = set(positional[len(positional) - len(given.defaults) :]) if given.defaults else set()
    optional |= {a.arg for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is not None}
    missing = [name for name in names if name not in keywords and name not in optional]
    if missing:
        return f"requires {', '.join(missing)}"
    unknown = sorted(keywords - set(names))
    if unknown and given.kwarg is None:
        return f"does not take {', '.join(unknown)}"
    return ""


class LoopDescription(Rule):
    """A loop of blocks has no `description`."""

    code = "MOD034"
    name = "loop-description"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.kind != "loop" or not self._is_concrete(block.info):
                continue
            found = block.info.find("description")
            if (found is None and block.info.complete) or (found is not None and found[0].source.in_framework):
                yield from report(self, block.source, block.info.node, f"{block.name} has no description")

    def _is_concrete(self, info: ClassInfo) -> bool:
        found = info.find("block_classes")
        return found is not None and not found[0].source.in_framework
