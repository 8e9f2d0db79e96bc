"""Reporting: findings with the right place and level."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding
from ...reading.source import Source
from .rule import Rule

__all__ = ["report"]


def report(
    rule: Rule, source: Source, node: ast.AST, message: str, *, kind: str = "", fixable: bool = False
) -> Iterator[Finding]:
    """One finding at ``node``, or none if its file is not linted. Its level may be off; settings may change that."""
    level = rule.kinds.get(kind, rule.level)
    if not source.linted:
        return
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    end_line, end_column = getattr(node, "end_lineno", None) or line, getattr(node, "end_col_offset", None) or column
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        end_line, end_column = line, len(source.lines[line - 1].encode()) if line <= len(source.lines) else column
    yield Finding(
        path=source.path,
        line=line,
        column=_characters(source, line, column) + 1,
        end_line=end_line,
        end_column=_characters(source, end_line, end_column) + 1,
        code=rule.code,
        name=rule.name,
        message=message,
        level=level,
        kind=kind,
        fixable=fixable,
    )


def _characters(source: Source, line: int, offset: int) -> int:
    """The number of characters before an offset in UTF-8 bytes, which is what ``ast`` counts."""
    text = source.lines[line - 1] if line <= len(source.lines) else ""
    return offset if text.isascii() else len(text.encode()[:offset].decode(errors="ignore"))
