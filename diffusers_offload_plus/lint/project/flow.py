"""What a block does with its components, its state and its block state, followed through aliases and helpers."""

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
    from .project import Project

__all__ = ["Access", "Body", "Flow", "Place", "literal", "place_name"]

# Where a value comes from: ("components", "vae", "config") or ("block_state", "latents").
Place = tuple[str, ...]

COMPONENTS: Place = ("components",)
STATE: Place = ("state",)
BLOCK_STATE: Place = ("block_state",)
SELF: Place = ("self",)
_LONGEST = 6
_PROBES = {"getattr": "probe", "hasattr": "probe", "setattr": "write", "delattr": "delete"}
# Methods of blocks that take the whole state and whose effect is known.
PROTOCOL = {"get_block_state", "set_block_state", "loop_step", "progress_bar"}


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
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _PROBES:
                name = literal(node.args[1]) if len(node.args) > 1 else None
                for place in self.places(node.args[0]) if name is not None else ():
                    kind = _PROBES[node.func.id]
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


class Flow:
    """All that runs when a block is called, as far as it can be followed."""

    def __init__(self, project: Project, info: ClassInfo, entries: list[tuple[ClassInfo, Function]]) -> None:
        self.project = project
        self.info = info
        self.bodies: list[Body] = []
        self.escapes: list[tuple[Place, ast.AST, Body]] = []
        self._seen: set[tuple[ast.AST, frozenset[tuple[str, Place]]]] = set()
        self._pending: list[Body] = []
        for owner, function in entries:
            self._enter(owner.source, function, owner, entry_roles(owner, function))
        while self._pending and len(self.bodies) < 200:
            body = self._pending.pop(0)
            self.bodies.append(body)
            self._follow(body)
        self.accesses = [access for body in self.bodies for access in body.accesses]
        self._direct: dict[str, list[Access]] = {}
        for access in self.accesses:
            if len(access.place) == 2:
                self._direct.setdefault(access.place[0], []).append(access)

    def of(self, root: str, *kinds: str) -> list[Access]:
        """Accesses to direct attributes of ``root`` (``"block_state"``, ``"components"``), of some kinds."""
        found = self._direct.get(root, [])
        return [access for access in found if access.kind in kinds] if kinds else found

    def escaped(self, root: str) -> bool:
        """Whether ``root`` itself is handed to something that cannot be followed."""
        return any(place == (root,) for place, _, _ in self.escapes)

    def _enter(
        self, source: Source, function: Function, owner: ClassInfo | None, roles: dict[str, set[Place]]
    ) -> None:
        key = (function, frozenset((name, place) for name, places in roles.items() for place in places))
        if key not in self._seen:
            self._seen.add(key)
            self._pending.append(self.project.body(source, function, owner, roles))

    def _follow(self, body: Body) -> None:
        followed: set[ast.AST] = set()
        for call in body.calls():
            self._call(body, call, followed)
        for node in body.of(ast.Attribute):
            if isinstance(node, ast.Attribute):
                self._property(body, node)
        for node in body.of(ast.Name):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in followed:
                for place in body.names.get(node.id, ()):
                    if len(place) == 1 and place != SELF and self._escapes(body, node):
                        self.escapes.append((place, node, body))

    def _call(self, body: Body, node: ast.Call, followed: set[ast.AST]) -> None:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        function = node.func
        if isinstance(function, ast.Name) and function.id in body.local_functions:
            followed.update(arguments)
            return
        if isinstance(function, ast.Attribute) and function.attr in PROTOCOL:
            followed.update(arguments)
            return
        if isinstance(function, ast.Name) and function.id in (*_PROBES, "isinstance", "type", "callable"):
            followed.update(arguments)
            return
        targets = list(self._targets(body, function))
        for source, target, owner, bound in targets:
            roles = argument_places(body, node, target, bound=bound is not None)
            if bound is not None and parameters(target):
                roles.setdefault(parameters(target)[0], set()).add(bound)
            if any(place != SELF for places in roles.values() for place in places):
                self._enter(source, target, owner, roles)
        if targets:
            followed.update(arguments)

    def _targets(
        self, body: Body, node: ast.expr
    ) -> Iterator[tuple[Source, Function, ClassInfo | None, Place | None]]:
        """Functions that a call may run, with the class they belong to and what their first parameter is bound to."""
        if isinstance(node, ast.Attribute):
            base = node.value
            if isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super":
                found = self.info.find(node.attr, after=body.owner) if body.owner else None
                if found and not found[0].source.in_framework:
                    yield from _as_target(found, SELF)
                return
            for place in body.places(base):
                if place == SELF:
                    found = self.info.find(node.attr)
                    if found and not found[0].source.in_framework:
                        yield from _as_target(found, SELF)
                elif place == COMPONENTS:
                    for pipeline in self.project.pipelines_of(body.source):
                        found = pipeline.find(node.attr)
                        if found and not found[0].source.in_framework:
                            yield from _as_target(found, COMPONENTS)
        scope = body.function
        symbol = self.project.modules.symbol(body.source, node, scope)
        if symbol is None or (symbol.source is None and symbol.node is None):
            if isinstance(node, ast.Attribute):
                info = self.project.classes.named(body.source, node.value, scope)
                found = info.find(node.attr) if isinstance(info, ClassInfo) else None
                if found and not found[0].source.in_framework:
                    yield from _as_target(found, None)
            return
        target, source = symbol.node, symbol.source
        if isinstance(target, ast.FunctionDef | ast.AsyncFunctionDef) and source and not source.in_framework:
            yield source, target, None, None

    def _property(self, body: Body, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load) or COMPONENTS not in body.places(node.value):
            return
        for pipeline in self.project.pipelines_of(body.source):
            found = pipeline.method(node.attr)
            if found and found[1].decorator_list and not found[0].source.in_framework:
                self._enter(found[0].source, found[1], found[0], {parameters(found[1])[0]: {COMPONENTS}})

    def _escapes(self, body: Body, node: ast.Name) -> bool:
        parent = body.source.parent(node)
        if isinstance(parent, ast.Attribute | ast.Compare | ast.Return):
            return isinstance(parent, ast.Attribute) and parent.attr in ("as_dict", "__dict__", "attributes")
        if isinstance(parent, ast.Subscript):
            return literal(parent.slice) is None
        if isinstance(parent, ast.Tuple):
            return not isinstance(body.source.parent(parent), ast.Return | ast.Assign)
        if isinstance(parent, ast.Assign):
            return not all(isinstance(target, ast.Name | ast.Tuple) for target in parent.targets)
        return True


