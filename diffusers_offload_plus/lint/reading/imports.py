"""Names that a module binds: by imports, definitions and assignments, and lazily by ``_import_structure``."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from .nodes import Listing, name_of
from .source import Source

__all__ = ["ImportedName", "absolute_module", "bindings", "imported_names", "in_type_checking"]

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_IMPORT = ast.Import | ast.ImportFrom


@dataclasses.dataclass(frozen=True, slots=True)
class ImportedName:
    """One name of an import statement. It refers to ``module``, or to ``name`` in it (``"*"`` for all names)."""

    module: str
    name: str
    bound: str
    node: ast.AST

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}" if self.name and self.module else self.module or self.name


def absolute_module(source: Source, node: ast.ImportFrom) -> str | None:
    """The module that a ``from`` statement imports from; ``None`` if the dots leave the package."""
    if not node.level:
        return node.module or ""
    if not source.module:
        return None
    parts = source.module.split(".")
    dropped = node.level - (1 if source.package else 0)
    if dropped >= len(parts):
        return None
    base = parts[: len(parts) - dropped]
    return ".".join([*base, node.module] if node.module else base)


def imported_names(source: Source, node: ast.Import | ast.ImportFrom) -> Iterator[ImportedName]:
    """The names of an import statement, with what each refers to."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname:
                yield ImportedName(alias.name, "", alias.asname, node)
            else:
                yield ImportedName(alias.name.split(".")[0], "", alias.name.split(".")[0], node)
        return
    module = absolute_module(source, node)
    if module is None:
        return
    for alias in node.names:
        yield ImportedName(module, alias.name, alias.asname or alias.name, node)


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
    """The statements of one scope in order, with those inside compound statements, without those of inner scopes."""
    stack = list(reversed(body))
    while stack:
        statement = stack.pop()
        yield statement
        if not isinstance(statement, _COMPOUND):
            continue
        inner: list[ast.stmt] = []
        for field in ("body", "orelse", "handlers", "finalbody", "cases"):
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
                found.setdefault(element.value, []).insert(0, ImportedName(module, element.value, element.value, node))
