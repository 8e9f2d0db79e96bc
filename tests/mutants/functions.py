"""The functions of the package by their names, wherever their files are."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import pathlib
from collections.abc import Iterator

from tests.mutants.patterns import Stale

__all__ = ["Function", "Package"]

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Function:
    """One function and the file it is in."""

    name: str  # with the names of the classes and functions around it
    node: AnyFunction
    file: pathlib.Path
    source: bytes

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Where in the source ``node`` begins and ends."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        before = [0, *itertools.accumulate(map(len, self.source.splitlines(keepends=True)))]
        return before[node.lineno - 1] + node.col_offset, before[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        """The source of ``node``."""
        start, stop = self.span(node)
        return self.source[start:stop].decode()

    def __str__(self) -> str:
        return f"{self.name} ({self.file.name}, line {self.node.lineno})"


class Package:
    """All functions below a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.trees: dict[pathlib.Path, ast.Module] = {}
        self._by_name: dict[str, list[Function]] = {}
        for file in sorted(folder.rglob("*.py")):
            source = file.read_bytes()
            tree = self.trees[file] = ast.parse(source)
            for name, node in _functions(tree, ""):
                self._by_name.setdefault(name, []).append(Function(name, node, file, source))

    def function(self, where: str) -> Function:
        """The only one that ``where`` names: ``lay_out``, ``ParamGroup.onload``, or with the last name of its module
        if there are several, ``slabs:SlabPool.take``.

        Raises:
            Stale: there is none, or more than one.
        """
        module, _, name = where.rpartition(":")
        found = [one for one in self._by_name.get(name, []) if not module or _module_of(one.file) == module]
        if len(found) == 1:
            return found[0]
        if not found:
            near = difflib.get_close_matches(name, self._by_name, n=3)
            hint = f"; there are {', '.join(near)}" if near else ""
            raise Stale(f"no function of the package is called {where}{hint}")
        modules = sorted(_module_of(one.file) for one in found)
        raise Stale(f"{len(found)} functions are called {where}; say which, as in {modules[0]}:{name} ({modules})")


def _module_of(file: pathlib.Path) -> str:
    return file.parent.name if file.stem == "__init__" else file.stem


def _functions(node: ast.AST, around: str) -> Iterator[tuple[str, AnyFunction]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{around}{child.name}", child
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _functions(child, f"{around}{child.name}.")
        else:
            yield from _functions(child, around)
