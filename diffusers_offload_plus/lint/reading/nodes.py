"""Kinds of syntax nodes that are asked about together.

``isinstance(node, ast.Name | ast.Attribute)`` makes the union anew each time, which takes longer than the check.
"""

from __future__ import annotations

import ast

__all__ = ["AnyFunction", "Dotted", "Function", "Listing"]

Function = ast.FunctionDef | ast.AsyncFunctionDef
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Dotted = ast.Name | ast.Attribute
Listing = ast.Tuple | ast.List


def literal(node: ast.expr) -> str | None:
    """The value of a string literal."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
