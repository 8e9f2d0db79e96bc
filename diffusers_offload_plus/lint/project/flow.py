"""The flow of a block: how it uses components, state and block state, followed through aliases and helpers."""

from __future__ import annotations

import ast
import functools

from ..reading.nodes import Function, Listing, function_called, literal, method_called, name_of, passed
from ..reading.source import Source
from ..resolution.classes import ClassInfo
from ..resolution.modules import parameters
from .bodies import Bodies
from .body import BLOCK_STATE, COMPONENTS, PROBES, SELF, STATE, Access, Body, Place, back
from .callees import Callees
from .pipelines import Pipelines

__all__ = ["Flow"]


# Methods of blocks that take the whole state, and whose effect is known.
PROTOCOL = {"get_block_state", "set_block_state", "loop_step", "progress_bar"}
_HARMLESS = {*PROBES, "isinstance", "type", "callable"}


class Flow:
    """The functions that run when a block is called, as far as calls can be followed."""

    def __init__(self, info: ClassInfo, callees: Callees, pipelines: Pipelines, bodies: Bodies) -> None:
        self.info = info
        self._callees = callees
        self._pipelines = pipelines
        self._known = bodies
        self.bodies: list[Body] = []
        self.escapes: list[tuple[Place, ast.AST, Body]] = []
        self._seen: set[tuple[ast.AST, frozenset[tuple[str, Place]]]] = set()
        self._pending: list[Body] = []
        if info.call is not None:
            owner, function = info.call
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

    @functools.cached_property
    def changes(self) -> list[Access]:
        """Accesses that write, augment or delete."""
        return [access for access in self.accesses if access.kind in ("write", "augment", "delete")]

    def of(self, root: str, *kinds: str) -> list[Access]:
        """The accesses of these ``kinds``, or of all, to attributes of ``root``, such as ``"block_state"``."""
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
            self._pending.append(self._known.get(source, function, owner, roles))

    def _follow(self, body: Body) -> None:
        followed: set[ast.AST] = set()
        for call in body.of(ast.Call):
            self._call(body, call, followed)
        properties = self._pipelines.properties_of(body.source)
        for attribute in body.of(ast.Attribute) if properties else ():
            if attribute.attr in properties and isinstance(attribute.ctx, ast.Load):
                self._property(body, attribute, properties[attribute.attr])
        whole = {name: held for name, places in body.names.items() if (held := [*filter(_is_whole, places)])}
        for node in body.of(ast.Name) if whole else ():
            if node.id not in whole or not isinstance(node.ctx, ast.Load) or node in followed:
                continue
            if self._escapes(body, node):
                self.escapes += [(place, node, body) for place in whole[node.id]]
        for call in body.of(ast.Call):  # a block state that is handed on without getting a name
            if call not in followed and BLOCK_STATE in body.places(call) and self._escapes(body, call):
                self.escapes.append((BLOCK_STATE, call, body))

    def _call(self, body: Body, node: ast.Call, followed: set[ast.AST]) -> None:
        plain = function_called(node)
        if plain in body.local_functions or plain in _HARMLESS or method_called(node) in PROTOCOL:
            followed.update(passed(node))
            return
        if plain == "partial" or method_called(node) == "partial":
            if not node.args:
                return
            node = ast.copy_location(ast.Call(node.args[0], node.args[1:], node.keywords), node)
        targets = list(self._callees.of(body, node.func, self.info))
        for callee in targets:
            roles = callee.roles(body, node)
            if any(place != SELF for places in roles.values() for place in places):
                self._enter(callee.source, callee.function, callee.owner, roles)
        if targets or back(node) is not None:
            followed.update(passed(node))

    def _property(self, body: Body, node: ast.Attribute, found: list[tuple[ClassInfo, Function]]) -> None:
        if COMPONENTS in body.places(node.value):
            for owner, function in found:
                self._enter(owner.source, function, owner, {parameters(function)[0]: {COMPONENTS}})

    def _escapes(self, body: Body, node: ast.expr) -> bool:
        parent = body.source.parent(node)
        while isinstance(parent, ast.NamedExpr | ast.IfExp | ast.BoolOp):
            if isinstance(parent, ast.IfExp) and parent.test is node:
                return False
            node, parent = parent, body.source.parent(parent)
        if isinstance(parent, ast.Attribute | ast.Compare | ast.Return | ast.Expr | ast.UnaryOp | ast.If | ast.While):
            return isinstance(parent, ast.Attribute) and parent.attr in ("as_dict", "__dict__", "attributes")
        if isinstance(parent, ast.Subscript):
            return literal(parent.slice) is None
        if isinstance(parent, Listing):
            while isinstance(parent, Listing):
                parent = body.source.parent(parent)
            unpacked = isinstance(parent, ast.Assign) and all(isinstance(one, Listing) for one in parent.targets)
            return not (unpacked or isinstance(parent, ast.Return | ast.For))
        if isinstance(parent, ast.Assign):
            return not all(isinstance(target, ast.Name | ast.Tuple) for target in parent.targets)
        if isinstance(parent, ast.AnnAssign):
            return not isinstance(parent.target, ast.Name)
        return not isinstance(parent, ast.withitem)


def _is_whole(place: Place) -> bool:
    """Whether ``place`` is the components, the state or the block state itself, not something in it."""
    return len(place) == 1 and place != SELF


def entry_roles(owner: ClassInfo, function: Function) -> dict[str, set[Place]]:
    """The places that the parameters of a block's method stand for when the framework calls it."""
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
    if third.arg == "block_state" or name_of(third.annotation) == "BlockState":
        return True
    if name_of(third.annotation) == "PipelineState" or len(arguments) + len(function.args.kwonlyargs) < 4:
        return False
    # A step with the loop's variables that does not ask for its block state has been given it.
    names = {name_of(node) for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    return "get_block_state" not in names and not names & {"get_by_kwargs", "set_block_state"}
