"""Rule MOD049: users need not give the size of what is generated."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...evaluation.framework import skippable
from ...evaluation.values import Instance, Spec, elements
from ...project.project import Project
from ..base.report import report
from ..base.rule import Rule

__all__ = ["RequiredSize"]

_SIZES = {"height", "width"}


class RequiredSize(Rule):
    """Users have to give a height and a width, for which standard pipelines have defaults."""

    code = "MOD049"
    name = "required-size"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        seen: set[ast.AST] = set()
        for block in project.blocks:
            if block.kind != "sequential" or project.assemblies.get(block.info):
                continue  # only what users call
            for spec in _required(project, block.instance, set()).values():
                if spec.call not in seen:
                    seen.add(spec.call)
                    message = f"`{spec.name}` is required, so that users of {block.name} have to give it"
                    yield from report(self, spec.source, spec.call, message)


def _required(project: Project, instance: Instance, made: set[str]) -> dict[str, Spec]:
    """The sizes that ``instance`` requires; what it asks for and what it makes is added to ``made``."""
    steps = [inner for _, inner in project.block(instance.info).sub_blocks[0]]
    found: dict[str, Spec] = {}
    if instance.info.kind == "sequential":
        for inner in steps:
            found |= _required(project, inner, made)
    elif instance.info.selects:
        branches = [_required(project, inner, set(made)) for inner in steps]
        always = _SIZES.intersection(*branches) if branches and not skippable(project.evaluator, instance) else set()
        found = {name: branches[0][name] for name in sorted(always)}
    else:
        for spec in elements(project.evaluator.attribute(instance, "inputs"))[0]:
            if isinstance(spec, Spec) and spec.name in _SIZES - made:
                made.add(spec.name or "")  # the first block that asks for it decides
                if spec.constant("required") is True:
                    found[spec.name or ""] = spec
    outputs = elements(project.evaluator.attribute(instance, "intermediate_outputs"))[0]
    made |= {value.name for value in outputs if isinstance(value, Spec) and value.name is not None}
    return found
