"""Edits of one function. Each replaces one piece of the source, so that the rest of the file stays as it was.

Most name the piece by a pattern (see :mod:`tests.mutants.patterns`), which has to be like exactly one place of the
function; ``after`` narrows that to what comes after the one place that is like another pattern.
"""

from __future__ import annotations

import ast
import dataclasses
import textwrap
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from tests.mutants.functions import Function
from tests.mutants.patterns import Found, Pattern, Stale, conditions, expressions, is_wildcard, statements

__all__ = ["After", "Always", "AtEnd", "Before", "Body", "Drop", "Edit", "Never", "Replace", "Splice"]


class Splice(NamedTuple):
    """Bytes of a source from ``start`` to ``stop`` become ``text``."""

    start: int
    stop: int
    text: str


class Edit(Protocol):
    """A change of a function."""

    def splice(self, function: Function) -> Splice:
        """What becomes of its source.

        Raises:
            Stale: it does not apply.
        """


@dataclasses.dataclass(frozen=True)
class Replace:
    """Put ``new`` in the place of an expression or a statement; wildcards in it stand for what they matched."""

    pattern: str
    new: str
    after: str | None = None

    def splice(self, function: Function) -> Splice:
        if Pattern(self.pattern).is_expression and _is_expression(self.new):
            node, found = _only(function, self.pattern, expressions, self.after)
            return Splice(*function.span(node), f"({_filled(self.new, found, function)})")
        node, found = _only(function, self.pattern, statements, self.after)
        return _in_place_of(node, function, _filled(self.new, found, function))


@dataclasses.dataclass(frozen=True)
class Drop:
    """Leave a statement out."""

    pattern: str
    after: str | None = None

    def splice(self, function: Function) -> Splice:
        node, _ = _only(function, self.pattern, statements, self.after)
        return _in_place_of(node, function, "pass")


@dataclasses.dataclass(frozen=True)
class Never:
    """Take a condition (of ``if``, ``elif``, ``while``) for false."""

    pattern: str
    after: str | None = None

    def splice(self, function: Function) -> Splice:
        node, _ = _only(function, self.pattern, conditions, self.after)
        return Splice(*function.span(node), "(False)")


@dataclasses.dataclass(frozen=True)
class Always:
    """Take a condition (of ``if``, ``elif``, ``while``) for true."""

    pattern: str
    after: str | None = None

    def splice(self, function: Function) -> Splice:
        node, _ = _only(function, self.pattern, conditions, self.after)
        return Splice(*function.span(node), "(True)")


@dataclasses.dataclass(frozen=True)
class Before:
    """Put statements before one that is there."""

    pattern: str
    new: str
    after: str | None = None

    def splice(self, function: Function) -> Splice:
        node, found = _only(function, self.pattern, statements, self.after)
        _refuse_elif(node, function)
        start, _ = function.span(node)
        return Splice(start, start, _indented(f"{_filled(self.new, found, function)}\n", node) + " " * node.col_offset)


@dataclasses.dataclass(frozen=True)
class After:
    """Put statements after one that is there."""

    pattern: str
    new: str
    after: str | None = None

    def splice(self, function: Function) -> Splice:
        node, found = _only(function, self.pattern, statements, self.after)
        _refuse_elif(node, function)
        return _behind(node, function, _filled(self.new, found, function))


@dataclasses.dataclass(frozen=True)
class AtEnd:
    """Do something more when the end of the function is reached."""

    new: str

    def splice(self, function: Function) -> Splice:
        last = function.node.body[-1]
        if isinstance(last, (ast.Return, ast.Raise)):
            raise Stale(f"{function}: nothing comes after its last statement, `{function.text(last)}`")
        return _behind(last, function, textwrap.dedent(self.new).strip())


@dataclasses.dataclass(frozen=True)
class Body:
    """Have a function do something else altogether; what its docstring promises stays."""

    new: str

    def splice(self, function: Function) -> Splice:
        first, last = function.node.body[0], function.node.body[-1]
        if first is not last and ast.get_docstring(function.node) is not None:
            first = function.node.body[1]
        new = _indented(textwrap.dedent(self.new).strip(), first)
        return Splice(function.span(first)[0], function.span(last)[1], new)


def _only(
    function: Function,
    pattern: str,
    kind: Callable[[list[ast.stmt]], Iterable[ast.expr | ast.stmt]],
    after: str | None = None,
) -> tuple[ast.expr | ast.stmt, Found]:
    sought, first = Pattern(pattern), 0
    if after is not None:
        mark, _ = _only(function, after, expressions if Pattern(after).is_expression else statements)
        first = function.span(mark)[1]
    places = [
        (node, found)
        for node in kind(function.node.body)
        if (found := sought.match(node)) is not None and function.span(node)[0] >= first
    ]
    if len(places) == 1:
        return places[0]
    what = f"{kind.__name__[:-1]} of {function} is like `{pattern}`" + (f" after `{after}`" if after else "")
    if not places:
        raise Stale(f"no {what}")
    raise Stale(f"more than one {what}: on lines {', '.join(str(node.lineno) for node, _ in places)}")


def _filled(new: str, found: Found, function: Function) -> str:
    """``new``, with the source of what they matched in the place of wildcards."""
    new = textwrap.dedent(new).strip()
    text = dataclasses.replace(function, source=new.encode())
    result = text.source
    used = [node for node in ast.walk(ast.parse(new)) if isinstance(node, ast.Name) and is_wildcard(node.id)]
    for node in sorted(used, key=text.span, reverse=True):
        values = found.get(node.id, [])
        if not values or (node.id == "_" and len(values) > 1):
            raise Stale(f"`{node.id}` of `{new}` stands for {len(values) or 'no'} places of the pattern: number them")
        start, stop = text.span(node)
        result = result[:start] + f"({function.text(values[0])})".encode() + result[stop:]
    return result.decode()


def _is_expression(text: str) -> bool:
    try:
        ast.parse(textwrap.dedent(text).strip(), mode="eval")
    except SyntaxError:
        return False
    return True


def _in_place_of(node: ast.expr | ast.stmt, function: Function, new: str) -> Splice:
    _refuse_elif(node, function)
    return Splice(*function.span(node), _indented(new, node))


def _behind(node: ast.expr | ast.stmt, function: Function, new: str) -> Splice:
    _, stop = function.span(node)
    return Splice(stop, stop, _indented(f"\n{new}", node))


def _indented(text: str, like: ast.expr | ast.stmt) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *(f"{' ' * like.col_offset}{line}" if line else line for line in rest)])


def _refuse_elif(node: ast.expr | ast.stmt, function: Function) -> None:
    if function.text(node).startswith("elif"):
        raise Stale(f"{function}: line {node.lineno} is an `elif`, which Never and Always change")
