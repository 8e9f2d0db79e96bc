"""The functions that have been looked into, so that each is looked into only once."""

from __future__ import annotations

import ast

from ..reading.nodes import Function, Listing
from ..reading.source import Source
from ..resolution.classes import ClassInfo
from .body import SELF, Body, Place
from .callees import Callees

__all__ = ["Bodies"]

_DEEPEST = 3  # of helpers that return what other helpers return


class Bodies:
    """All functions that have been looked into, by what their parameters stand for."""

    def __init__(self, callees: Callees) -> None:
        self._callees = callees
        self._known: dict[tuple[Function, ClassInfo | None, frozenset[tuple[str, Place]]], Body] = {}
        self._depth = 0

    def get(self, source: Source, function: Function, owner: ClassInfo | None, roles: dict[str, set[Place]]) -> Body:
        """The function ``function`` of ``source`` whose parameters stand for ``roles``."""
        key = (function, owner, frozenset((name, place) for name, places in roles.items() for place in places))
        if key not in self._known:
            self._known[key] = Body(source, function, owner, roles, self.returned)
        return self._known[key]

    def returned(self, body: Body, call: ast.Call) -> list[set[Place]]:
        """The places that a call may return: one set, or one for each element of the tuple that is returned."""
        if self._depth >= _DEEPEST:
            return []
        self._depth += 1
        try:
            for callee in self._callees.of(body, call.func, body.owner):
                roles = callee.roles(body, call)
                if callee.function is body.function or not any(place != SELF for p in roles.values() for place in p):
                    continue
                inner = self.get(callee.source, callee.function, callee.owner, roles)
                return _returned(inner)
            return []
        finally:
            self._depth -= 1


def _returned(body: Body) -> list[set[Place]]:
    values = [
        node.value for node in body.of(ast.Return) if node.value and body.source.function_of(node) is body.function
    ]
    listed = [value.elts for value in values if isinstance(value, Listing)]
    if not listed or len(listed) < len(values) or len({len(elements) for elements in listed}) > 1:
        return [{place for value in values for place in body.places(value)}]
    return [{place for value in column for place in body.places(value)} for column in zip(*listed, strict=True)]
