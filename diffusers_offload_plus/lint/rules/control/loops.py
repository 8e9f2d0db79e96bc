"""Rules about loops of blocks: the keywords of their steps, and their description."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from ...core.finding import Finding, Level
from ...evaluation.values import Constant, elements
from ...project.blocks import Block
from ...project.body import BLOCK_STATE, STATE, Body, Place
from ...project.flow import takes_block_state
from ...project.project import Project
from ...reading.nodes import Function, method_called
from ...resolution.classes import ClassInfo
from ...resolution.modules import parameters
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


def loop_variables(loop: Block) -> frozenset[str] | None:
    """What a loop that can be nested declares that it passes to its steps; ``None`` if that is not known."""
    if loop.kind != "iterative":
        return None
    values, whole = elements(loop.attribute("loop_variables"))
    names = frozenset(value.value for value in values if isinstance(value, Constant) and isinstance(value.value, str))
    return names if whole and names and len(names) == len(values) else None


class LoopSignature(Rule):
    """A step of a loop does not take what its loop passes: the keywords, or the state of the right kind."""

    code = "MOD018"
    name = "loop-signature"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.info.call is None or block.kind not in ("leaf", "iterative"):
                continue
            owner, function = block.info.call
            if _handed_block_state(project, block) and _asks_for_block_state(project, block):
                message = f"{block.name} takes the pipeline's state, but its loop passes the block state"
                yield from report(self, owner.source, function, message)
            for keywords, strict in self._wanted(project, block):
                problem = _mismatch(function, keywords, strict=strict)
                if problem:
                    passed = ", ".join(sorted(keywords))
                    message = f"{block.name} {problem}; its loop passes {passed or 'no keywords'}"
                    yield from report(self, owner.source, function, message)
                    break
        for loop in project.blocks:
            if loop.info.loops and loop.info.call is not None:
                yield from self._passes(project, loop)

    def _wanted(self, project: Project, block: Block) -> list[tuple[frozenset[str], bool]]:
        """The keywords that loops pass to ``block``, each with whether the loop refuses any other parameter."""
        found: list[tuple[frozenset[str], bool]] = []
        loops = project.loops_of(block)
        for loop in loops:
            variables = loop_variables(loop)
            if variables is not None:
                found.append((variables, True))
            else:
                found += ((keywords, False) for keywords in passed_keywords(project, loop) or ())
        if found or loops or block.kind == "iterative" or block.info.is_loop_step:
            return found
        method = block.info.method("__call__")
        if method is None or not takes_block_state(method[1]):
            return []
        names = extra_parameters(method[1])
        if names in (["i", "t"], ["k"], []) or method[1].args.kwarg is not None:
            return []
        return [(frozenset({"i", "t"}), False)]

    def _passes(self, project: Project, loop: Block) -> Iterator[Finding]:
        """Findings about what a loop itself passes to its steps."""
        variables = loop_variables(loop)
        for body, node in _steps_run(project, loop):
            problem = ""
            if loop.kind == "loop" and STATE in _state_passed(body, node) and _takes_block_state(loop):
                problem = "passes the pipeline's state to steps that take the block state: what they write is lost"
            elif loop.kind == "iterative" and BLOCK_STATE in _state_passed(body, node):
                problem = "passes its block state to steps that take the pipeline's state"
            elif variables is not None and all(keyword.arg for keyword in node.keywords):
                given = {keyword.arg or "" for keyword in node.keywords} - {"components", "state"}
                if given != variables:
                    given_names, names = ", ".join(sorted(given)), ", ".join(sorted(variables))
                    problem = f"passes {given_names or 'no keywords'}; its loop_variables are {names}"
            if problem:
                yield from report(self, body.source, node, f"{loop.name} {problem}")


def _steps_run(project: Project, loop: Block) -> list[tuple[Body, ast.Call]]:
    """The calls of ``self.loop_step``."""
    bodies = project.flow(loop.info).bodies
    return [(body, node) for body in bodies for node in body.of(ast.Call) if method_called(node) == "loop_step"]


def _state_passed(body: Body, node: ast.Call) -> AbstractSet[Place]:
    """What a call of ``loop_step`` hands to the steps as their state."""
    given = [word.value for word in node.keywords if word.arg == "state"]
    given += [] if any(isinstance(one, ast.Starred) for one in node.args[:2]) else node.args[1:2]
    places = body.places(given[0]) if given else frozenset[Place]()
    return places if len(places) == 1 else frozenset()


def _takes_block_state(loop: Block) -> bool:
    """Whether any step of a loop is written for the loop's block state."""
    calls = (instance.info.call for _, instance in loop.sub_blocks[0])
    return any(call is not None and takes_block_state(call[1]) for call in calls)


def _handed_block_state(project: Project, block: Block) -> bool:
    """Whether each loop that runs ``block`` hands it the loop's block state."""
    loops = project.loops_of(block)
    calls = [one for loop in loops if loop.kind == "loop" for one in _steps_run(project, loop)]
    return bool(calls) and all(BLOCK_STATE in _state_passed(body, node) for body, node in calls)


def _asks_for_block_state(project: Project, block: Block) -> bool:
    """Whether a block makes its own block state from what it is called with."""
    first = project.flow(block.info).bodies[0]
    names = parameters(first.function)
    calls = [node for node in first.of(ast.Call) if method_called(node) == "get_block_state" and node.args]
    return len(names) > 2 and any(isinstance(node.args[0], ast.Name) and node.args[0].id == names[2] for node in calls)


def extra_parameters(function: Function) -> list[str]:
    """The names of the parameters after ``self, components, block_state``."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)][3:]
    return names + [argument.arg for argument in given.kwonlyargs]


def _mismatch(function: Function, keywords: frozenset[str], *, strict: bool) -> str:
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
    foreign = [name for name in names if name not in keywords] if strict else []
    if foreign:
        return f"names {', '.join(foreign)}, which the loop does not have"
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
