"""The names that the parameters of a function are bound to when it is called."""

from __future__ import annotations

import ast
from collections.abc import Callable

from ..reading.nodes import AnyFunction
from ..resolution.modules import parameters
from .values import UNKNOWN, Dictionary, Items, Value

__all__ = ["parameter_values"]


def parameter_values(
    node: AnyFunction, arguments: list[Value], keywords: dict[str, Value], default: Callable[[ast.expr], Value]
) -> dict[str, Value]:
    """The parameters of ``node`` by name; ``default`` works out the defaults of those that are not given."""
    given = node.args
    known = parameters(node)
    positional = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    names: dict[str, Value] = dict.fromkeys(known, UNKNOWN)
    defaults = dict(zip(reversed(positional), reversed(given.defaults), strict=False))
    for argument, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if value is not None:
            defaults[argument.arg] = value
    names |= {name: default(value) for name, value in defaults.items()}
    names.update(zip(positional, arguments, strict=False))
    if given.vararg:
        names[given.vararg.arg] = Items(list(arguments[len(positional) :]))
    extra = {name: value for name, value in keywords.items() if name not in known}
    if given.kwarg:
        names[given.kwarg.arg] = Dictionary(extra)
    return names | {name: value for name, value in keywords.items() if name not in extra}
