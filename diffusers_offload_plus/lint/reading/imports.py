"""Names that a module binds: by imports, definitions and assignments, and lazily by ``_import_structure``."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from .nodes import Listing, name_of
from .source import FRAMEWORK_PACKAGE, Source

__all__ = ["ImportedName", "absolute_module", "bindings", "imported_names", "in_type_checking"]

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_IMPORT = ast.Import | ast.ImportFrom
# What the files right below ``modular_pipelines`` are called, and what is imported from them.
_FRAMEWORK_FILES = {"modular_pipeline", "modular_pipeline_utils", "components_manager"}
_FRAMEWORK_NAMES = re.compile(
    r"(PipelineBlocks|^ModularPipeline|^PipelineState|^BlockState|^StreamEvent|^InsertableDict|^ComponentsManager"
    r"|^(Input|Output)Param|^(Component|Config)Spec)$"
)


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedName:
    """One name of an import statement. It refers to a module, or to ``name`` in it (``"*"`` for all names).

    Attributes:
        module: the absolute name of the module, ``""`` if the dots leave the package.
        bound: the name that the statement binds; ``node``, ``source``: the statement, and the file it stands in.
        level, spelled: the module as it is written: the number of dots, and what follows them.
    """

    module: str
    name: str
    bound: str
    node: ast.AST
    source: Source
    level: int = 0
    spelled: str = ""


def absolute_module(source: Source, node: ast.ImportFrom) -> str | None:
    """The module that a ``from`` statement imports from; ``None`` if the dots leave the package."""
    if not node.level:
        return node.module or ""
    package = _package(source)
    if node.level > len(package):
        package = _copied_from(source)
    if node.level > len(package):
        return None
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _package(source: Source) -> list[str]:
    """The parts of the name of the package that the dots in ``source`` count from."""
    parts = source.module.split(".") if source.module else []
    return parts if source.package else parts[:-1]


def _copied_from(source: Source) -> list[str]:
    """The package in diffusers that a file was written in, told by its imports of the framework; else nothing.

    A model family that lies outside of diffusers still says ``from ..modular_pipeline import ModularPipelineBlocks``.
    """
    for node in source.nodes(ast.ImportFrom):
        if node.level <= len(_package(source)) or (node.module or "") not in _FRAMEWORK_FILES:
            continue
        if any(_FRAMEWORK_NAMES.search(alias.name) for alias in node.names):
            folders = PurePosixPath(source.path).parent.parts[-(node.level - 1) :] if node.level > 1 else ()
            return [*FRAMEWORK_PACKAGE.split("."), *folders]
    return []


def imported_names(source: Source, node: ast.Import | ast.ImportFrom) -> Iterator[ImportedName]:
    """The names of an import statement, with what each refers to."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            module = alias.name if alias.asname else alias.name.split(".")[0]
            yield ImportedName(module, "", alias.asname or module, node, source, 0, module)
        return
    module = absolute_module(source, node) or ""
    for alias in node.names:
        bound = alias.asname or alias.name
        yield ImportedName(module, alias.name, bound, node, source, node.level, node.module or "")


def in_type_checking(source: Source, node: ast.AST) -> bool:
    """Whether ``node`` is only seen by type checkers (``if TYPE_CHECKING:``, without an ``or``)."""
    previous = node
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, ast.If) and previous in ancestor.body:
            test = ancestor.test
            if name_of(test) == "TYPE_CHECKING":
                return True
        previous = ancestor
    return False


# Statements that hold others of the same scope.
_COMPOUND = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.TryStar,
    ast.Match,
)


def flat_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of one scope in order, with those inside compound statements, without those of inner scopes.

    ``except`` and ``else`` come before what they stand in for, since the last binding of a name counts.
    """
    stack = list(reversed(body))
    while stack:
        statement = stack.pop()
        yield statement
        if not isinstance(statement, _COMPOUND):
            continue
        inner: list[ast.stmt] = []
        fallback = ("orelse", "body") if isinstance(statement, ast.If) else ("body", "orelse")
        for field in ("handlers", *fallback, "finalbody", "cases"):
            for child in getattr(statement, field, ()):
                inner += child.body if isinstance(child, ast.ExceptHandler | ast.match_case) else [child]
        stack.extend(reversed(inner))


def bindings(source: Source, body: list[ast.stmt]) -> tuple[dict[str, list[object]], list[ImportedName]]:
    """Names bound by the statements of one scope, in order, and the star imports among them."""
    found: dict[str, list[object]] = {}
    stars: list[ImportedName] = []
    for statement in flat_statements(body):
        if isinstance(statement, _IMPORT):
            for imported in imported_names(source, statement):
                if imported.name == "*":
                    stars.append(imported)
                else:
                    found.setdefault(imported.bound, []).append(imported)
        elif isinstance(statement, Definition):
            found.setdefault(statement.name, []).append(statement)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(statement.value)
                    if target.id == "_import_structure":
                        _add_lazy_dictionary(source, statement.value, statement, found)
                elif (name := _lazy_submodule(target)) is not None:
                    _add_lazy(source, name, statement.value, statement, found)
                elif isinstance(target, Listing):
                    _bind_unpacked(target, statement.value, found)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            found.setdefault(statement.target.id, []).append(statement.value)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            function, arguments = statement.value.func, statement.value.args
            if isinstance(function, ast.Attribute) and function.attr == "extend" and len(arguments) == 1:
                name = _lazy_submodule(function.value)
                if name is not None:
                    _add_lazy(source, name, arguments[0], statement, found)
    return found, stars


def _bind_unpacked(target: Listing, value: ast.expr, found: dict[str, list[object]]) -> None:
    values: list[ast.expr | None] = [None] * len(target.elts)
    if isinstance(value, Listing) and len(value.elts) == len(target.elts):
        values = list(value.elts)
    for element, bound in zip(target.elts, values, strict=True):
        if isinstance(element, ast.Name):
            found.setdefault(element.id, []).append(bound)


def _lazy_submodule(target: ast.expr) -> str | None:
    """The submodule ``x`` of ``_import_structure["x"]``; ``None`` for anything else."""
    if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
        key = target.slice
        if target.value.id == "_import_structure" and isinstance(key, ast.Constant) and isinstance(key.value, str):
            return key.value
    return None


def _add_lazy_dictionary(source: Source, value: ast.expr, node: ast.stmt, found: dict[str, list[object]]) -> None:
    if isinstance(value, ast.Dict):
        for key, names in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                _add_lazy(source, key.value, names, node, found)


def _add_lazy(source: Source, submodule: str, names: ast.expr, node: ast.stmt, found: dict[str, list[object]]) -> None:
    module = f"{source.module}.{submodule}" if source.module else submodule
    if isinstance(names, Listing):
        for element in names.elts:
            if isinstance(element, ast.Constant) and isinstance(element.value, str):
                name = element.value
                found.setdefault(name, []).insert(0, ImportedName(module, name, name, node, source, 1, submodule))
