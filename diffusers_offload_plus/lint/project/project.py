"""The project: everything a rule can ask about the files being linted."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..evaluation.evaluator import Evaluator
from ..evaluation.templates import Declarations
from ..evaluation.values import Instance
from ..reading.nodes import Function
from ..reading.source import FRAMEWORK_PACKAGE, Source
from ..resolution.classes import PIPELINE_BASE, Classes, ClassInfo
from ..resolution.modules import Modules
from .blocks import Block, descendants
from .bodies import Bodies
from .callees import Callees
from .flow import Flow
from .pipelines import Pipelines

__all__ = ["Project", "once"]

_OF_EVERY_PIPELINE = {
    "config", "device", "dtype", "_execution_device", "blocks", "progress_bar", "maybe_free_model_hooks",
    "enable_model_cpu_offload", "enable_sequential_cpu_offload", "remove_all_hooks",
}  # fmt: skip
Question = ParamSpec("Question")
Result = TypeVar("Result")


class Project:
    """The linted files, and the diffusers source they are understood with.

    Attributes:
        sources: the linted files, sorted by path.
        diffusers: folder of the diffusers source in use, ``None`` if there is none.
        answers: what :func:`once` has worked out.
    """

    def __init__(
        self, sources: Sequence[Source], diffusers: Path | None = None, texts: Mapping[Path, str] | None = None
    ) -> None:
        self.sources = sorted(sources, key=lambda source: source.path)
        self.diffusers = diffusers
        self.modules = Modules(diffusers, texts or {})
        for source in self.sources:
            self.modules.add(source)
        self.classes = Classes(self.modules)
        self.declarations = Declarations(self.modules)
        self.evaluator = Evaluator(self.modules, self.classes, self.declarations)
        self._blocks: dict[ClassInfo, Block] = {}
        self.answers: dict[Hashable, Any] = {}
        self._flows: dict[ClassInfo, Flow] = {}
        self._dotted: dict[ast.expr, str | None] = {}

    def prepare(self) -> None:
        """Work out what most rules ask for, so that several processes need not do it each for itself."""
        for block in self.blocks:
            self.flow(block.info)
            for what in ("inputs", "intermediate_outputs", "expected_components"):
                block.declared(what, anywhere=True)

    def block(self, info: ClassInfo) -> Block:
        """The block of a class."""
        if info not in self._blocks:
            self._blocks[info] = Block(self.evaluator, info)
        return self._blocks[info]

    @functools.cached_property
    def block_sources(self) -> list[Source]:
        """Linted files, tests and the framework left out, that define blocks or belong to a family."""
        return [
            source
            for source in self.sources
            if not source.is_test
            and not source.in_framework
            and (source.family or any(info.is_block or info.is_pipeline for info in self.classes.of(source)))
        ]

    @functools.cached_property
    def blocks(self) -> list[Block]:
        """Blocks defined in the linted files, in order of place."""
        for source in self.block_sources:
            self.evaluator.module_names(source)  # collects the instances that the module's statements create
        return [self.block(info) for source in self.block_sources for info in self.classes.of(source) if info.is_block]

    @functools.cached_property
    def leaves(self) -> list[Block]:
        return [block for block in self.blocks if block.kind == "leaf"]

    @functools.cached_property
    def pipelines(self) -> list[ClassInfo]:
        """Subclasses of ``ModularPipeline`` in the linted files."""
        return [info for source in self.block_sources for info in self.classes.of(source) if info.is_pipeline]

    def pipelines_of(self, source: Source) -> Sequence[ClassInfo]:
        """Pipelines of the family that ``source`` belongs to."""
        return self._families.of(source)

    @functools.cached_property
    def bodies(self) -> Bodies:
        """The functions that have been looked into."""
        return Bodies(self._callees)

    @functools.cached_property
    def _callees(self) -> Callees:
        return Callees(self.classes, self._families)

    @functools.cached_property
    def _families(self) -> Pipelines:
        return Pipelines(self.pipelines)

    def is_of_framework_pipeline(self, name: str) -> bool:
        """Whether ``name`` is an attribute of every pipeline, which has nothing to do with single components."""
        if name in _OF_EVERY_PIPELINE:
            return True
        source = self.modules.module(f"{FRAMEWORK_PACKAGE}.modular_pipeline")
        symbol = self.modules.lookup(source, PIPELINE_BASE) if source is not None else None
        if symbol is None or symbol.source is None or not isinstance(symbol.node, ast.ClassDef):
            return name.startswith("_")
        return self.classes.info(symbol.source, symbol.node).find(name) is not None

    def blocks_of(self, group: str) -> Sequence[Block]:
        """Blocks of a family, in order of place."""
        return self._blocks_by_group.get(group, ())

    @functools.cached_property
    def _blocks_by_group(self) -> dict[str, list[Block]]:
        found: dict[str, list[Block]] = {}
        for block in self.blocks:
            found.setdefault(block.source.group, []).append(block)
        return found

    @functools.cached_property
    def heirs(self) -> dict[ClassInfo, list[ClassInfo]]:
        """For each class, the block classes that inherit from it."""
        found: dict[ClassInfo, list[ClassInfo]] = {}
        for block in self.blocks:
            for info in block.info.mro[1:]:
                found.setdefault(info, []).append(block.info)
        return found

    @functools.cached_property
    def assemblies(self) -> dict[ClassInfo, list[Block]]:
        """For each class, the blocks that run it or a subclass of it."""
        found: dict[ClassInfo, list[Block]] = {}
        for block in self.blocks:
            if block.kind == "leaf":
                continue
            for info in {entry: None for instance in block.descendants for entry in instance.info.mro}:
                found.setdefault(info, []).append(block)
        return found

    def loops_of(self, block: Block) -> list[Block]:
        """The loop blocks, of either kind, that run ``block`` directly, or a subclass of it."""
        found = []
        for outer in self.assemblies.get(block.info, ()):
            if outer.info.loops and any(block.info in instance.info.mro for _, instance in outer.sub_blocks[0]):
                found.append(outer)
        return found

    def flow(self, info: ClassInfo) -> Flow:
        """The flow of a block: what calling it does."""
        if info not in self._flows:
            self._flows[info] = Flow(info, self._callees, self._families, self.bodies)
        return self._flows[info]

    def below(self, instance: Instance) -> list[Instance]:
        """All blocks that ``instance`` runs, directly or through others."""
        return descendants(self.evaluator, instance)

    def dotted(self, source: Source, node: ast.expr) -> str | None:
        """The canonical dotted name of an expression, seen from where it stands."""
        if node not in self._dotted:
            symbol = self.modules.symbol(source, node, source.function_of(node))
            self._dotted[node] = symbol.dotted if symbol is not None else None
        return self._dotted[node]

    def function_named(self, source: Source, node: ast.expr, scope: Function | None) -> tuple[Source, Function] | None:
        """The module-level function that an expression names."""
        symbol = self.modules.symbol(source, node, scope)
        if symbol is not None and symbol.source is not None:
            definition = symbol.node
            if isinstance(definition, Function):
                return symbol.source, definition
        return None


def once(
    function: Callable[Concatenate[Project, Question], Result],
) -> Callable[Concatenate[Project, Question], Result]:
    """A decorator for questions about a project: each answer is worked out once for the same arguments."""

    @functools.wraps(function)
    def answer(project: Project, /, *about: Question.args, **also: Question.kwargs) -> Result:
        key = (function, about, *also.items())
        if key not in project.answers:
            project.answers[key] = function(project, *about, **also)
        found: Result = project.answers[key]
        return found

    return answer
