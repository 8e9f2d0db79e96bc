"""Kinds of syntax nodes that are asked about together.

``isinstance(node, ast.Name | ast.Attribute)`` builds the union anew each time, which takes longer than the check.
"""

from __future__ import annotations

import ast
from typing import TypeGuard

__all__ = [
    "AnyFunction",
    "Dotted",
    "Function",
    "Listing",
    "function_called",
    "is_call_of",
    "literal",
    "method_called",
    "name_of",
    "passed",
]

Function = ast.FunctionDef | ast.AsyncFunctionDef
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Dotted = ast.Name | ast.Attribute
Listing = ast.Tuple | ast.List


def literal(node: ast.expr) -> str | None:
    """The value of a string literal."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def name_of(node: ast.AST | None) -> str:
    """The last part of a name or a dotted expression, ``""`` for any other."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def function_called(node: ast.AST) -> str:
    """``f`` of the call ``f(...)``, else ``""``."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def method_called(node: ast.AST | None) -> str:
    """``m`` of the call ``x.m(...)``, else ``""``."""
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""


def passed(call: ast.Call) -> list[ast.expr]:
    """What a call passes, by position and by name."""
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def is_call_of(node: ast.AST, name: str, arguments: int) -> TypeGuard[ast.Call]:
    """Whether ``node`` calls the built-in ``name`` with at least so many positional arguments."""
    return function_called(node) == name and isinstance(node, ast.Call) and len(node.args) >= arguments
