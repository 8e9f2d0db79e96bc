"""The functions that a call may run, followed through classes and modules."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from ..reading.nodes import Function, function_called
from ..reading.source import Source
from ..resolution.classes import Classes, ClassInfo
from ..resolution.modules import parameters
from .body import COMPONENTS, SELF, Body, Place, argument_places
from .pipelines import Pipelines

__all__ = ["Callee", "Callees"]


@dataclasses.dataclass(frozen=True)
class Callee:
    """A function, the class it belongs to, and what its first parameter is bound to."""

    source: Source
    function: Function
    owner: ClassInfo | None
    bound: Place | None

    def roles(self, body: Body, call: ast.Call) -> dict[str, set[Place]]:
        """The places that the parameters stand for when ``body`` calls the function."""
        roles = argument_places(body, call, self.function, bound=self.bound is not None)
        names = parameters(self.function)
        if self.bound is not None and names:
            roles.setdefault(names[0], set()).add(self.bound)
        return roles


class Callees:
    """Finds the functions outside of the framework that calls run."""

    def __init__(self, classes: Classes, pipelines: Pipelines) -> None:
        self._classes = classes
        self._pipelines = pipelines

    def of(self, body: Body, node: ast.expr, info: ClassInfo | None) -> Iterator[Callee]:
        """The functions that calling ``node`` in ``body`` may run; ``info`` is the class of ``self``."""
        if isinstance(node, ast.Attribute):
            base = node.value
            if function_called(base) == "super":
                found = info.find(node.attr, after=body.owner) if info is not None and body.owner else None
                yield from _member(found, SELF)
                return
            for place in body.places(base):
                if place == SELF and info is not None:
                    yield from _member(info.find(node.attr), SELF)
                elif place == COMPONENTS:
                    for pipeline in self._pipelines.of(body.source):
                        yield from _member(pipeline.find(node.attr), COMPONENTS)
        symbol = self._classes.modules.symbol(body.source, node, body.function)
        if symbol is None or (symbol.source is None and symbol.node is None):
            if isinstance(node, ast.Attribute):
                named = self._classes.named(body.source, node.value, body.function)
                yield from _member(named.find(node.attr) if isinstance(named, ClassInfo) else None, None)
            return
        target, source = symbol.node, symbol.source
        if isinstance(target, Function) and source and not source.in_framework:
            yield Callee(source, target, None, None)


def _member(found: tuple[ClassInfo, ast.stmt | ast.expr] | None, bound: Place | None) -> Iterator[Callee]:
    if found is None or found[0].source.in_framework:
        return
    owner, member = found
    if isinstance(member, Function):
        static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in member.decorator_list)
        yield Callee(owner.source, member, owner, None if static else bound)
