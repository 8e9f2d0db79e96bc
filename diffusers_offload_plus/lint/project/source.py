"""One parsed file, and where in a package it stands."""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TypeVar

__all__ = ["FRAMEWORK_PACKAGE", "Problem", "Source", "parse"]

FRAMEWORK_PACKAGE = "diffusers.modular_pipelines"

Node = TypeVar("Node", bound=ast.AST)


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Problem:
    """A file that could not be read, decoded or parsed."""

    path: str
    line: int
    message: str


# Fields that hold no nodes worth visiting: names and other plain values, expression contexts and operators.
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
    """The nodes of a tree in source order, with parents and sizes of subtrees. Built without recursion."""

    def __init__(self, tree: ast.AST) -> None:
        self.parents: dict[ast.AST, ast.AST] = {}
        self.by_type: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
        self.order: list[ast.AST] = []
        parents, order = self.parents, self.order
        fields_by_type, tree_type = _fields_by_type, ast.AST
        stack = [tree]
        while stack:
            node = stack.pop()
            order.append(node)
            fields = fields_by_type.get(node.__class__)
            if fields is None:
                fields = _fields(node.__class__)
            if not fields:
                continue
            below: list[ast.AST] = []
            for field in fields:
                value = getattr(node, field, None)
                if value.__class__ is list:
                    below += [item for item in value if isinstance(item, tree_type)]
                elif value is not None:
                    below.append(value)
            for child in below:
                parents[child] = node
            below.reverse()
            stack += below
        for node in order:
            self.by_type[node.__class__].append(node)
        self.positions = dict(zip(order, range(len(order)), strict=True))
        positions = self.positions
        self.sizes = sizes = [1] * len(order)
        for position in range(len(order) - 1, 0, -1):
            sizes[positions[parents[order[position]]]] += sizes[position]

    @functools.cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None]:
        """The innermost function around each node, by position."""
        found: list[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None] = [None] * len(self.order)
        for position, node in enumerate(self.order[1:], start=1):
            parent = self.parents[node]
            found[position] = parent if isinstance(parent, _FUNCTIONS) else found[self.positions[parent]]
        return found


@dataclasses.dataclass(eq=False)
class Source:
    """A parsed file.

    Attributes:
        path: as shown to users, with forward slashes.
        module: dotted name, ``""`` if it lies in no package.
        package: whether it is an ``__init__.py``.
        linted: findings are wanted for it; the others are only read to understand these.
    """

    path: str
    module: str
    text: str
    tree: ast.Module
    linted: bool

    @property
    def package(self) -> bool:
        return PurePosixPath(self.path).name == "__init__.py"

    @functools.cached_property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    @functools.cached_property
    def is_test(self) -> bool:
        """A test module, recognised as pytest does, or a helper beside one."""
        parts = PurePosixPath(self.path).parts
        return self.stem.startswith("test_") or "tests" in parts[:-1] or self.stem == "conftest"

    @functools.cached_property
    def in_framework(self) -> bool:
        """Part of the framework of modular pipelines itself, which defines what the rules forbid to bypass."""
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
        """What the file is judged together with: its directory."""
        return str(PurePosixPath(self.path).parent)

    @functools.cached_property
    def lines(self) -> list[str]:
        # Not splitlines(): that also splits at form feeds and at separators inside strings, which ast does not.
        return self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

    @functools.cached_property
    def _index(self) -> _Index:
        return _Index(self.tree)

    def nodes(self, *types: type[Node]) -> list[Node]:
        """All nodes of exactly these types."""
        by_type = self._index.by_type
        return [node for kind in types for node in by_type.get(kind, ())]  # type: ignore[misc]

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods."""
        return [*self.nodes(ast.FunctionDef), *self.nodes(ast.AsyncFunctionDef)]

    def parent(self, node: ast.AST) -> ast.AST | None:
        return self._index.parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """From the parent outwards."""
        parents = self._index.parents
        current = parents.get(node)
        while current is not None:
            yield current
            current = parents.get(current)

    def function_of(self, node: ast.AST) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
        """The innermost function around ``node``."""
        index = self._index
        position = index.positions.get(node)
        return index.functions[position] if position is not None else None

    def typed(self, function: ast.AST) -> Mapping[type[ast.AST], list[ast.AST]]:
        """The nodes below ``function`` by type, each in source order."""
        if function not in self._typed:
            found: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
            for node in self.below(function):
                found[node.__class__].append(node)
            self._typed[function] = found
        return self._typed[function]

    @functools.cached_property
    def _typed(self) -> dict[ast.AST, Mapping[type[ast.AST], list[ast.AST]]]:
        return {}

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

    def statement(self, node: ast.AST) -> ast.AST:
        """The innermost statement that holds ``node``."""
        current: ast.AST | None = node
        while current is not None and not isinstance(current, ast.stmt):
            current = self.parent(current)
        return node if current is None else current


def decode(data: bytes) -> str:
    """Text of a Python file by its byte order mark or coding line.

    Raises:
        UnicodeDecodeError, SyntaxError: it is not text in that encoding, or the encoding is unknown.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding)


def parse(text: str, path: str) -> ast.Module | Problem:
    """The tree of ``text``, or what is wrong with it."""
    try:
        return ast.parse(text, filename=path)
    except SyntaxError as error:
        return Problem(path, error.lineno or 1, f"syntax error: {error.msg}")
    except (RecursionError, MemoryError):
        return Problem(path, 1, "nested too deeply to be parsed")
    except ValueError as error:  # null bytes, lone surrogates, integers with too many digits
        return Problem(path, 1, f"cannot be parsed: {error}")
