"""Rules about assembled blocks: flat, consistent, named and documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...evaluation.values import ClassValue, Constant, External, Instance, Spec, elements
from ...project.blocks import Block
from ...project.project import Project
from ...reading.source import Source
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule

__all__ = ["AutoDocstring", "BoolTrigger", "NestedAuto", "PlaceholderDocstring", "SharedDefault"]


class NestedAuto(Rule):
    """An Auto or Conditional block has another one below it."""

    code = "MOD009"
    name = "nested-auto"
    level = Level.WARNING
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        nested: dict[ClassInfo, ClassInfo] = {}
        for block in project.blocks:
            if block.info.selects:
                inner = next((item.info for item in block.descendants if item.info.selects), None)
                if inner is not None:
                    nested[block.info] = inner
        below = {item.info for block in project.blocks if block.info in nested for item in block.descendants}
        for block in project.blocks:
            inner = nested.get(block.info)
            if inner is not None and block.info not in below:
                message = f"{block.name} selects among blocks that select again ({inner.name}): flatten"
                yield from report(self, block.source, block.info.node, message)


class AutoDocstring(Rule):
    """An assembled block of a `modular_blocks_*.py` file lacks `# auto_docstring` right above its `class` line."""

    code = "MOD022"
    name = "auto-docstring"
    level = Level.WARNING
    fixable = True

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            node, lines = block.info.node, block.source.lines
            if not block.source.stem.startswith("modular_blocks") or not block.info.is_assembled:
                continue
            if not block.source.family:
                continue  # the tool that reads the comment is diffusers' own
            above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
            if re.fullmatch(r"#\s*auto_docstring\b.*", above) is None:
                message = f"{block.name} has no `# auto_docstring` right above its class line"
                yield from report(self, block.source, node, message, fixable=not node.decorator_list)


class PlaceholderDocstring(Rule):
    """Generated docstrings say "TODO: Add description."."""

    code = "MOD022b"
    name = "placeholder-docstring"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            if "TODO: Add description." not in source.text:
                continue
            places = [
                line
                for node in source.nodes(ast.ClassDef)
                if node.body and _is_text(node.body[0])
                for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
                if "TODO: Add description." in source.lines[line - 1]
            ]
            if places:
                node = _LineNode(source, min(places))
                message = f'{len(places)} times "TODO: Add description." in docstrings of this file'
                yield from report(self, source, node, message)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


class _LineNode(ast.AST):
    """A node that stands for the text of one line."""

    def __init__(self, source: Source, line: int) -> None:
        super().__init__()
        text = source.lines[line - 1]
        self.lineno = self.end_lineno = line
        self.col_offset = len(text) - len(text.lstrip())
        self.end_col_offset = len(text.rstrip().encode())


class SharedDefault(Rule):
    """Blocks of one sequence declare different defaults for the same input."""

    code = "MOD033"
    name = "shared-default"
    level = Level.WARNING
    kinds: ClassVar[Mapping[str, Level]] = {"none-first": Level.INFO}
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.kind != "sequential":
                continue
            first: dict[str, Spec] = {}
            produced: set[str] = set()
            reported: set[str] = set()
            for _, instance in block.sub_blocks[0]:
                specs, _ = elements(project.evaluator.attribute(instance, "inputs"))
                for spec in specs:
                    if not isinstance(spec, Spec) or spec.name is None or spec.name in produced | reported:
                        continue
                    before = first.setdefault(spec.name, spec)
                    kind = self._conflict(before, spec)
                    if kind is not None:
                        reported.add(spec.name)
                        one, other = before.constant("default"), spec.constant("default")
                        message = f"`{spec.name}` defaults to {one!r} first and to {other!r} in {instance.info.name}"
                        yield from report(self, block.source, block.info.node, message, kind=kind)
                if not instance.info.selects:
                    outputs, _ = elements(project.evaluator.attribute(instance, "intermediate_outputs"))
                    produced |= {output.name for output in outputs if isinstance(output, Spec) and output.name}

    def _conflict(self, before: Spec, spec: Spec) -> str | None:
        if before is spec or not before.known("default") or not spec.known("default"):
            return None
        one, other = before.constant("default"), spec.constant("default")
        if other is None or (type(one) is type(other) and one == other):
            return None
        if one is None:
            return None if before.constant("required") else "none-first"
        return "" if one != other else None


class BoolTrigger(Rule):
    """An `AutoPipelineBlocks` is triggered by a flag."""

    code = "MOD040"
    name = "bool-trigger"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.kind != "auto":
                continue
            found = block.info.find("block_trigger_inputs")
            if found is None or found[0] is not block.info:
                continue
            triggers, _ = elements(block.attribute("block_trigger_inputs"))
            for trigger in triggers:
                name = trigger.value if isinstance(trigger, Constant) else None
                if isinstance(name, str) and self._is_flag(project, block, name):
                    message = f"`{name}` is a flag, and `False` still runs the block"
                    yield from report(self, block.source, found[1], message)

    def _is_flag(self, project: Project, block: Block, name: str) -> bool:
        near = [spec for item in block.descendants for spec in _inputs(project, item) if spec.name == name]
        if not near:
            family = (other for other in project.leaves if other.source.group == block.source.group)
            near = [spec for other in family for spec in other.inputs.named(name)]
        typed = [spec for spec in near if "type_hint" in spec.fields or isinstance(spec.constant("default"), bool)]
        if typed:
            return any(_is_bool(spec) for spec in typed)
        return name.startswith(("use_", "enable_", "do_"))


def _inputs(project: Project, instance: Instance) -> list[Spec]:
    values, _ = elements(project.evaluator.attribute(instance, "inputs"))
    return [value for value in values if isinstance(value, Spec)]


def _is_bool(spec: Spec) -> bool:
    hint = spec.fields.get("type_hint")
    named = (isinstance(hint, External) and hint.dotted == "bool") or (
        isinstance(hint, ClassValue) and hint.info.name == "bool"
    )
    written = next((word.value for word in spec.call.keywords if word.arg == "type_hint"), None)
    if written is None and spec.template is None and len(spec.call.args) > 1:
        written = spec.call.args[1]
    return (
        named or (isinstance(written, ast.Name) and written.id == "bool") or isinstance(spec.constant("default"), bool)
    )
