"""One function: what its names stand for, and which of their attributes it uses."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from ..reading.nodes import Function, Listing, function_called, is_call_of, literal, method_called, name_of, passed
from ..reading.source import Node, Source
from ..resolution.classes import ClassInfo
from ..resolution.modules import parameters

__all__ = ["Access", "Body", "Place"]


# A place is where a value comes from, such as ("components", "vae", "config") or ("block_state", "latents").
Place = tuple[str, ...]


COMPONENTS: Place = ("components",)


STATE: Place = ("state",)


BLOCK_STATE: Place = ("block_state",)


SELF: Place = ("self",)


_NOWHERE: frozenset[Place] = frozenset()


_LONGEST = 6
_HOPS = 50  # from an expression to what it is an attribute of


_Reached = ast.Attribute | ast.Subscript


# Functions that return their last, or their first, argument.
_LAST_BACK = {"cast"}
_FIRST_BACK = {"nullcontext", "enter_context", "assert_type", "reveal_type"}
PROBES = {"getattr": "probe", "hasattr": "probe", "setattr": "write", "delattr": "delete"}


@dataclasses.dataclass(eq=False, slots=True)  # not frozen: there are tens of thousands
class Access:
    """A use of an attribute of something that is tracked.

    Attributes:
        kind: ``"read"``, ``"write"``, ``"augment"``, ``"delete"`` or ``"probe"`` (``getattr`` and ``hasattr``).
        place: the place that is used, with the attribute as its last part.
        node: the attribute, subscript or call; ``value``: the written expression, if there is a single one.
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


# What a call of another function returns: one set of places, or one for each element of the tuple that is returned.
Returned = Callable[["Body", ast.Call], list[set[Place]]]