def _as_target(
    found: tuple[ClassInfo, ast.stmt | ast.expr], bound: Place | None
) -> Iterator[tuple[Source, Function, ClassInfo | None, Place | None]]:
    owner, member = found
    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
        static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in member.decorator_list)
        yield owner.source, member, owner, None if static else bound


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


def entry_roles(owner: ClassInfo, function: Function) -> dict[str, set[Place]]:
    """What the parameters of a block's method stand for when the framework, or nobody known, calls it."""
    names = parameters(function)
    roles: dict[str, set[Place]] = {}
    static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list)
    if names and not static:
        roles[names[0]] = {SELF}
    if function.name == "__call__" and len(names) > 2:
        roles[names[1]] = {COMPONENTS}
        roles[names[2]] = {BLOCK_STATE if takes_block_state(function) else STATE}
        return roles
    for name in names[0 if static else 1 :]:
        if name in ("components", "block_state", "state"):
            roles[name] = {(name,)}
    return roles


def takes_block_state(function: Function) -> bool:
    """Whether a block's ``__call__`` is written to run inside a loop, where it gets the loop's block state."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    if len(arguments) < 3:
        return False
    third = arguments[2]
    if third.arg == "block_state":
        return True
    annotation = third.annotation
    text = annotation.attr if isinstance(annotation, ast.Attribute) else getattr(annotation, "id", "")
    return text == "BlockState"


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


def place_name(place: Place) -> str:
    """A place as it is written: ``components.vae``."""
    return ".".join(place)
