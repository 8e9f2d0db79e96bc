"""One parsed file, and where in a package it stands."""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from .nodes import AnyFunction, Function

__all__ = ["FRAMEWORK_PACKAGE", "Node", "Problem", "Source", "parse", "syntax_problem"]

FRAMEWORK_PACKAGE = "diffusers.modular_pipelines"

Node = TypeVar("Node", bound=ast.AST)


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Problem:
    """A file that could not be read, decoded or parsed."""

    path: str
    line: int
    message: str
    column: int = 1


# Fields without nodes worth visiting: they hold names and other plain values, contexts or operators.
_LEFT_OUT = {
    "ctx", "op", "ops", "type_ignores", "type_comment", "id", "attr", "arg", "name", "asname", "module", "level",
    "kind", "is_async", "conversion", "simple", "rest", "kwd_attrs",
}  # fmt: skip
_LEAVES = {"Constant", "Name", "alias", "Global", "Nonlocal", "MatchSingleton"}
_fields_by_type: dict[type[ast.AST], tuple[str, ...]] = {}


def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    """Fields of a type of node that may hold nodes."""
    if kind not in _fields_by_type:
        fields = tuple(field for field in kind._fields if field not in _LEFT_OUT)
        _fields_by_type[kind] = () if kind.__name__ in _LEAVES else fields
    return _fields_by_type[kind]


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class _Index:
    """The nodes of a tree in source order, with what is above, below and around each. Built without recursion.

    Attributes:
        order: the nodes; ``positions``: the position of each in ``order``.
        outer: positions of the parents, by position; ``sizes``: sizes of the subtrees, by position.
        by_type: the nodes of each type, in source order.
    """

    def __init__(self, tree: ast.AST) -> None:
        self.order: list[ast.AST] = []
        self.outer: list[int] = []
        self._walk(tree)
        self.positions = dict(zip(self.order, range(len(self.order)), strict=True))
        self.by_type = _by_type(self.order)
        outer = self.outer
        self.sizes = sizes = [1] * len(outer)
        for position in range(len(outer) - 1, 0, -1):
            sizes[outer[position]] += sizes[position]

    def _walk(self, tree: ast.AST) -> None:
        order, outer, fields_by_type = self.order, self.outer, _fields_by_type
        stack: list[ast.AST | None] = [tree]
        above = [0]
        while stack:
            node, parent = stack.pop(), above.pop()
            if node is None:  # the key of ``{**mapping}``, the default of a keyword that has none
                continue
            here = len(order)
            order.append(node)
            outer.append(parent)
            fields = fields_by_type.get(node.__class__)
            if fields is None:
                fields = _fields(node.__class__)
            if not fields:
                continue
            below: list[ast.AST | None] = []
            for field in fields:
                value = getattr(node, field, None)
                if value.__class__ is list:
                    below += value
                elif value is not None:
                    below.append(value)
            below.reverse()
            stack += below
            above += [here] * len(below)

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that holds ``node``; ``None`` for the root and for nodes that are not indexed."""
        position = self.positions.get(node)
        return self.order[self.outer[position]] if position else None

    @functools.cached_property
    def functions(self) -> list[AnyFunction | None]:
        """The innermost function around each node, by position."""
        found: list[AnyFunction | None] = [None] * len(self.order)
        for position in sorted(self.positions[node] for kind in _FUNCTIONS for node in self.by_type.get(kind, ())):
            inside = self.sizes[position] - 1
            found[position + 1 : position + 1 + inside] = [self.order[position]] * inside  # type: ignore[list-item]
        return found


def _by_type(nodes: Iterable[ast.AST]) -> dict[type[ast.AST], list[Any]]:
    found: dict[type[ast.AST], list[Any]] = defaultdict(list)
    for node in nodes:
        found[node.__class__].append(node)
    return found


@dataclasses.dataclass(eq=False)
class Source:
    """A parsed file.

    Attributes:
        path: path as shown to users, with forward slashes.
        module: dotted name, ``""`` if it lies in no package.
        package: whether it is an ``__init__.py``.
        linted: whether findings are wanted for the file, or it is only read to understand others.
    """

    path: str
    module: str
    text: str
    tree: ast.Module
    linted: bool

    @functools.cached_property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.path)

    @functools.cached_property
    def package(self) -> bool:
        return self._path.name == "__init__.py"

    @functools.cached_property
    def stem(self) -> str:
        return self._path.stem

    @functools.cached_property
    def is_test(self) -> bool:
        """Whether the file is a test module, recognised as pytest does, or a helper beside one."""
        parts = self._path.parts
        return self.stem.startswith("test_") or "tests" in parts[:-1] or self.stem == "conftest"

    @functools.cached_property
    def in_framework(self) -> bool:
        """Whether the file is part of the framework of modular pipelines itself, which rules do not apply to."""
        if not (self.module == FRAMEWORK_PACKAGE or self.module.startswith(FRAMEWORK_PACKAGE + ".")):
            return False
        return self.module.count(".") == 1 or (self.module.count(".") == 2 and not self.package)

    @functools.cached_property
    def family(self) -> str:
        """Name of the model family under ``modular_pipelines``, else ``""``."""
        parts = self.module.split(".")
        if self.in_framework or parts[:2] != FRAMEWORK_PACKAGE.split(".") or len(parts) < 3:
            return ""
        return parts[2]

    @functools.cached_property
    def group(self) -> str:
        """The directory of the file; its files are judged together."""
        return str(self._path.parent)

    @functools.cached_property
    def lines(self) -> list[str]:
        # Not splitlines(): unlike ast, that also splits at form feeds and at separators inside strings.
        return self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

    @functools.cached_property
    def _index(self) -> _Index:
        return _Index(self.tree)

    def nodes(self, *types: type[Node]) -> list[Node]:
        """All nodes of exactly these types."""
        by_type = self._index.by_type
        return [node for kind in types for node in by_type.get(kind, ())]

    def within(self, node: ast.AST, *types: type[Node]) -> list[Node]:
        """The nodes of exactly these types at and below ``node``, one type after the other, each in source order."""
        typed = self.typed(node)
        return [inner for kind in types for inner in typed.get(kind, ())]

    def typed(self, node: ast.AST) -> Mapping[type[ast.AST], list[Any]]:
        """The nodes at and below ``node`` by type, each in source order."""
        if node not in self._typed:
            self._typed[node] = _by_type(self.below(node))
        return self._typed[node]

    @functools.cached_property
    def _typed(self) -> dict[ast.AST, Mapping[type[ast.AST], list[Any]]]:
        return {}

    @property
    def functions(self) -> list[Function]:
        """All functions and methods."""
        return [*self.nodes(ast.FunctionDef), *self.nodes(ast.AsyncFunctionDef)]

    def parent(self, node: ast.AST) -> ast.AST | None:
        return self._index.parent(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around ``node``, from its parent outwards."""
        index = self._index
        position = index.positions.get(node, 0)
        while position:
            position = index.outer[position]
            yield index.order[position]

    def function_of(self, node: ast.AST) -> AnyFunction | None:
        """The innermost function around ``node``."""
        index = self._index
        position = index.positions.get(node)
        return index.functions[position] if position is not None else None

    def below(self, node: ast.AST) -> list[ast.AST]:
        """``node`` and all nodes below it, in source order."""
        index = self._index
        start = index.positions[node]
        return index.order[start : start + index.sizes[start]]

    def is_inside(self, node: ast.AST, outer: ast.AST) -> bool:
        """Whether ``node`` is ``outer`` or lies in it."""
        index = self._index
        start = index.positions[outer]
        return start <= index.positions.get(node, -1) < start + index.sizes[start]

    def comes_before(self, node: ast.AST, other: ast.AST) -> bool:
        """Whether ``node`` begins before ``other`` in the text."""
        positions = self._index.positions
        return positions[node] < positions[other]

    def statement(self, node: ast.AST) -> ast.AST:
        """The innermost statement that holds ``node``."""
        current: ast.AST | None = node
        while current is not None and not isinstance(current, ast.stmt):
            current = self.parent(current)
        return node if current is None else current


