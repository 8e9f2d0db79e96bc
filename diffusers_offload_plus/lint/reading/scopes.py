"""The class and the function that a line of a file lies in."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

__all__ = ["Scope", "Scopes"]


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """A class or a function.

    Attributes:
        name: qualified name, such as ``"ToyStep.inputs"``.
        first, last: first and last line, decorators included; ``header``: the line of ``class`` or ``def``.
    """

    name: str
    first: int
    header: int
    last: int
    is_class: bool


class Scopes:
    """The scopes of one file; none if it cannot be parsed."""

    def __init__(self, text: str) -> None:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            tree = ast.Module([], [])
        # Outer scopes come before inner ones.
        self.all = list(_scopes(tree))

    def name(self, line: int) -> str:
        """The qualified name of the innermost scope around ``line``; ``""`` outside of all."""
        found = ""
        for scope in self.all:
            if scope.first <= line <= scope.last:
                found = scope.name
        return found

    def class_at(self, line: int) -> Scope | None:
        """The class whose ``class`` statement, or first decorator, is at ``line``."""
        for scope in self.all:
            if scope.is_class and line in (scope.first, scope.header):
                return scope
        return None


def _scopes(tree: ast.Module) -> Iterator[Scope]:
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        node, prefix = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}{child.name}"
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                yield Scope(
                    name, first, child.lineno, child.end_lineno or child.lineno, isinstance(child, ast.ClassDef)
                )
                waiting.append((child, f"{name}."))
            elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                waiting.append((child, prefix))
