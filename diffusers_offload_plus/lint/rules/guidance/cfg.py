"""Rule MOD005: classifier-free guidance is computed by guiders, not by blocks."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...project.project import Project, once
from ...reading.nodes import Dotted, Function, is_call_of, literal, name_of
from ...reading.source import Source
from ...resolution.classes import ClassInfo
from ..base.names import is_scale_name
from ..base.report import report
from ..base.rule import Rule
from .combination import combinations, of_predictions

__all__ = ["CfgInBlock", "manual_guidance"]


FLAGS = {"do_classifier_free_guidance", "do_cfg", "do_true_cfg"}


class CfgInBlock(Rule):
    """A block decides on, or computes, classifier-free guidance itself."""

    code = "MOD005"
    name = "cfg-in-block"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"shape": Level.WARNING}

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            for node, message, kind in manual_guidance(project, source, source.tree):
                yield from report(self, source, node, message, kind=kind)


def manual_guidance(project: Project, source: Source, root: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """The places below ``root`` that compute guidance by hand: node, message, kind."""
    for function, places in _by_function(project, source):
        if source.is_inside(function, root):
            yield from places


@once
def _by_function(project: Project, source: Source) -> list[tuple[Function, list[tuple[ast.AST, str, str]]]]:
    """The functions of blocks and beside blocks, each with the places where it computes guidance by hand."""
    flagged = any(flag in source.text for flag in FLAGS)
    return [
        (function, [*(_flags(source, function) if flagged else ()), *_arithmetic(project, source, function)])
        for function in _outer_functions(project, source)
    ]


def _outer_functions(project: Project, source: Source) -> Iterator[Function]:
    blocks = [info for info in project.classes.of(source) if info.is_block or info.is_pipeline]
    if not blocks and not source.family:
        return
    for function in source.functions:
        owner = _owner(project, source, function)
        if owner is not None and not owner.is_block and not owner.is_pipeline:
            continue
        if owner is None and not any(info.is_block for info in blocks):
            continue
        if source.function_of(function) is not None:
            continue
        yield function


def _owner(project: Project, source: Source, function: ast.AST) -> ClassInfo | None:
    for ancestor in source.ancestors(function):
        if isinstance(ancestor, ast.ClassDef):
            return project.classes.info(source, ancestor)
    return None


def _flags(source: Source, function: Function) -> Iterator[tuple[ast.AST, str, str]]:
    for node in source.within(function, ast.Name, ast.Attribute, ast.Call):
        name = _assigned_flag(node)
        if name:
            yield source.statement(node), f"`{name}` decides on guidance, which is the guider's to decide", ""


def _arithmetic(project: Project, source: Source, function: Function) -> Iterator[tuple[ast.AST, str, str]]:
    scales = _scale_names(source.within(function, ast.Assign))
    for node in source.within(function, ast.Compare, ast.IfExp):
        if isinstance(node, ast.Compare) and _compares_scale(node, scales):
            statement = source.statement(node)
            if isinstance(statement, ast.If) and isinstance(statement.body[0], ast.Raise) and not statement.orelse:
                continue
            if not (isinstance(statement, ast.Assign) and any(_assigned_flag(target) for target in statement.targets)):
                yield node, "compares a scale of guidance with a constant", ""
        elif isinstance(node, ast.IfExp) and _switches(source, node, scales):
            yield node, "switches guidance off, which is the guider's to decide", ""
    for found in combinations(project, source, function):
        if _is_scale(found.scale, scales) or of_predictions(source, function, found):
            scale = ast.unparse(found.scale)
            yield found.node, f"combines predictions with `{scale}`, which is the guider's work", "shape"


def _assigned_flag(node: ast.AST) -> str:
    if isinstance(node, Dotted) and isinstance(node.ctx, ast.Store):
        return name if (name := name_of(node)) in FLAGS else ""
    if is_call_of(node, "setattr", 2):
        written = literal(node.args[1]) or ""
        return written if written in FLAGS else ""
    return ""


def _scale_names(nodes: list[ast.Assign]) -> set[str]:
    """Local names that hold a scale of guidance."""
    found: set[str] = set()
    assigned = [(target.id, node.value) for node in nodes for target in node.targets if isinstance(target, ast.Name)]
    for _ in range(3):
        for name, value in assigned:
            if name not in found and _is_scale(value, found):
                found.add(name)
    return found


def _is_scale(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is a scale of guidance, as it is or chosen or converted."""
    if isinstance(node, ast.Name):
        return node.id in names or (is_scale_name(node.id) and node.id.endswith("scale"))
    if isinstance(node, ast.Attribute):
        return is_scale_name(node.attr) and node.attr.endswith(("scale", "guidance", "rescale"))
    if isinstance(node, ast.Subscript):
        key = literal(node.slice)
        return (key is not None and is_scale_name(key)) or _is_scale(node.value, names)
    if isinstance(node, ast.IfExp):
        return _is_scale(node.body, names) or _is_scale(node.orelse, names)
    if isinstance(node, ast.BoolOp):
        return any(_is_scale(value, names) for value in node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "getattr" and len(node.args) > 1:
            key = literal(node.args[1])
            return key is not None and is_scale_name(key)
        return node.func.id in ("float", "max", "min", "abs") and any(_is_scale(value, names) for value in node.args)
    return False


def _compares_scale(node: ast.Compare, scales: set[str]) -> bool:
    sides = [node.left, *node.comparators]
    constant = any(isinstance(side, ast.Constant) and isinstance(side.value, int | float) for side in sides)
    return constant and any(_is_scale(side, scales) for side in sides)


def _switches(source: Source, node: ast.IfExp, scales: set[str]) -> bool:
    """Whether a condition chooses between a scale of guidance and a fixed one; a default for ``None`` is none."""
    sides = (node.body, node.orelse)
    if not any(isinstance(side, ast.Constant) and isinstance(side.value, int | float) for side in sides):
        return False
    if not any(_is_scale(side, scales) for side in sides):
        return False
    return not any(_is_scale(inner, scales) for inner in source.below(node.test) if isinstance(inner, ast.expr))
