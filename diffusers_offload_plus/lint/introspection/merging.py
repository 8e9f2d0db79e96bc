"""Lets rules see what blocks declare at run time, and marks the findings that come of it."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from ..core.finding import Finding, Origin
from ..evaluation.values import Constant, Dictionary, Instance, Items, Spec, Value, elements
from ..project.project import Project
from ..reading.source import Problem
from ..resolution.classes import ClassInfo
from ..rules.base.own_rules import UnreadableFile
from ..rules.base.rule import Rule
from .facts import BlockFacts, Parameter

__all__ = ["Introspection"]

_KINDS = {
    "inputs": "input",
    "intermediate_outputs": "output",
    "expected_components": "component",
    "expected_configs": "config",
}


class Introspection:
    """The declarations of a project's blocks at run time.

    Args:
        facts: facts about blocks, by path of the file and name of the class.
        problems: files that could not be imported, and blocks that could not be instantiated.
    """

    def __init__(
        self, project: Project, facts: Mapping[tuple[str, str], BlockFacts], problems: Sequence[Problem] = ()
    ) -> None:
        self._project = project
        self._facts = facts
        self.problems = list(problems)

    def merge(self, findings: Iterable[Finding], rules: Sequence[Rule]) -> list[Finding]:
        """The ``findings`` from source, corrected by the declarations at run time.

        Rules that need it check again, on a project that answers with what was declared. Findings that they no longer
        report are dropped; findings that are new are marked.
        """
        asked = [rule for rule in rules if rule.needs_runtime]
        codes = {rule.code for rule in asked}
        kept = [finding for finding in findings if finding.code not in codes]
        static = {_key(finding) for finding in findings if finding.code in codes}
        truthful = self._truthful()
        for finding in {found for rule in asked for found in rule.check(truthful)}:
            new = _key(finding) not in static
            kept.append(dataclasses.replace(finding, origin=Origin.INTROSPECTION) if new else finding)
        kept += [UnreadableFile.at(problem, Origin.INTROSPECTION) for problem in self.problems]
        return sorted(kept)

    def _truthful(self) -> Project:
        """A project of the same files whose blocks answer with what they declared."""
        old = self._project
        project = Project(old.sources, old.diffusers)
        for block in project.blocks:
            facts = self._facts.get((block.source.path, block.name))
            if facts is not None:
                self._tell(project, project.evaluator.default_instance(block.info), facts)
        return project

    def _tell(self, project: Project, instance: Instance, facts: BlockFacts) -> None:
        read = {what: _specs(project, instance, what) for what in facts.declared}
        if facts.sub_blocks:
            known: dict[object, Value] = {}
            for name, below in facts.sub_blocks.items():
                info = self._class(project, below)
                if info is not None:
                    known[name] = Instance(info)
                    self._tell(project, known[name], below)  # type: ignore[arg-type]
            whole = len(known) == len(facts.sub_blocks)
            instance.attributes["sub_blocks"] = Dictionary(known, not whole)
        else:
            # Declarations of a block that runs others follow from those others.
            for what, parameters in facts.declared.items():
                told: list[Value] = [
                    _spec(_KINDS[what], parameter, read[what], instance.info) for parameter in parameters
                ]
                instance.attributes[what] = Items(told)
        if facts.model_name is not None:
            instance.attributes["model_name"] = Constant(facts.model_name)
        instance.opaque = False
        instance.cache.clear()

    def _class(self, project: Project, facts: BlockFacts) -> ClassInfo | None:
        module = project.modules.module(facts.module)
        if module is None:
            return None
        return next((info for info in project.classes.of(module) if info.name == facts.name), None)


def _specs(project: Project, instance: Instance, what: str) -> list[Spec]:
    return [value for value in elements(project.evaluator.attribute(instance, what))[0] if isinstance(value, Spec)]


def _spec(kind: str, parameter: Parameter, read: Sequence[Spec], info: ClassInfo) -> Spec:
    """A declaration with its values at run time, at the place where it was read, else at the class."""
    fields: dict[str, Value] = {"name": Constant(parameter.name), "kwargs_type": Constant(parameter.kwargs_type)}
    if kind == "input":
        fields["required"] = Constant(parameter.required)
        if parameter.has_plain_default:
            fields["default"] = Constant(parameter.default)
    for spec in read:
        if spec.name == parameter.name and (parameter.name or spec.constant("kwargs_type") == parameter.kwargs_type):
            return dataclasses.replace(spec, fields={**spec.fields, **fields})
    fields["description"] = Constant(parameter.description)
    call = ast.Call(ast.Name(kind, ast.Load()), [], [])
    for node in (call, call.func):
        ast.copy_location(node, info.node)
        node.end_lineno, node.end_col_offset = node.lineno, node.col_offset + len("class")
    return Spec(kind, fields, call, info.source)


def _key(finding: Finding) -> tuple[str, int, int, str, str]:
    return (finding.path, finding.line, finding.column, finding.code, finding.kind)
