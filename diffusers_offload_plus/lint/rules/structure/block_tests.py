"""Rules about tests of blocks: where test models live, and how blocks are run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

from ...core.finding import Finding, Level
from ...evaluation.values import Constant
from ...project.project import Project
from ...reading.nodes import Dotted
from ...reading.source import FRAMEWORK_PACKAGE, Source
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule

__all__ = ["DirectBlockCall", "TestModelOwner"]

_OWNER = "hf-internal-testing"


class TestModelOwner(Rule):
    """A tiny test model lives in somebody's own repository."""

    code = "MOD011"
    name = "test-model-owner"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.sources:
            if not source.is_test or "pretrained_model_name_or_path" not in source.text:
                continue
            for info in project.classes.of(source):
                member = info.members.get("pretrained_model_name_or_path")
                if member is None:
                    continue
                repository = self._repository(project, info)
                owner, _, name = repository.partition("/")
                if not name or "/" in name or "tiny" not in name.lower() or owner in (_OWNER, "", ".", "..", "~"):
                    continue
                message = f"`{repository}` is a tiny test model outside of {_OWNER}"
                yield from report(self, source, self._place(source, info, member), message)

    def _repository(self, project: Project, info: ClassInfo) -> str:
        value = project.evaluator.class_names(info).get("pretrained_model_name_or_path")
        if value is None:
            value = project.evaluator.attribute(
                project.evaluator.default_instance(info), "pretrained_model_name_or_path"
            )
        return value.value if isinstance(value, Constant) and isinstance(value.value, str) else ""

    def _place(self, source: Source, info: ClassInfo, member: ast.AST) -> ast.AST:
        return source.statement(member)


class DirectBlockCall(Rule):
    """A test calls a block with a state made by hand."""

    code = "MOD035"
    name = "direct-block-call"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.sources:
            if not source.is_test or _tests_framework(source):
                continue
            made = {
                target.id
                for node in source.nodes(ast.Assign)
                if isinstance(node.value, ast.Call) and self._is_block(project, source, node.value.func)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in source.nodes(ast.Call):
                function = node.func
                if isinstance(function, Dotted):
                    dotted = project.dotted(source, function) or ""
                    if dotted.startswith("diffusers.") and dotted.endswith(".PipelineState"):
                        yield from report(self, source, node, "a pipeline state made by hand")
                        continue
                direct = isinstance(function, ast.Call) and self._is_block(project, source, function.func)
                direct = direct or (isinstance(function, ast.Name) and function.id in made)
                if direct and len(node.args) + len(node.keywords) >= 2:
                    yield from report(self, source, node, "a block called directly: run it as a pipeline")

    def _is_block(self, project: Project, source: Source, node: ast.expr) -> bool:
        if not isinstance(node, Dotted):
            return False
        found = project.classes.named(source, node)
        if isinstance(found, ClassInfo):
            return found.is_block
        family = isinstance(found, str) and found.startswith(FRAMEWORK_PACKAGE + ".") and found.count(".") > 3
        return family and str(found).endswith(("Step", "Blocks", "Denoiser"))


def _tests_framework(source: Source) -> bool:
    """Whether a test is about the framework: it lies directly among the tests of modular pipelines."""
    return PurePosixPath(source.path).parent.name == "modular_pipelines"