class Body:
    """A function, with what its names stand for."""

    def __init__(
        self,
        source: Source,
        function: Function,
        owner: ClassInfo | None,
        roles: dict[str, set[Place]],
        returned: Returned,
    ) -> None:
        self._returned = returned
        self._asked: set[Function] = set()
        self.source = source
        self.function = function
        self.owner = owner
        self.names: dict[str, set[Place]] = {name: set(places) for name, places in roles.items()}
        self._remembered: dict[ast.AST, AbstractSet[Place]] | None = None  # once the names are settled
        self.stored: dict[Place, set[Place]] = {}
        self._typed = source.typed(function)
        self.local_functions: dict[str, Function] = {
            inner.name: inner
            for inner in self.of(ast.FunctionDef, ast.AsyncFunctionDef)
            if inner is not function and isinstance(inner, Function)
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

    @property
    def in_pipeline(self) -> bool:
        """Whether the function is a method of a pipeline class."""
        return self.owner is not None and self.owner.is_pipeline

    def of(self, *types: type[Node]) -> list[Node]:
        """The nodes of exactly these types, one type after the other, each in source order."""
        typed = self._typed
        if len(types) == 1:
            return typed.get(types[0], [])
        return [node for kind in types for node in typed.get(kind, ())]

    def knows(self, root: str) -> bool:
        """Whether any name stands for ``root`` or something in it."""
        return any(place[0] == root for places in self.names.values() for place in places)

    def _known(self) -> int:
        return sum(map(len, self.names.values())) + sum(map(len, self.stored.values()))

    def _bindings(self) -> Iterator[tuple[ast.expr, ast.expr]]:
        """Pairs of a target and the expression bound to it, where there is a single expression."""
        for node in self.of(ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension, ast.withitem):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield target, node.value
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
                if node.value is not None:
                    yield node.target, node.value
            elif isinstance(node, ast.For | ast.comprehension):
                if isinstance(node.iter, Listing):
                    for element in node.iter.elts:
                        yield node.target, element
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                yield node.optional_vars, node.context_expr

    def _bind_inner(self) -> None:
        for node in self.of(ast.Call):
            local = self.local_functions.get(function_called(node))
            if local is not None:
                for name, places in argument_places(self, node, local, bound=False).items():
                    self.names.setdefault(name, set()).update(places)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, Listing):
            self._unpack(target, value)
        elif places := self.places(value):
            self._hold(target, places)

    def _unpack(self, target: Listing, value: ast.expr) -> None:
        starred = next((index for index, one in enumerate(target.elts) if isinstance(one, ast.Starred)), None)
        if isinstance(value, Listing) and not any(isinstance(one, ast.Starred) for one in value.elts):
            last = len(target.elts) - 1 - starred if starred is not None else 0
            pairs = [*zip(target.elts[:starred], value.elts, strict=False)]
            pairs += zip(target.elts[-last:], value.elts[-last:], strict=False) if last else ()
            for element, item in pairs if starred is not None or len(value.elts) == len(target.elts) else ():
                self._bind(element, item)
        elif isinstance(value, ast.Call):
            columns = self._returned(self, value) if self._hands_over(value) else []
            for element, places in zip(target.elts, columns, strict=True) if len(columns) == len(target.elts) else ():
                if places:
                    self._hold(element, places)

    def _hold(self, target: ast.expr, places: AbstractSet[Place]) -> None:
        """Remember that ``target`` stands for ``places``."""
        if isinstance(target, ast.Name):
            self.names.setdefault(target.id, set()).update(places)
        elif isinstance(target, ast.Attribute):
            held = {place for place in places if place[0] == "components" or place == BLOCK_STATE}
            for stored in self.places(target.value) if held else ():
                self.stored.setdefault((*stored, target.attr), set()).update(held)

    def places(self, node: ast.expr) -> AbstractSet[Place]:
        """The places that the value of an expression may come from; empty if none is tracked."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _NOWHERE)
        if isinstance(node, ast.Constant):
            return _NOWHERE
        if self._remembered is None:
            return self._places(node)
        found = self._remembered.get(node)
        if found is None:
            found = self._remembered[node] = self._places(node)
        return found

    def _places(self, node: ast.expr) -> AbstractSet[Place]:
        attributes: list[str] = []
        for _ in range(_HOPS):
            if isinstance(node, ast.Attribute):
                attributes.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Name):
                break
            elif isinstance(node, ast.Subscript) and (key := literal(node.slice)) is not None:
                attributes.append(key)
                node = node.value
            elif isinstance(node, ast.NamedExpr):
                node = node.value
            elif is_call_of(node, "getattr", 2) and (key := literal(node.args[1])) is not None:
                attributes.append(key)
                node = node.args[0]
            else:
                break
        found = self._origin(node)
        if not found:
            return _NOWHERE
        for attribute in reversed(attributes):
            following: set[Place] = set()
            for place in found:
                if len(place) < _LONGEST:
                    following.add((*place, attribute))
                    following |= self.stored.get((*place, attribute), _NOWHERE)
            found = following
        return found

    def _origin(self, node: ast.expr) -> AbstractSet[Place]:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _NOWHERE)
        if isinstance(node, ast.IfExp):
            return self._origin_or_places(node.body) | self._origin_or_places(node.orelse)
        if isinstance(node, ast.BoolOp):
            return _NOWHERE.union(*(self._origin_or_places(value) for value in node.values[:20]))
        return self._called(node) if isinstance(node, ast.Call) else _NOWHERE

    def _called(self, node: ast.Call) -> AbstractSet[Place]:
        """The places that the result of a call may come from."""
        if method_called(node) == "get_block_state":
            return {BLOCK_STATE}
        if name_of(node.func) == "partial" and node.args:
            return self.places(node.args[0]) & {(*SELF, "get_block_state")}
        handed_back = back(node)
        if handed_back is not None:
            return self.places(handed_back)
        function = node.func
        if isinstance(function, ast.Name) and function.id in self.local_functions:
            return self._returned_locally(self.local_functions[function.id])
        if isinstance(function, ast.Call):  # partial(self.get_block_state, state)()
            bound = (
                self.places(function.args[0]) if name_of(function.func) == "partial" and function.args else _NOWHERE
            )
            return {BLOCK_STATE} if (*SELF, "get_block_state") in bound else _NOWHERE
        if isinstance(function, ast.Name) and (*SELF, "get_block_state") in self.names.get(function.id, _NOWHERE):
            return {BLOCK_STATE}
        columns = self._returned(self, node) if self._hands_over(node) else ()
        return columns[0] if len(columns) == 1 else _NOWHERE

    def _hands_over(self, node: ast.Call) -> bool:
        """Whether a call is given components, a state or a block state as a whole; only these are followed back."""
        names = self.names
        for value in passed(node):
            if isinstance(value, ast.Name):
                if any(len(place) == 1 and place != SELF for place in names.get(value.id, _NOWHERE)):
                    return True
            elif isinstance(value, ast.Call) and any(len(place) == 1 for place in self.places(value)):
                return True
        return False

    def _returned_locally(self, local: Function) -> AbstractSet[Place]:
        if local in self._asked:  # it calls itself
            return _NOWHERE
        self._asked.add(local)
        values = [one.value for one in self.source.within(local, ast.Return) if one.value is not None]
        found = _NOWHERE.union(*(self._origin_or_places(value) for value in values[:20]))
        self._asked.discard(local)
        return found

    def _origin_or_places(self, node: ast.expr) -> AbstractSet[Place]:
        return _NOWHERE if isinstance(node, ast.IfExp | ast.BoolOp) else self.places(node)

    def computed(self, *probes: str) -> set[Place]:
        """The places whose attributes the built-ins ``probes`` reach by computed names."""
        return set().union(*(self._computed.get(probe, ()) for probe in probes))

    @functools.cached_property
    def _computed(self) -> dict[str, set[Place]]:
        found: dict[str, set[Place]] = {}
        for node in self.of(ast.Call):
            probe = function_called(node)
            if probe in PROBES and len(node.args) > 1 and not isinstance(node.args[1], ast.Constant):
                found.setdefault(probe, set()).update(self.places(node.args[0]))
        return found

    @functools.cached_property
    def accesses(self) -> list[Access]:
        """Uses of attributes of tracked places: attributes, then subscripts, then calls, each in source order."""
        return list(self._accesses())

    def _accesses(self) -> Iterator[Access]:
        for node in self.of(ast.Attribute):
            for place in self.places(node.value):
                kind, value = self._context(node)
                yield Access(kind, (*place, node.attr), node, self, value)
        for item in self.of(ast.Subscript):
            name = literal(item.slice)
            if name is not None and BLOCK_STATE in self.places(item.value):
                kind, value = self._context(item)
                yield Access(kind, (*BLOCK_STATE, name), item, self, value, "subscript")
        for call in self.of(ast.Call):
            probe = function_called(call)
            name = literal(call.args[1]) if probe in PROBES and len(call.args) > 1 else None
            for place in self.places(call.args[0]) if name is not None else ():
                kind = PROBES[probe]
                value = call.args[2] if kind == "write" and len(call.args) > 2 else None
                yield Access(kind, (*place, name or ""), call, self, value, probe)

    def _context(self, node: _Reached) -> tuple[str, ast.expr | None]:
        if isinstance(node.ctx, ast.Del):
            return "delete", None
        if not isinstance(node.ctx, ast.Store):
            return "read", None
        parent = self.source.parent(node)
        if isinstance(parent, ast.AugAssign):
            return "augment", parent.value
        if isinstance(parent, ast.Assign | ast.AnnAssign):
            return "write", parent.value
        if isinstance(parent, Listing):
            outer = self.source.parent(parent)
            if isinstance(outer, ast.Assign) and isinstance(outer.value, Listing):
                index = parent.elts.index(node)
                if len(outer.value.elts) == len(parent.elts):
                    return "write", outer.value.elts[index]
        return "write", None


def back(node: ast.AST | None) -> ast.expr | None:
    """The argument that a call hands back as it is, as ``typing.cast`` does."""
    if not isinstance(node, ast.Call) or not node.args:
        return None
    name = name_of(node.func)
    if name in _LAST_BACK:
        return node.args[-1]
    return node.args[0] if name in _FIRST_BACK else None


def argument_places(body: Body, node: ast.Call, target: Function, *, bound: bool) -> dict[str, set[Place]]:
    """The places that the parameters of ``target`` stand for when ``body`` calls it."""
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
