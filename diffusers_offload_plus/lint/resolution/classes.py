"""Classes, what they inherit, and which kind of block or pipeline they are."""

from __future__ import annotations

import ast
import dataclasses
import functools

from ..reading.nodes import Dotted, Function, name_of
from ..reading.source import Source
from .modules import Modules, is_framework_name

__all__ = ["BlockKind", "ClassInfo", "Classes", "Function"]

BLOCK_BASE = "ModularPipelineBlocks"
PIPELINE_BASE = "ModularPipeline"
# The kind of block that a base class of the framework makes its subclasses.
KNOWN_BLOCKS = {
    "ModularPipelineBlocks": "leaf",
    "SequentialPipelineBlocks": "sequential",
    "LoopSequentialPipelineBlocks": "loop",
    "ConditionalPipelineBlocks": "conditional",
    "AutoPipelineBlocks": "auto",
    "PipelineBlock": "leaf",  # what the first frameworks called it
    # Of newer frameworks: a loop that can be nested, whose steps read and write the pipeline state themselves.
    "IterativePipelineBlocks": "iterative",
    "ModularLoopPipelineBlocks": "leaf",
}

BlockKind = str
Member = tuple["ClassInfo", ast.stmt | ast.expr]  # where it is defined, and what it is


@dataclasses.dataclass(eq=False)
class ClassInfo:
    """A class definition."""

    source: Source
    node: ast.ClassDef
    classes: Classes
    _found: dict[str, Member | None] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def dotted(self) -> str:
        return f"{self.source.module}.{self.name}" if self.source.module else self.name

    def __repr__(self) -> str:
        return f"<class {self.dotted}>"

    @functools.cached_property
    def bases(self) -> list[ClassInfo | str]:
        """The base classes; a dotted name for a class whose definition is not read."""
        return self.classes.bases_of(self)

    @functools.cached_property
    def lineage(self) -> list[ClassInfo | str]:
        """The class and its bases in the order attributes are looked up; cycles are cut."""
        return _lineage(self, frozenset())

    @functools.cached_property
    def mro(self) -> list[ClassInfo]:
        return [entry for entry in self.lineage if isinstance(entry, ClassInfo)]

    @functools.cached_property
    def complete(self) -> bool:
        """Whether all bases are known up to the framework's, whose own bases declare nothing about blocks."""
        for entry in self.lineage:
            if isinstance(entry, ClassInfo):
                if entry.source.in_framework:
                    return True
            elif is_framework_name(entry) and entry.rpartition(".")[2] in (*KNOWN_BLOCKS, PIPELINE_BASE):
                return True
            elif not _is_plain(entry):
                return False
        return True

    @functools.cached_property
    def members(self) -> dict[str, ast.stmt | ast.expr]:
        """Functions and assigned values of the class body, the last of each name."""
        found: dict[str, ast.stmt | ast.expr] = {}
        names, _ = self.classes.modules.scope(self.source, self.node)
        for name, bound in names.items():
            last = bound[-1]
            if isinstance(last, ast.stmt | ast.expr):
                found[name] = last
        return found

    def find(self, name: str, *, after: ClassInfo | None = None) -> Member | None:
        """The class that defines ``name``, and the definition. ``after``: look behind that class, as ``super()``."""
        if after is None:
            if name not in self._found:
                self._found[name] = _first(self.mro, name)
            return self._found[name]
        order = self.mro
        return _first(order[order.index(after) + 1 :], name) if after in order else None

    def method(self, name: str) -> tuple[ClassInfo, Function] | None:
        """The function that ``name`` is looked up as."""
        found = self.find(name)
        if found is not None and isinstance(found[1], Function):
            return found[0], found[1]
        return None

    @functools.cached_property
    def call(self) -> tuple[ClassInfo, Function] | None:
        """The function that ``__call__`` is looked up as; ``None`` if that is the framework's."""
        found = self.method("__call__")
        return None if found is None or found[0].source.in_framework else found

    def own_method(self, name: str) -> Function | None:
        found = self.members.get(name)
        return found if isinstance(found, Function) else None

    @functools.cached_property
    def kind(self) -> BlockKind:
        """``"leaf"``, ``"sequential"``, ``"loop"``, ``"iterative"``, ``"conditional"`` or ``"auto"``; else ``""``."""
        for entry in self.lineage:
            if isinstance(entry, ClassInfo):
                if entry.source.in_framework and entry.name in KNOWN_BLOCKS:
                    return KNOWN_BLOCKS[entry.name]
                if entry.source.in_framework and entry.is_framework_block:
                    return entry.capability
            elif is_framework_name(entry) and entry.rpartition(".")[2] in KNOWN_BLOCKS:
                return KNOWN_BLOCKS[entry.rpartition(".")[2]]
        return ""

    @functools.cached_property
    def is_framework_block(self) -> bool:
        return any(isinstance(entry, ClassInfo) and entry.name == BLOCK_BASE for entry in self.lineage)

    @property
    def capability(self) -> BlockKind:
        """The kind of a block base that only a newer framework has, told by its methods."""
        if self.find("loop_step"):
            return "iterative" if self.find("loop_variables") else "loop"
        if self.find("select_block"):
            return "conditional"
        return "sequential" if self.find("block_classes") else "leaf"

    @property
    def is_block(self) -> bool:
        return bool(self.kind) and not self.source.in_framework

    @property
    def is_assembled(self) -> bool:
        return self.kind in ("sequential", "conditional", "auto")

    @property
    def loops(self) -> bool:
        return self.kind in ("loop", "iterative")

    @functools.cached_property
    def is_loop_step(self) -> bool:
        """Whether the class may be a step of an ``IterativePipelineBlocks``."""
        names = ("ModularLoopPipelineBlocks", "IterativePipelineBlocks")
        return any(
            (entry.source.in_framework and entry.name in names)
            if isinstance(entry, ClassInfo)
            else is_framework_name(entry) and entry.endswith(names)
            for entry in self.lineage
        )

    @property
    def selects(self) -> bool:
        return self.kind in ("conditional", "auto")

    @functools.cached_property
    def is_pipeline(self) -> bool:
        """Whether the class is a subclass of ``ModularPipeline``."""
        if self.source.in_framework:
            return False
        for entry in self.lineage:
            if isinstance(entry, ClassInfo):
                if entry.source.in_framework and entry.name == PIPELINE_BASE:
                    return True
            elif is_framework_name(entry) and entry.rpartition(".")[2] == PIPELINE_BASE:
                return True
        return False

    @functools.cached_property
    def is_leaf(self) -> bool:
        """Whether the class is a block that runs code of its own instead of other blocks."""
        return self.is_block and self.kind == "leaf"


