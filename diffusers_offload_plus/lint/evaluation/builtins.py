"""Built-in functions, operators and methods of containers and strings, on abstract values."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from .values import UNKNOWN, Choice, Constant, Dictionary, Items, Value, View, elements

__all__ = ["call_method", "call_named", "fold", "from_keys", "is_instance"]

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_LARGEST = 10_000  # characters of a string that is still worked with; the fourth power bounds integers
_STRING_METHODS = {
    "capitalize", "endswith", "join", "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rstrip", "split",
    "startswith", "strip", "title", "upper",
}  # fmt: skip
_COPIES = {"list", "tuple", "set", "frozenset", "sorted", "reversed", "iter"}
_DICTIONARIES = {"dict", "OrderedDict", "InsertableDict", "FrozenDict"}


def fold(node: ast.AST, values: list[Value]) -> Value:
    """The result of an operator on constants."""
    function = _OPERATORS.get(node.__class__)
    operands = [value.value for value in values if isinstance(value, Constant)]
    if function is None or len(operands) != len(values):
        return UNKNOWN
    if isinstance(node, ast.Mult | ast.Mod) and any(isinstance(item, str | bytes) for item in operands):
        return UNKNOWN
    if any(isinstance(item, int) and abs(item) > _LARGEST**4 for item in operands):
        return UNKNOWN
    if any(isinstance(item, str | bytes) and len(item) > _LARGEST for item in operands):
        return UNKNOWN
    try:
        return Constant(function(*operands))
    except (ArithmeticError, TypeError, ValueError):
        return UNKNOWN


def call_named(name: str, arguments: Items, keywords: Dictionary) -> Value | None:
    """The result of a built-in function or container class; ``None`` if it is none of those known here."""
    given = arguments.items
    if name in _COPIES:
        if not given:
            return Items([], arguments.open)
        items, whole = elements(given[0])
        return Items(items[::-1] if name == "reversed" else items, not whole)
    if name in _DICTIONARIES:
        return _dictionary(given, keywords, arguments.open)
    if name == "enumerate" and given:
        items, whole = elements(given[0])
        pairs: list[Value] = [Items([Constant(index), item]) for index, item in enumerate(items)]
        return Items(pairs, not whole)
    if name == "zip" and given:
        columns = [elements(value) for value in given]
        rows: list[Value] = [Items(list(row)) for row in zip(*(items for items, _ in columns), strict=False)]
        return Items(rows, not all(whole for _, whole in columns))
    if name == "range" and given and all(isinstance(value, Constant) for value in given):
        return _range([value.value for value in given if isinstance(value, Constant)])
    if name in ("len", "any", "all", "min", "max", "sum", "int", "float", "bool", "str", "isinstance", "hasattr"):
        return _scalar(name, given)
    return None


def is_instance(value: Value, node: ast.expr) -> Value:
    """The result of ``isinstance(value, node)`` where the classes are built-in ones."""
    names = [item.id for item in (node.elts if isinstance(node, ast.Tuple) else [node]) if isinstance(item, ast.Name)]
    if isinstance(value, Items):
        kind = value.kind
    elif isinstance(value, Dictionary):
        kind = "dict"
    elif isinstance(value, Constant):
        kind = type(value.value).__name__
    else:
        return UNKNOWN
    known = {"list", "tuple", "set", "dict", "str", "int", "float", "bool"}
    if kind in names or (kind == "bool" and "int" in names):
        return Constant(True)
    plain = isinstance(node, ast.Name) or (isinstance(node, ast.Tuple) and len(names) == len(node.elts))
    return Constant(False) if plain and set(names) <= known else UNKNOWN


def _scalar(name: str, given: list[Value]) -> Value:
    if name == "len" and len(given) == 1:
        items, whole = elements(given[0])
        return Constant(len(items)) if whole and not isinstance(given[0], Choice) else UNKNOWN
    if name in ("str", "int", "float", "bool") and len(given) == 1 and isinstance(given[0], Constant):
        value = given[0].value
        if isinstance(value, str | int | float | bool) and len(str(value)) < 100:
            try:
                return Constant({"str": str, "int": int, "float": float, "bool": bool}[name](value))
            except (ValueError, OverflowError):
                return UNKNOWN
    return UNKNOWN


def _range(numbers: list[Any]) -> Value:
    if not all(isinstance(number, int) for number in numbers) or not 1 <= len(numbers) <= 3:
        return UNKNOWN
    try:
        found = range(*numbers)
    except ValueError:
        return UNKNOWN
    return Items([Constant(number) for number in found[:200]], len(found) > 200)


def _dictionary(given: list[Value], keywords: Dictionary, unread: bool) -> Dictionary:
    found = Dictionary({}, unread or keywords.open)
    for value in given[:1]:
        if isinstance(value, Dictionary):
            found.items.update(value.items)
            found.open = found.open or value.open
            continue
        pairs, whole = elements(value)
        found.open = found.open or not whole
        for pair in pairs:
            parts, known = elements(pair)
            if known and len(parts) == 2 and isinstance(parts[0], Constant):
                found.items[parts[0].value] = parts[1]
            else:
                found.open = True
    found.items.update(keywords.items)
    return found


def from_keys(value: Value) -> Dictionary:
    """The result of ``dict.fromkeys(value)``."""
    items, whole = elements(value)
    known = [item.value for item in items if isinstance(item, Constant)]
    return Dictionary(dict.fromkeys(known, Constant(None)), not whole or len(known) < len(items))


def call_method(value: Value, name: str, arguments: Items, keywords: Dictionary) -> Value | None:
    """The result of a method of a container or a string; ``None`` if ``value`` is neither."""
    if isinstance(value, Dictionary):
        return _dictionary_method(value, name, arguments.items, keywords)
    if isinstance(value, View):
        return View(value.mapping, value.of) if name == "copy" else UNKNOWN
    if isinstance(value, Items):
        return _items_method(value, name, arguments.items)
    if isinstance(value, Constant) and isinstance(value.value, str):
        return _string_method(value.value, name, arguments.items)
    return None


def _string_method(text: str, name: str, given: list[Value]) -> Value:
    operands: list[Any] = []
    for argument in given:
        items, whole = elements(argument) if isinstance(argument, Items) else ([], True)
        if isinstance(argument, Constant):
            operands.append(argument.value)
        elif isinstance(argument, Items) and whole and all(isinstance(item, Constant) for item in items):
            operands.append([item.value for item in items if isinstance(item, Constant)])
        else:
            return UNKNOWN
    if name not in _STRING_METHODS or len(text) + sum(len(str(item)) for item in operands) > _LARGEST:
        return UNKNOWN
    try:
        result = getattr(text, name)(*operands)
    except (TypeError, ValueError):
        return UNKNOWN
    return Items([Constant(item) for item in result]) if isinstance(result, list) else Constant(result)


def _items_method(value: Items, name: str, given: list[Value]) -> Value:
    if name == "append" and given:
        value.extend(given[:1], True)
    elif name == "extend" and given:
        value.extend(*elements(given[0]))
    elif name == "insert" and len(given) == 2:
        index = given[0].value if isinstance(given[0], Constant) and isinstance(given[0].value, int) else 0
        value.items.insert(index, given[1])
    elif name == "add" and given:
        value.extend(given[:1], True)
    elif name == "copy":
        return Items(list(value.items), value.open)
    elif name in ("remove", "pop", "clear", "discard"):
        value.open = True
        return UNKNOWN
    else:
        return UNKNOWN
    return Constant(None)


def _dictionary_method(value: Dictionary, name: str, given: list[Value], keywords: Dictionary) -> Value:
    constant = given[0].value if given and isinstance(given[0], Constant) else None
    try:
        hash(constant)
    except TypeError:
        return UNKNOWN
    if name in ("keys", "values", "items"):
        return View(value, name)
    if name in ("copy", "__copy__"):
        return Dictionary(dict(value.items), value.open)
    if name == "insert":
        arguments = dict(zip(("key", "value", "index"), given, strict=False)) | keywords.items
        key, index = arguments.get("key", UNKNOWN), arguments.get("index", UNKNOWN)
        if isinstance(key, Constant):
            place = index.value if isinstance(index, Constant) and isinstance(index.value, int) else len(value.items)
            value.insert(key.value, arguments.get("value", UNKNOWN), place)
        else:
            value.open = True
        return value
    if name == "update":
        for argument in given:
            value.update(argument if isinstance(argument, Dictionary) else _dictionary([argument], keywords, False))
        value.items.update(keywords.items)
        return Constant(None)
    if name == "pop" and given:
        if isinstance(given[0], Constant):
            return value.items.pop(constant, UNKNOWN)
        value.open = True
        return UNKNOWN
    if name in ("get", "setdefault") and isinstance(given[0] if given else UNKNOWN, Constant):
        if constant in value.items:
            return value.items[constant]
        fallback = given[1] if len(given) > 1 else Constant(None)
        if name == "setdefault":
            value.items[constant] = fallback
        return UNKNOWN if value.open else fallback
    return UNKNOWN
