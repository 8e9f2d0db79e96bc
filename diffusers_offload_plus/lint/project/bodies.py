"""The functions that have been looked into, so that each is looked into only once."""

from __future__ import annotations

from ..reading.nodes import Function
from ..reading.source import Source
from ..resolution.classes import ClassInfo
from .body import Body, Place

__all__ = ["Bodies"]


class Bodies:
    """All functions that have been looked into, by what their parameters stand for."""

    def __init__(self) -> None:
        self._known: dict[tuple[Function, ClassInfo | None, frozenset[tuple[str, Place]]], Body] = {}

    def get(self, source: Source, function: Function, owner: ClassInfo | None, roles: dict[str, set[Place]]) -> Body:
        """The function ``function`` of ``source`` whose parameters stand for ``roles``."""
        key = (function, owner, frozenset((name, place) for name, places in roles.items() for place in places))
        if key not in self._known:
            self._known[key] = Body(source, function, owner, roles)
        return self._known[key]
