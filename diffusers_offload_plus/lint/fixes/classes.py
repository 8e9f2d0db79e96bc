"""Fixes that add to a class: its model name, or the comment ``# auto_docstring``."""

from __future__ import annotations

import ast
from collections import Counter

import libcst as cst

from ..core.finding import Finding
from .edits import CannotFix, Edits

__all__ = ["auto_docstring", "model_name"]


def auto_docstring(edits: Edits, finding: Finding) -> None:
    """``# auto_docstring`` is put right above the ``class`` line."""
    node = edits.at(finding, cst.ClassDef)
    field = "lines_after_decorators" if node.decorators else "leading_lines"
    above = getattr(node, field)
    if above and above[-1].comment is not None and above[-1].comment.value.startswith("# Copied from"):
        raise CannotFix("`# Copied from` has to stand right above the class as well")

    def marked(updated: cst.ClassDef) -> cst.ClassDef:
        lines = [*getattr(updated, field), cst.EmptyLine(comment=cst.Comment("# auto_docstring"))]
        return updated.with_changes(**{field: lines})

    edits.change(node, marked)


def model_name(edits: Edits, finding: Finding) -> None:
    """``model_name = "..."`` of the family is put at the top of the class."""
    node = edits.at(finding, cst.ClassDef)
    if not isinstance(node.body, cst.IndentedBlock):
        raise CannotFix("the class is written on one line")
    name = _name(edits)

    def named(updated: cst.ClassDef) -> cst.ClassDef:
        assert isinstance(updated.body, cst.IndentedBlock)
        body = list(updated.body.body)
        place = 1 if updated.get_docstring() is not None else 0
        added = cst.parse_statement(f'model_name = "{name}"')
        if place:
            added = added.with_changes(leading_lines=[cst.EmptyLine(indent=False)])
        if place < len(body) and isinstance(body[place], cst.FunctionDef | cst.ClassDef):
            following = body[place]
            lines = list(getattr(following, "leading_lines", ()))
            if not lines or lines[0].comment is not None:
                body[place] = following.with_changes(leading_lines=[cst.EmptyLine(indent=False), *lines])
        return updated.with_changes(body=updated.body.with_changes(body=[*body[:place], added, *body[place:]]))

    edits.change(node, named)


def _name(edits: Edits) -> str:
    """The model name of the other blocks in the file, else in the directory, else the name of the directory."""
    beside = [source for source in edits.project.sources if source.group == edits.source.group]
    for sources in ([edits.source], beside):
        found = Counter(
            statement.value.value
            for source in sources
            for node in source.nodes(ast.ClassDef)
            for statement in node.body
            if isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
            and any(isinstance(target, ast.Name) and target.id == "model_name" for target in statement.targets)
        )
        if len(found) == 1:
            return next(iter(found))
        if found:
            raise CannotFix(f"the blocks beside it have several model names: {', '.join(sorted(found))}")
    if not edits.source.family:
        raise CannotFix("the family is not known")
    return edits.source.family.replace("_", "-")
