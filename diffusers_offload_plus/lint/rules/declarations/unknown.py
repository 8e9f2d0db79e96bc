"""Rule MOD051: declarations name templates and arguments that there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.errors import nearest
from ...core.finding import Finding, Level
from ...evaluation.templates import SPEC_KINDS
from ...evaluation.values import Constant
from ...project.project import Project
from ...reading.nodes import Dotted, Function
from ...reading.source import Source
from ..base.names import is_scale_name
from ..base.report import report
from ..base.rule import Rule

__all__ = ["UnknownDeclaration"]


class UnknownDeclaration(Rule):
    """A declaration names a template or an argument that the framework does not have."""

    code = "MOD051"
    name = "unknown-declaration"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        if not any(project.declarations.templates.values()):
            return  # the framework has not been read
        for source in project.block_sources:
            for node in source.nodes(ast.Call):
                problem = self._problem(project, source, node)
                if problem:
                    yield from report(self, source, node, problem)

    def _problem(self, project: Project, source: Source, node: ast.Call) -> str:
        function = node.func
        templated = isinstance(function, ast.Attribute) and function.attr == "template"
        named = function.value if templated and isinstance(function, ast.Attribute) else function
        if not isinstance(named, Dotted):
            return ""
        dotted = project.dotted(source, named) or ""
        kind = dotted.rpartition(".")[2]
        if kind not in SPEC_KINDS or not dotted.startswith("diffusers."):
            return ""
        fields = project.declarations.fields[kind]
        given = {word.arg for word in node.keywords if word.arg is not None}
        if templated:
            given -= {"template_name", "note"}
        unknown = sorted(given - set(fields))
        if unknown:
            return f"{kind} has no argument `{unknown[0]}`.{nearest(unknown[0], fields)}"
        if templated:
            return self._template(project, source, node, kind)
        starred = any(isinstance(one, ast.Starred) for one in node.args)
        if len(node.args) > len(fields) and not starred:
            return f"{kind} takes {len(fields)} arguments, got {len(node.args)}"
        return ""

    def _template(self, project: Project, source: Source, node: ast.Call, kind: str) -> str:
        known = project.declarations.templates.get(kind, {})
        chosen = node.args[0] if node.args else None
        chosen = chosen or next((word.value for word in node.keywords if word.arg == "template_name"), None)
        scope = source.function_of(node)
        if not known or chosen is None or isinstance(chosen, ast.Starred):
            return ""
        value = project.evaluator.expression(source, chosen, scope if isinstance(scope, Function) else None)
        if not isinstance(value, Constant) or not isinstance(value.value, str) or value.value in known:
            return ""
        if is_scale_name(value.value):
            return ""  # MOD003 says what to do about it
        return f"{kind} has no template {value.value!r}.{nearest(value.value, known)}"
