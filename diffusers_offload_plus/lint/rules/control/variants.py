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
    # How a model is run is no variant of it.
    _way_to_run = re.compile(
        r"til(ing|ed|es?)(_|$)|slic(ing|ed?)|offload|compile|cache|xformers|flash|sdpa|checkpointing|fp16|bf16|fp8|half"
        r"|quant|progress|verbose|debug|profil|low_vram|low_mem|cpu|cuda|stream|parallel"
    )

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
                        message = f"branches on `{flag}`, which tells variants apart"
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
            if place[0] != "components" or self._way_to_run.search(place[-1]):
                continue
            if place[1:2] == ("config",) and len(place) == 3 and (place[2] in flags or self._flag.match(place[2])):
                return f"config.{place[2]}"
            # A pipeline's property for the flag, or the flag itself, which is an attribute of pipelines too.
            if len(place) == 2 and (place[1] in flags or place[1].startswith("is_")):
                return place[1]
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
