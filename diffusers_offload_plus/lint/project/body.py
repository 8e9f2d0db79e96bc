"""One function: what its names stand for, and which attributes of these it uses."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .classes import ClassInfo, Function
from .modules import parameters
from .source import Source

if TYPE_CHECKING:
    pass


__all__ = ["Access", "Body", "Place", "literal"]


# Where a value comes from: ("components", "vae", "config") or ("block_state", "latents").
Place = tuple[str, ...]


COMPONENTS: Place = ("components",)


STATE: Place = ("state",)


BLOCK_STATE: Place = ("block_state",)


SELF: Place = ("self",)


_LONGEST = 6


PROBES = {"getattr": "probe", "hasattr": "probe", "setattr": "write", "delattr": "delete"}


@dataclasses.dataclass(frozen=True, eq=False)
class Access:
    """A use of an attribute.

    Attributes:
        kind: ``"read"``, ``"write"``, ``"augment"``, ``"delete"`` or ``"probe"`` (``getattr`` and ``hasattr``).
        place: what is used, with the attribute as its last part.
        node: the attribute, subscript or call; ``value``: what is written, where it is one expression.
    """

    kind: str
    place: Place
    node: ast.expr
    body: Body
    value: ast.expr | None = None
    by: str = ""

    @property
    def source(self) -> Source:
        return self.body.source

    @property
    def name(self) -> str:
        return self.place[-1]


class Body:
    """A function, with what its names stand for."""

    def __init__(
        self, source: Source, function: Function, owner: ClassInfo | None, roles: dict[str, set[Place]]
    ) -> None:
        self.source = source
        self.function = function
        self.owner = owner
        self.names: dict[str, set[Place]] = {name: set(places) for name, places in roles.items()}
        self._remembered: dict[ast.AST, set[Place]] | None = None  # once the names are settled
        self.typed = source.typed(function)
        self.stored: dict[Place, set[Place]] = {}
        self.local_functions = {
            node.name: node
            for node in self.of(ast.FunctionDef, ast.AsyncFunctionDef)
            if node is not function and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        binding = list(self._bindings())
        for _ in range(3):
            before = self._known()
            for target, value in binding:
                self._bind(target, value)
            if self.local_functions:
                self._bind_inner()
            if before == self._known():
                break
        self._remembered = {}

    @property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the function in source order."""
        return self.source.below(self.function)

    def of(self, *types: type[ast.AST]) -> list[ast.AST]:
        """The nodes of exactly these types."""
        return [node for kind in types for node in self.typed.get(kind, ())]

    def _known(self) -> int:
        return sum(map(len, self.names.values())) + sum(map(len, self.stored.values()))

    def _bindings(self) -> Iterator[tuple[ast.expr, ast.expr]]:
        """Targets with what is bound to them, as far as that is one expression."""
        for node in self.of(ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension, ast.withitem):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield target, node.value
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
                if node.value is not None:
                    yield node.target, node.value
            elif isinstance(node, ast.For | ast.comprehension):
                if isinstance(node.iter, ast.Tuple | ast.List):
                    for element in node.iter.elts:
                        yield node.target, element
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                yield node.optional_vars, node.context_expr

    def _bind_inner(self) -> None:
        for node in self.calls():
            local = self.local_functions.get(node.func.id) if isinstance(node.func, ast.Name) else None
            if local is not None:
                for name, places in argument_places(self, node, local, bound=False).items():
                    self.names.setdefault(name, set()).update(places)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
                for element, item in zip(target.elts, value.elts, strict=True):
                    self._bind(element, item)
            return
        places = self.places(value)
        if not places:
            return
        if isinstance(target, ast.Name):
            self.names.setdefault(target.id, set()).update(places)
        elif isinstance(target, ast.Attribute):
            held = {place for place in places if place[0] == "components"}
            for stored in self.places(target.value) if held else ():
                self.stored.setdefault((*stored, target.attr), set()).update(held)

    def places(self, node: ast.expr) -> set[Place]:
        """Where the value of an expression may come from; empty if that is nothing tracked."""
        if self._remembered is None:
            return self._places(node)
        found = self._remembered.get(node)
        if found is None:
            found = self._remembered[node] = self._places(node)
        return found

    def _places(self, node: ast.expr) -> set[Place]:
        hops = 0
        attributes: list[str] = []
        while hops < 50:
            hops += 1
            if isinstance(node, ast.Attribute):
                attributes.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Subscript) and (key := literal(node.slice)) is not None:
                attributes.append(key)
                node = node.value
            elif isinstance(node, ast.NamedExpr):
                node = node.value
            elif is_call_of(node, "getattr", 2) and (key := literal(node.args[1])) is not None:  # type: ignore[attr-defined]
                attributes.append(key)
                node = node.args[0]  # type: ignore[attr-defined]
            else:
                break
        found = self._origin(node)
        for attribute in reversed(attributes):
            following: set[Place] = set()
            for place in found:
                if len(place) < _LONGEST:
                    following.add((*place, attribute))
                    following |= self.stored.get((*place, attribute), set())
            found = following
        return found

    def _origin(self, node: ast.expr) -> set[Place]:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, set())
        if isinstance(node, ast.IfExp):
            return self._origin_or_places(node.body) | self._origin_or_places(node.orelse)
        if isinstance(node, ast.BoolOp):
            return set().union(*(self._origin_or_places(value) for value in node.values[:20]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get_block_state":
            return {BLOCK_STATE}
        return set()

    def _origin_or_places(self, node: ast.expr) -> set[Place]:
        return set() if isinstance(node, ast.IfExp | ast.BoolOp) else self.places(node)

    @functools.cached_property
    def accesses(self) -> list[Access]:
        """Uses of attributes of tracked places: attributes, then subscripts, then calls, each in source order."""
        return list(self._accesses())

    def _accesses(self) -> Iterator[Access]:
        for node in self.of(ast.Attribute, ast.Subscript, ast.Call):
            if isinstance(node, ast.Attribute | ast.Subscript):
                name = node.attr if isinstance(node, ast.Attribute) else literal(node.slice)
                if name is None:
                    continue
                for place in self.places(node.value):
                    if isinstance(node, ast.Subscript) and place != BLOCK_STATE:
                        continue
                    kind, value = self._context(node)
                    by = "" if isinstance(node, ast.Attribute) else "subscript"
                    yield Access(kind, (*place, name), node, self, value, by)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PROBES:
                name = literal(node.args[1]) if len(node.args) > 1 else None
                for place in self.places(node.args[0]) if name is not None else ():
                    kind = PROBES[node.func.id]
                    value = node.args[2] if kind == "write" and len(node.args) > 2 else None
                    yield Access(kind, (*place, name or ""), node, self, value, node.func.id)

    def _context(self, node: ast.Attribute | ast.Subscript) -> tuple[str, ast.expr | None]:
        if isinstance(node.ctx, ast.Del):
            return "delete", None
        if not isinstance(node.ctx, ast.Store):
            return "read", None
        parent = self.source.parent(node)
        if isinstance(parent, ast.AugAssign):
            return "augment", parent.value
        if isinstance(parent, ast.Assign | ast.AnnAssign):
            return "write", parent.value
        if isinstance(parent, ast.Tuple | ast.List):
            outer = self.source.parent(parent)
            if isinstance(outer, ast.Assign) and isinstance(outer.value, ast.Tuple | ast.List):
                index = parent.elts.index(node)
                if len(outer.value.elts) == len(parent.elts):
                    return "write", outer.value.elts[index]
        return "write", None

    def calls(self) -> Iterator[ast.Call]:
        for node in self.typed.get(ast.Call, ()):
            if isinstance(node, ast.Call):
                yield node


def argument_places(body: Body, node: ast.Call, target: Function, *, bound: bool) -> dict[str, set[Place]]:
    """What the parameters of ``target`` stand for in a call of it from ``body``."""
    names = [argument.arg for argument in (*target.args.posonlyargs, *target.args.args)]
    names = names[1:] if bound else names
    found: dict[str, set[Place]] = {}
    for name, argument in zip(names, node.args, strict=False):
        if isinstance(argument, ast.Starred):
            break
        if places := body.places(argument):
            found[name] = set(places)
    known = set(parameters(target))
    for keyword in node.keywords:
        if keyword.arg in known and (places := body.places(keyword.value)):
            found[keyword.arg] = set(places)
    return found


def literal(node: ast.expr) -> str | None:
    """The value of a string literal."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def is_call_of(node: ast.expr, name: str, arguments: int) -> bool:
    """Whether ``node`` calls the built-in ``name`` with at least so many positional arguments."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == name
        and len(node.args) >= arguments
    )
