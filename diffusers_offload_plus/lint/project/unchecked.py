"""Blocks that could not be followed to the framework, so that no rule or not every rule has seen them."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from ..evaluation.values import Choice, External, Value, elements
from ..reading.imports import imported_names
from ..reading.nodes import Function, method_called
from ..reading.source import FRAMEWORK_PACKAGE, Source
from ..resolution.classes import KNOWN_BLOCKS, PIPELINE_BASE, ClassInfo
from ..resolution.modules import is_framework_name, parameters
from .project import Project, once

__all__ = ["Unchecked", "unchecked"]

_LISTS = {"intermediate_outputs", "expected_components", "expected_configs", "loop_inputs", "block_trigger_inputs"}


@dataclasses.dataclass(frozen=True)
class Unchecked:
    """What of a file could not be understood.

    Attributes:
        kind: ``"base"`` (blocks whose base class is not found), ``"step"`` (blocks that an assembled block runs) or
            ``"newer"`` (names of the framework that the one that was read lacks).
        node: the first place; ``names``: what was not found; ``about``: the classes that are not checked, or in part.
    """

    source: Source
    kind: str
    node: ast.AST
    names: tuple[str, ...]
    about: tuple[str, ...]


@once
def unchecked(project: Project) -> list[Unchecked]:
    """What could not be understood, each kind at most once a file."""
    found: list[Unchecked] = []
    for source in project.sources:
        if not source.is_test and not source.in_framework:
            found += filter(None, (_bases(project, source), _steps(project, source), _newer(project, source)))
    return found


def _bases(project: Project, source: Source) -> Unchecked | None:
    found: list[tuple[ClassInfo, str]] = []
    for info in project.classes.of(source):
        if info.kind or info.is_pipeline:
            continue
        missing = [entry for entry in info.lineage if isinstance(entry, str)]
        base = next((entry for entry in missing if _may_be_block(info, entry)), None)
        if base is not None:
            found.append((info, base))
    return _collected(source, "base", [(info.node, base, info.name) for info, base in found])


def _may_be_block(info: ClassInfo, base: str) -> bool:
    """Whether a class that inherits from something unknown is written like a block, so that the base may be one."""
    if base.endswith("PipelineBlocks"):
        return True
    for entry in info.mro:
        if _LISTS & set(entry.members):
            return True
        call = entry.own_method("__call__")
        if call is not None and _is_written_like_a_block(entry, call):
            return True
    return False


def _is_written_like_a_block(info: ClassInfo, call: Function) -> bool:
    if any(method_called(node) == "get_block_state" for node in info.source.within(call, ast.Call)):
        return True
    names = parameters(call)
    return "components" in names and ("state" in names or "block_state" in names)


def _steps(project: Project, source: Source) -> Unchecked | None:
    found: list[tuple[ast.AST, str, str]] = []
    for info in project.classes.of(source):
        if info.kind in ("", "leaf") or info.source.in_framework or "block_classes" not in info.members:
            continue
        block = project.block(info)
        for value in elements(block.attribute("block_classes"))[0]:
            found += [(info.node, name, info.name) for name in _not_read(value)]
    return _collected(source, "step", found)


def _not_read(value: Value) -> Iterator[str]:
    options = value.options if isinstance(value, Choice) else (value,)
    yield from (option.dotted for option in options if isinstance(option, External))


def _newer(project: Project, source: Source) -> Unchecked | None:
    """Names imported from the framework that it does not have: a newer one has them, or they are misspelled."""
    package = project.modules.module(FRAMEWORK_PACKAGE)
    if package is None or ("diffusers" not in source.text and "modular_pipeline" not in source.text):
        return None
    found: list[tuple[ast.AST, str, str]] = []
    for node in source.nodes(ast.ImportFrom):
        for name in imported_names(source, node):
            if name.name == "*" or not _is_about_framework(name.module, name.name):
                continue
            module = project.modules.module(name.module)
            symbol = project.modules.imported(name)
            if module is None or symbol is None or symbol.node is not None or project.modules.is_module(symbol.dotted):
                continue
            if name.name not in project.modules.scope(module, module.tree)[0]:
                found.append((node, name.name, ""))
    return _collected(source, "newer", found)


def _is_about_framework(module: str, name: str) -> bool:
    if module == "diffusers":
        return name in KNOWN_BLOCKS or (name.endswith("PipelineBlocks") and name != PIPELINE_BASE)
    parts = module.split(".")
    return module == FRAMEWORK_PACKAGE or (parts[:2] == FRAMEWORK_PACKAGE.split(".") and len(parts) == 3)


def _collected(source: Source, kind: str, places: list[tuple[ast.AST, str, str]]) -> Unchecked | None:
    if not places:
        return None
    names = tuple(dict.fromkeys(_short(name) for _, name, _ in places))
    about = tuple(dict.fromkeys(about for _, _, about in places if about))
    return Unchecked(source, kind, places[0][0], names, about)


def _short(dotted: str) -> str:
    return dotted.rpartition(".")[2] if is_framework_name(dotted) else dotted
