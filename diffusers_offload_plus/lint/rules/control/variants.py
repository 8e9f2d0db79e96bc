"""Rule MOD016: variants of a model differ in their blocks, not by flags."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.body import Body
from ...project.project import Project, once
from ...reading.nodes import literal
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import functions

__all__ = ["VariantConfigFlag"]


class VariantConfigFlag(Rule):
    """A block or a pipeline branches on a configuration flag that tells variants of the model apart."""

    code = "MOD016"
    name = "variant-config-flag"
    level = Level.WARNING
    _flag = re.compile(r"^(is|use|requires|has|enable)_")

    def check(self, project: Project) -> Iterator[Finding]:
        for body in functions(project):
            flags = _flags(project, body.source.group)
            seen: set[ast.AST] = set()
            for node in body.of(ast.If, ast.IfExp, ast.While, ast.Assert, ast.comprehension):
                if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
                    tests = [node.test]
                elif isinstance(node, ast.comprehension):
                    tests = node.ifs
                else:
                    continue
                for test in tests:
                    flag = self._tested(body, test, flags)
                    if flag and test not in seen:
                        seen.add(test)
                        message = f"branches on `config.{flag}`, which tells variants apart"
                        yield from report(self, body.source, test, message)

    def _tested(self, body: Body, test: ast.expr, flags: set[str]) -> str:
        if isinstance(test, ast.BoolOp):
            return next((flag for value in test.values if (flag := self._tested(body, value, flags))), "")
        if isinstance(test, ast.UnaryOp):
            return self._tested(body, test.operand, flags)
        if isinstance(test, ast.Compare):
            fixed = any(isinstance(side, ast.Constant) and isinstance(side.value, bool) for side in test.comparators)
            return self._tested(body, test.left, flags) if fixed else ""
        places = body.places(test)
        if (
            isinstance(test, ast.Call)
            and isinstance(test.func, ast.Attribute)
            and test.func.attr == "get"
            and test.args
        ):
            key = literal(test.args[0])
            places = {(*place, key) for place in body.places(test.func.value)} if key else set()
        for place in sorted(places):
            if place[:2] != ("components", "config") or len(place) != 3:
                continue
            if place[2] in flags or self._flag.match(place[2]):
                return place[2]
        return ""


@once
def _flags(project: Project, group: str) -> set[str]:
    """The names of the boolean configurations that a family declares."""
    return {
        spec.name
        for block in project.blocks_of(group)
        for spec in block.configs.specs
        if spec.name is not None and isinstance(spec.constant("default"), bool)
    }
