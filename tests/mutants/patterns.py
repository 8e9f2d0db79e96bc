"""Patterns of Python source, matched on the syntax tree: comments, line breaks and brackets make no difference.

A pattern is one expression or one statement. In it

* ``_`` stands for any expression or any name after a dot; ``_1``, ``_2`` likewise, and for the same one each time;
* ``...`` at the end of a list stands for whatever else there is: ``f(...)``, ``f(x, ...)``, ``a or ...``,
  ``if a: ...``.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

__all__ = ["Found", "Pattern", "Stale", "conditions", "expressions", "is_wildcard", "statements"]

Found = dict[str, list[ast.expr]]  # what each wildcard stands for; ``_`` may be several

# Marks of the parser that say nothing about the meaning.
_IGNORED = ("ctx", "kind", "type_comment")


class Stale(Exception):
    """A mutant does not apply to the source as it is now."""


class Pattern:
    """One expression or statement with wildcards."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            body = ast.parse(textwrap.dedent(text)).body
        except SyntaxError as error:
            raise Stale(f"the pattern `{text}` is not Python: {error.msg}") from error
        if len(body) != 1:
            raise Stale(f"the pattern `{text}` is not one expression or statement")
        only = body[0]
        self.is_expression = isinstance(only, ast.Expr)
        self._node: ast.AST = only.value if isinstance(only, ast.Expr) else only

    def match(self, node: ast.AST) -> Found | None:
        """What the wildcards stand for, if ``node`` is like the pattern. A statement that is only an expression is
        like that expression."""
        if self.is_expression and isinstance(node, ast.Expr):
            node = node.value
        found: Found = {}
        return found if _same(self._node, node, found) else None


def is_wildcard(name: str) -> bool:
    """Whether a name stands for any other."""
    return re.fullmatch(r"_\d*", name) is not None


def expressions(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """Every expression in ``body``."""
    return (node for node in _walk(body) if isinstance(node, ast.expr))


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement in ``body``, those within others included."""
    return (node for node in _walk(body) if isinstance(node, ast.stmt))


def conditions(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """What ``body`` decides by: after ``if``, ``elif`` and ``while``, in comprehensions too."""
    for node in _walk(body):
        if isinstance(node, (ast.If, ast.While, ast.IfExp)):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs


def _walk(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        yield node
        # Before Python 3.12 what is inside an f-string says that it is elsewhere.
        if not isinstance(node, ast.JoinedStr):
            waiting.extend(reversed(list(ast.iter_child_nodes(node))))


def _same(pattern: ast.AST, node: ast.AST, found: Found) -> bool:
    if isinstance(pattern, ast.Name) and is_wildcard(pattern.id):
        return isinstance(node, ast.expr) and _note(pattern.id, node, found)
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, ast.Constant) and isinstance(node, ast.Constant):
        return type(pattern.value) is type(node.value) and pattern.value == node.value
    if isinstance(pattern, ast.Call) and isinstance(node, ast.Call):
        return _same_call(pattern, node, found)
    return all(
        _same_value(getattr(pattern, field, None), getattr(node, field, None), found)
        for field in pattern._fields
        if field not in _IGNORED
    )


def _note(name: str, node: ast.expr, found: Found) -> bool:
    before = found.setdefault(name, [])
    if before and name != "_" and ast.dump(before[0]) != ast.dump(node):
        return False
    before.append(node)
    return True


def _same_call(pattern: ast.Call, node: ast.Call, found: Found) -> bool:
    theirs = {keyword.arg: keyword.value for keyword in node.keywords}
    mine = {keyword.arg: keyword.value for keyword in pattern.keywords}
    open_ended = bool(pattern.args) and _is_rest(pattern.args[-1])
    if not (mine.keys() <= theirs.keys() if open_ended else mine.keys() == theirs.keys()):
        return False
    return (
        _same(pattern.func, node.func, found)
        and _same_value(pattern.args, node.args, found)
        and all(_same(value, theirs[name], found) for name, value in mine.items())
    )


def _same_value(pattern: object, value: object, found: Found) -> bool:
    if isinstance(pattern, list):
        assert isinstance(value, list)
        if pattern and _is_rest(pattern[-1]):
            pattern, value = pattern[:-1], value[: len(pattern) - 1]
        return len(pattern) == len(value) and all(
            _same_value(mine, its, found) for mine, its in zip(pattern, value, strict=True)
        )
    if isinstance(pattern, ast.AST):
        return isinstance(value, ast.AST) and _same(pattern, value, found)
    if isinstance(pattern, str) and is_wildcard(pattern):
        return isinstance(value, str)
    return pattern == value


def _is_rest(node: object) -> bool:
    node = node.value if isinstance(node, ast.Expr) else node
    return isinstance(node, ast.Constant) and node.value is ...
