"""The evaluator: works out what properties return and what is assembled, without running any of it."""

from __future__ import annotations

import ast

from ..reading.nodes import Function, function_called, name_of
from ..reading.source import Source
from ..resolution.classes import Classes, ClassInfo
from ..resolution.modules import Modules, Symbol
from .binding import parameter_values
from .builtins import call_method, call_named, from_keys, is_instance
from .expressions import Frame
from .framework import framework_attribute
from .specs import declared, from_template
from .statements import Statements
from .templates import SPEC_KINDS, Declarations
from .values import (
    UNKNOWN,
    Choice,
    ClassValue,
    Constant,
    Dictionary,
    External,
    FunctionValue,
    Instance,
    Items,
    ModuleValue,
    Spec,
    Value,
    choice,
)

__all__ = ["Evaluator"]


class Evaluator(Statements):
    """Evaluates expressions and runs functions on abstract values."""

    def __init__(self, modules: Modules, classes: Classes, declarations: Declarations) -> None:
        self.modules = modules
        self.classes = classes
        self.declarations = declarations
        super().__init__()
        self._modules_run: dict[Source, dict[str, Value]] = {}
        self._class_bodies: dict[ClassInfo, dict[str, Value]] = {}
        self._defaults: dict[ClassInfo, Instance] = {}
        self._kinds: dict[Function, frozenset[str]] = {}  # names of decorators
        self.instances: dict[ClassInfo, list[Instance]] = {}

    # -- questions ---------------------------------------------------------------------------------------------

    def default_instance(self, info: ClassInfo) -> Instance:
        """The instance that ``info()`` makes, with arguments left at their defaults."""
        if info not in self._defaults:
            instance = self._defaults[info] = Instance(info)
            self._initialise(instance, [], {})
        return self._defaults[info]

    def expression(self, source: Source, node: ast.expr, scope: Function | None = None) -> Value:
        """The value of an expression in ``source`` as far as the module's own names decide it."""
        self._steps = 0
        return self.eval(node, Frame(source, scope=scope))

    def attribute(self, value: Value, name: str) -> Value:
        """The value of ``value.name``."""
        if self._depth == 0:
            self._steps = 0
        if isinstance(value, Instance):
            return self._instance_attribute(value, name, None)
        if isinstance(value, Choice):
            return choice([self.attribute(option, name) for option in value.options])
        if isinstance(value, ClassValue):
            return self._class_attribute(value.info, name, ClassValue(value.info))
        if isinstance(value, ModuleValue):
            return self.module_names(value.source).get(name) or self._symbol(self.modules.lookup(value.source, name))
        if isinstance(value, External):
            return External(f"{value.dotted}.{name}")
        if isinstance(value, Spec):
            if name in value.fields:
                return value.fields[name]
            return (
                UNKNOWN
                if value.open or name not in ("default", "required", "kwargs_type", "name")
                else Constant(False if name == "required" else None)
            )
        return UNKNOWN

    def module_names(self, source: Source) -> dict[str, Value]:
        """The values of the names that the statements of ``source`` assign."""
        if source not in self._modules_run:
            names = self._modules_run[source] = {}
            self.run(source.tree.body, Frame(source, names))
        return self._modules_run[source]

    def class_names(self, info: ClassInfo) -> dict[str, Value]:
        """The values of the names that the body of a class assigns."""
        if info not in self._class_bodies:
            if info.node in info.source.tree.body:
                self.module_names(info.source)  # class bodies run in the order of the module's statements
            if info not in self._class_bodies:
                self._run_class(info, None)
        return self._class_bodies[info]

    # -- attributes --------------------------------------------------------------------------------------------

    def _instance_attribute(self, instance: Instance, name: str, after: ClassInfo | None) -> Value:
        if after is None and name in instance.attributes:
            return instance.attributes[name]
        native = framework_attribute(self, instance, name, after)
        if native is not None:
            return native
        return self._class_attribute(instance.info, name, instance, after)

    def _class_attribute(self, info: ClassInfo, name: str, bound: Value, after: ClassInfo | None = None) -> Value:
        found = info.find(name, after=after)
        if found is None:
            return Constant(info.name) if name == "__name__" else UNKNOWN
        owner, member = found
        if isinstance(member, Function):
            kinds = self._kinds_of(member)
            if "staticmethod" in kinds:
                return FunctionValue(owner.source, member, owner)
            if "classmethod" in kinds:
                return FunctionValue(owner.source, member, owner, ClassValue(info))
            if kinds & {"property", "cached_property"}:
                return self._property(owner, member, bound, after) if isinstance(bound, Instance) else UNKNOWN
            return FunctionValue(owner.source, member, owner, bound if isinstance(bound, Instance) else None)
        return self.class_names(owner).get(name, UNKNOWN)

    def _kinds_of(self, member: Function) -> frozenset[str]:
        if member not in self._kinds:
            self._kinds[member] = frozenset(_decorator_name(item) for item in member.decorator_list)
        return self._kinds[member]

    def _property(self, owner: ClassInfo, member: Function, bound: Instance, after: ClassInfo | None) -> Value:
        key = f"property {member.name}"
        if after is not None or not bound.settled:
            return self.call(FunctionValue(owner.source, member, owner, bound), [], {})
        if key not in bound.cache:
            bound.cache[key] = UNKNOWN  # ends cycles
            bound.cache[key] = self.call(FunctionValue(owner.source, member, owner, bound), [], {})
        value: Value = bound.cache[key]
        # A copy, since the caller may add to the list.
        return Items(list(value.items), value.open, value.kind) if isinstance(value, Items) else value

    def _initialise(self, instance: Instance, arguments: list[Value], keywords: dict[str, Value]) -> None:
        found = instance.info.method("__init__")
        if found is not None and not found[0].source.in_framework:
            owner, function = found
            required = len(function.args.args) - 1 - len(function.args.defaults) - len(arguments)
            if required > 0 and not keywords:
                instance.opaque = True  # what it declares depends on arguments that are not there
            self.call(FunctionValue(owner.source, function, owner, instance), arguments, keywords)
        instance.settled = True

    def _symbol(self, symbol: Symbol | None) -> Value:
        if symbol is None:
            return UNKNOWN
        if symbol.node is None or symbol.source is None:
            module = self.modules.module(symbol.dotted) if symbol.dotted.startswith("diffusers.modular_") else None
            return ModuleValue(module) if module is not None else External(symbol.dotted)
        if isinstance(symbol.node, ast.ClassDef):
            if symbol.source.in_framework and symbol.node.name in (*SPEC_KINDS, "InsertableDict"):
                return External(symbol.dotted)
            return ClassValue(self.classes.info(symbol.source, symbol.node))
        if isinstance(symbol.node, Function):
            return FunctionValue(symbol.source, symbol.node)
        name = symbol.dotted.rpartition(".")[2]
        return self.module_names(symbol.source).get(name, UNKNOWN)

    def name(self, node: ast.Name, frame: Frame) -> Value:
        if frame.names is not self._modules_run.get(frame.source):
            names = self.module_names(frame.source)
            if node.id in names:
                return names[node.id]
        return self._symbol(self.modules.symbol(frame.source, node, frame.scope))

    def super_attribute(self, frame: Frame, name: str) -> Value:
        if isinstance(frame.instance, Instance) and frame.owner is not None:
            return self._instance_attribute(frame.instance, name, frame.owner)
        return UNKNOWN

    # -- calls -------------------------------------------------------------------------------------------------

    def evaluate_call(self, node: ast.Call, frame: Frame) -> Value:
        arguments = self._items(node.args, frame)
        keywords = Dictionary({})
        for keyword in node.keywords:
            value = self.eval(keyword.value, frame)
            if keyword.arg is None:
                keywords.update(value)
            else:
                keywords.items[keyword.arg] = value
        function = node.func
        called: Value | None = None
        if isinstance(function, ast.Name) and function.id == "isinstance" and len(node.args) == 2:
            return is_instance(arguments.items[0] if arguments.items else UNKNOWN, node.args[1])
        if isinstance(function, ast.Name) and function.id not in frame.names:
            found = call_named(function.id, arguments, keywords)
            if found is not None and self.modules.symbol(frame.source, function, frame.scope) is None:
                return found
        if isinstance(function, ast.Attribute):
            base = function.value
            if function.attr == "fromkeys" and isinstance(base, ast.Name) and base.id == "dict" and arguments.items:
                return from_keys(arguments.items[0])
            if function_called(base) != "super":
                value = self.eval(base, frame)
                spec = value.dotted.rpartition(".")[2] if isinstance(value, External) else ""
                if spec in SPEC_KINDS and function.attr == "template":
                    return from_template(self.declarations, spec, node, frame.source, arguments, keywords)
                found = call_method(value, function.attr, arguments, keywords)
                if found is not None:
                    return found
                called = self.attribute(value, function.attr)
        if called is None:
            called = self.eval(function, frame)
        if isinstance(called, External):
            name = called.dotted.rpartition(".")[2]
            if name in SPEC_KINDS:
                return declared(self.declarations, name, node, frame.source, arguments, keywords)
            found = call_named(name, arguments, keywords)
            return found if found is not None else UNKNOWN
        if arguments.open or keywords.open:
            return UNKNOWN
        return self.call(called, arguments.items, keywords.items, node, frame.source)

    def call(
        self,
        function: Value,
        arguments: list[Value],
        keywords: dict[str, Value],
        node: ast.AST | None = None,
        source: Source | None = None,
    ) -> Value:
        """The value of ``function(*arguments, **keywords)``."""
        if isinstance(function, ClassValue):
            if not arguments and not keywords and function.info.is_block:
                return self.default_instance(function.info)
            instance = Instance(function.info, node=node, source=source)
            if function.info.kind:
                self.instances.setdefault(function.info, []).append(instance)
                self._initialise(instance, arguments, keywords)
            return instance
        if not isinstance(function, FunctionValue) or (function.source.in_framework and function.owner is not None):
            return UNKNOWN
        self._depth += 2
        try:
            return self._run_function(function, arguments, keywords)
        finally:
            self._depth -= 2

    def _run_function(self, function: FunctionValue, arguments: list[Value], keywords: dict[str, Value]) -> Value:
        node = function.node
        given = [function.instance, *arguments] if function.instance is not None else arguments
        frame = Frame(
            function.source,
            dict(function.closure),
            owner=function.owner,
            instance=function.instance,
            scope=None if isinstance(node, ast.Lambda) else node,
        )
        frame.names |= parameter_values(
            node, given, keywords, lambda default: self.eval(default, Frame(function.source))
        )
        if isinstance(node, ast.Lambda):
            return self.eval(node.body, frame)
        if any(isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Yield) for statement in node.body):
            return UNKNOWN
        finished = self.run(node.body, frame)
        if not finished and frame.returned:
            frame.returned.append(Constant(None))
        return choice(frame.returned) if frame.returned else Constant(None)

    # -- classes -----------------------------------------------------------------------------------------------

    def define(self, node: ast.ClassDef, frame: Frame) -> None:
        self._run_class(self.classes.info(frame.source, node), frame)

    def _run_class(self, info: ClassInfo, outer: Frame | None) -> None:
        names: dict[str, Value] = {}
        self._class_bodies[info] = names
        closure = outer.names if outer is not None and outer.scope is not None else {}
        frame = Frame(info.source, dict(closure), owner=info)
        for statement in info.node.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.If | ast.For):
                self.statement(statement, frame)
                names.update({name: value for name, value in frame.names.items() if name not in closure})


def _decorator_name(node: ast.expr) -> str:
    return name_of(node.func if isinstance(node, ast.Call) else node)