def _first(order: list[ClassInfo], name: str) -> Member | None:
    for entry in order:
        if name in entry.members:
            return entry, entry.members[name]
    return None


def _is_plain(dotted: str) -> bool:
    return dotted in ("object", "abc.ABC", "typing.Generic", "typing.Protocol")


def _lineage(info: ClassInfo, path: frozenset[ClassInfo]) -> list[ClassInfo | str]:
    if len(path) > 100:
        return [info]
    order: list[ClassInfo | str] = [info]
    for base in info.bases:
        if isinstance(base, str):
            order.append(base)
        elif base is not info and base not in path:
            order += _lineage(base, path | {info}) if "lineage" not in base.__dict__ else base.lineage
    # The last occurrence counts, as in Python's own order for diamonds.
    seen: set[ClassInfo | str] = set()
    kept: list[ClassInfo | str] = []
    for entry in reversed(order):
        if entry not in seen:
            seen.add(entry)
            kept.append(entry)
    return kept[::-1] if kept[-1] is info else [info, *(entry for entry in kept[::-1] if entry is not info)]


class Classes:
    """The classes of a run, one :class:`ClassInfo` for each definition."""

    def __init__(self, modules: Modules) -> None:
        self.modules = modules
        self._infos: dict[ast.ClassDef, ClassInfo] = {}

    def info(self, source: Source, node: ast.ClassDef) -> ClassInfo:
        if node not in self._infos:
            self._infos[node] = ClassInfo(source, node, self)
        return self._infos[node]

    def named(self, source: Source, expression: ast.expr, scope: Function | None = None) -> ClassInfo | str | None:
        """The class that an expression names; a dotted name if its definition is not read."""
        symbol = self.modules.symbol(source, expression, scope)
        if symbol is None:
            return None
        if isinstance(symbol.node, ast.ClassDef) and symbol.source is not None:
            return self.info(symbol.source, symbol.node)
        if symbol.source is not None and isinstance(symbol.node, ast.IfExp | ast.BoolOp | ast.Call):
            return self._chosen(symbol.source, symbol.node)
        return symbol.dotted if symbol.node is None else None

    def _chosen(self, source: Source, node: ast.IfExp | ast.BoolOp | ast.Call) -> ClassInfo | str | None:
        """The class that ``Base = A if fits else object``, ``A or B`` or ``cast(type, A)`` stands for."""
        if isinstance(node, ast.IfExp):
            options = [node.body, node.orelse]
        elif isinstance(node, ast.BoolOp):
            options = node.values
        else:
            options = node.args[1:] if name_of(node.func) == "cast" else []
        found = [self.named(source, option) for option in options if isinstance(option, Dotted)]
        return next((one for one in found if one is not None and one != "object"), None)

    def of(self, source: Source) -> list[ClassInfo]:
        """Classes defined in ``source``, at any depth, in order."""
        return [self.info(source, node) for node in source.nodes(ast.ClassDef)]

    def bases_of(self, info: ClassInfo) -> list[ClassInfo | str]:
        bases: list[ClassInfo | str] = []
        scope = info.source.function_of(info.node)
        if isinstance(scope, ast.Lambda):
            scope = None
        for expression in info.node.bases:
            if isinstance(expression, ast.Subscript):
                expression = expression.value
            found = self.named(info.source, expression, scope)
            if found is None:
                found = ast.unparse(expression)
            if found is not info:
                bases.append(found)
        return bases