def decode(data: bytes) -> str:
    """The text of a Python file, decoded as its byte order mark or coding line says.

    Raises:
        UnicodeDecodeError, SyntaxError: the bytes are no text in that encoding, or the encoding is unknown.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding)


def parse(text: str, path: str) -> ast.Module | Problem:
    """The syntax tree of ``text``, or the problem that keeps it from being parsed."""
    try:
        return ast.parse(text, filename=path)
    except SyntaxError as error:
        return syntax_problem(path, error)
    except (RecursionError, MemoryError):
        return Problem(path, 1, "nested too deeply to be parsed")
    except ValueError as error:  # null bytes, lone surrogates, integers with too many digits
        return Problem(path, 1, f"cannot be parsed: {error}")


def syntax_problem(path: str, error: SyntaxError, line: int | None = None) -> Problem:
    """The problem with a file that is not valid Python, at ``line`` or where the error says."""
    read_as = f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = next((version for version, fits in _NEWER if sys.version_info < version and fits(error)), None)
    hint = f"needs Python {needed[0]}.{needed[1]}, but was " if needed is not None else ""
    message = f"syntax error: {error.msg} ({hint}read as Python {read_as})"
    return Problem(path, line or error.lineno or 1, message, max(error.offset or 1, 1))


def _writes(pattern: str) -> Callable[[SyntaxError], bool]:
    return lambda error: re.search(pattern, error.text or "") is not None


# What only newer versions of Python understand, told by the line that is wrong.
_NEWER: tuple[tuple[tuple[int, int], Callable[[SyntaxError], bool]], ...] = (
    ((3, 15), _writes(r"^\s*lazy (import|from)\b")),
    ((3, 14), lambda error: "must be parenthesized" in error.msg and "except" in (error.text or "")),
    ((3, 14), _writes(r"(?i)(^|[^\w])(t|tr|rt)[\"\']")),
    ((3, 12), _writes(r"^\s*type\s+\w+\s*(\[|=)|^\s*(async\s+)?(def|class)\s+\w+\[")),
    ((3, 12), lambda error: error.msg.startswith("f-string")),
)
