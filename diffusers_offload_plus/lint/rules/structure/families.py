"""Rules about model families: model names, files, exports and pipeline classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...evaluation.values import Constant, FunctionValue, Value, elements
from ...project.blocks import Block
from ...project.project import Project, once
from ...reading.source import FRAMEWORK_PACKAGE, Source
from ...resolution.classes import ClassInfo
from ..base.report import report
from ..base.rule import Rule

__all__ = ["CustomPipelineCall", "Exports", "FileStructure", "ModelName"]


@once
def pipeline_mapping(project: Project) -> dict[str, str]:
    """The pipeline class that each ``model_name`` leads to when nothing else is known of the checkpoint."""
    source = project.modules.module(f"{FRAMEWORK_PACKAGE}.modular_pipeline")
    if source is None:
        return {}
    found: dict[str, str] = {}
    value = project.evaluator.module_names(source).get("MODULAR_PIPELINE_MAPPING")
    for name, target in getattr(value, "items", {}).items() if value is not None else ():
        result: Value = project.evaluator.call(target, [], {}) if isinstance(target, FunctionValue) else target
        if isinstance(result, Constant) and isinstance(result.value, str):
            found[name] = result.value
    return found


class ModelName(Rule):
    """A block has no `model_name`, or one that leads to another pipeline than its own."""

    code = "MOD021"
    name = "model-name"
    level = Level.ERROR
    kinds: ClassVar[Mapping[str, Level]] = {"custom": Level.INFO}
    fixable = True
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        names: dict[str, set[str]] = {}
        for block in project.blocks:
            name = block.text("model_name")
            if name is not None:
                names.setdefault(block.source.group, set()).add(name)
        for block in project.blocks:
            heirs = [project.block(info) for info in project.heirs.get(block.info, ())]
            # Outside of diffusers a base class may leave the name to its heirs.
            named = not block.source.family and heirs and all(heir.text("model_name") is not None for heir in heirs)
            if self._lacks_name(block) and not named:
                family = names.get(block.source.group, set())
                wanted = f'`model_name = "{min(family)}"`' if len(family) == 1 else "a `model_name`"
                kind = "" if block.source.family else "custom"
                message = f"{block.name} needs {wanted}"
                # Outside of diffusers the name decides which pipeline class runs the block.
                fixable = len(family) == 1 and not kind
                yield from report(self, block.source, block.info.node, message, kind=kind, fixable=fixable)
        yield from self._misled(project)

    def _lacks_name(self, block: Block) -> bool:
        info = block.info
        if info.is_assembled or not info.complete:
            return False
        if info.loops and not elements(block.attribute("block_classes"))[0]:
            return False
        if info.call is None:
            return False
        found = info.find("model_name")
        if found is None or found[0].source.in_framework:
            return "model_name" not in block.instance.attributes
        value = block.attribute("model_name")
        return isinstance(value, Constant) and value.value is None

    def _misled(self, project: Project) -> Iterator[Finding]:
        mapping = pipeline_mapping(project)
        if not mapping:
            return
        for pipeline in project.pipelines:
            default = default_blocks(project, pipeline)
            if default is None or not pipeline.source.family:
                continue
            name = default.text("model_name")
            if name is None:
                continue
            if name not in mapping:
                message = f'model_name "{name}" is not in MODULAR_PIPELINE_MAPPING'
                yield from report(self, default.source, default.info.node, message)
            elif mapping[name] != pipeline.name:
                message = (
                    f'model_name "{name}" leads to {mapping[name]}, not to {pipeline.name} whose blocks these are'
                )
                yield from report(self, default.source, default.info.node, message)


def default_blocks(project: Project, pipeline: ClassInfo) -> Block | None:
    """The blocks that a pipeline class names as its own."""
    found = pipeline.find("default_blocks_name")
    if found is None or found[0] is not pipeline:
        return None
    value = project.evaluator.class_names(pipeline).get("default_blocks_name")
    if not isinstance(value, Constant):
        return None
    candidates = [block for block in project.blocks_of(pipeline.source.group) if block.name == value.value]
    return candidates[0] if len(candidates) == 1 else None


_EXPECTED = ("encoders", "before_denoise", "denoise", "decoders", "modular_pipeline")
_MISPLACED = {
    "denoise": re.compile(r"Decode(r)?Step$|TextEncoder|VaeEncoder"),
    "before_denoise": re.compile(r"Decode(r)?Step$|TextEncoder|DenoiseStep$"),
    "encoders": re.compile(r"Decode(r)?Step$|(?<!Before)DenoiseStep$"),
    "decoders": re.compile(r"(?<!After)(?<!Before)DenoiseStep$|TextEncoder|VaeEncoderStep$"),
}


class FileStructure(Rule):
    """A family lacks one of the usual files, or a block lives in the wrong one."""

    code = "MOD023"
    name = "file-structure"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.block_sources:
            if source.package and source.family and source.module.count(".") == 2:
                yield from self._missing(project, source)
        for block in project.leaves:
            pattern = _MISPLACED.get(block.source.stem)
            if pattern is None or not pattern.search(block.name) or project.loops_of(block):
                continue
            yield from report(
                self, block.source, block.info.node, f"{block.name} does not belong in {block.source.stem}.py"
            )

    def _missing(self, project: Project, package: Source) -> Iterator[Finding]:
        stems = {source.stem for source in project.sources if source.group == package.group}
        if len(stems) < 3:
            return  # not the family as a whole
        missing = [f"{stem}.py" for stem in _EXPECTED if stem not in stems]
        if not any(stem.startswith("modular_blocks") for stem in stems):
            missing.append("modular_blocks_*.py")
        if missing:
            yield from report(self, package, package.tree, f"the family lacks {', '.join(missing)}")


class Exports(Rule):
    """A pipeline of a family cannot be reached: not exported, not mapped, or without default blocks."""

    code = "MOD032"
    name = "exports"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        for pipeline in project.pipelines:
            if not pipeline.source.family:
                continue
            found = pipeline.find("default_blocks_name")
            if (found is None or found[0].source.in_framework) and pipeline.complete:
                message = f"{pipeline.name} has no default_blocks_name"
                yield from report(self, pipeline.source, pipeline.node, message)
            package = project.modules.module(f"{FRAMEWORK_PACKAGE}.{pipeline.source.family}")
            if package is None or not package.linted:
                continue
            yield from self._unreachable(project, pipeline)

    def _unreachable(self, project: Project, pipeline: ClassInfo) -> Iterator[Finding]:
        names = [pipeline.name]
        default = default_blocks(project, pipeline)
        if default is not None:
            names.append(default.name)
        for dotted in (f"{FRAMEWORK_PACKAGE}.{pipeline.source.family}", FRAMEWORK_PACKAGE, "diffusers"):
            package = project.modules.module(dotted)
            if package is None:
                continue
            bound = project.modules.scope(package, package.tree)[0]
            missing = [name for name in names if name not in bound]
            if missing:
                message = f"{', '.join(missing)} not exported by {dotted}"
                yield from report(self, pipeline.source, pipeline.node, message)
        # One name of the family is enough. Variants without a name of their own are reported by MOD021.
        framework = project.modules.module(f"{FRAMEWORK_PACKAGE}.modular_pipeline")
        family = project.pipelines_of(pipeline.source)
        mapped = framework is None or any(f'"{other.name}"' in framework.text for other in family)
        if not mapped and pipeline is family[0]:
            message = f"no pipeline of the family, such as {pipeline.name}, is in MODULAR_PIPELINE_MAPPING"
            yield from report(self, pipeline.source, pipeline.node, message)


class CustomPipelineCall(Rule):
    """A `ModularPipeline` subclass overrides `__call__`."""

    code = "MOD041"
    name = "custom-pipeline-call"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        for pipeline in project.pipelines:
            function = pipeline.own_method("__call__")
            if function is not None:
                yield from report(self, pipeline.source, function, f"{pipeline.name} overrides __call__")
