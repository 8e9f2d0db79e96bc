"""Evaluates the declarative part of blocks without running it: what properties return, what is assembled."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from .builtins import call_method, call_named, from_keys, is_instance
from .classes import ClassInfo, Function
from .expressions import Expressions, Frame
from .framework import framework_attribute
from .modules import Modules, Symbol, parameters
from .source import Source
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
    elements,
)

if TYPE_CHECKING:
    from .classes import Classes

__all__ = ["Evaluator"]


class Evaluator(Expressions):
    """Evaluates expressions and runs functions on abstract values."""

    def __init__(self, modules: Modules, classes: Classes, declarations: Declarations) -> None:
        self.modules = modules
        self.classes = classes
        self.declarations = declarations
        super().__init__()
        self._modules_run: dict[Source, dict[str, Value]] = {}
        self._class_bodies: dict[ClassInfo, dict[str, Value]] = {}
        self._defaults: dict[ClassInfo, Instance] = {}
        self.instances: dict[ClassInfo, list[Instance]] = {}

    # -- questions ---------------------------------------------------------------------------------------------

    def default_instance(self, info: ClassInfo) -> Instance:
        """``info()``, with arguments left at their defaults."""
        if info not in self._defaults:
            instance = self._defaults[info] = Instance(info)
            self._initialise(instance, [], {})
        return self._defaults[info]

    def expression(self, source: Source, node: ast.expr, scope: Function | None = None) -> Value:
        """The value of an expression in ``source`` as far as the module's own names decide it."""
        self._steps = 0
        return self.eval(node, Frame(source, scope=scope))

    def attribute(self, value: Value, name: str) -> Value:
        """``value.name``."""
        if self._depth == 0:
            self._steps = 0
        if isinstance(value, Choice):
            return choice([self.attribute(option, name) for option in value.options])
        if isinstance(value, Instance):
            return self._instance_attribute(value, name, None)
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
        """Values of the names that the module's own statements assign."""
        if source not in self._modules_run:
            names = self._modules_run[source] = {}
            self._run(source.tree.body, Frame(source, names))
        return self._modules_run[source]

    def class_names(self, info: ClassInfo) -> dict[str, Value]:
        """Values of the names that the class body assigns."""
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
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            kinds = {decorator_name(decorator) for decorator in member.decorator_list}
            if "staticmethod" in kinds:
                return FunctionValue(owner.source, member, owner)
            if "classmethod" in kinds:
                return FunctionValue(owner.source, member, owner, ClassValue(info))
            if kinds & {"property", "cached_property"}:
                return self._property(owner, member, bound, after) if isinstance(bound, Instance) else UNKNOWN
            return FunctionValue(owner.source, member, owner, bound if isinstance(bound, Instance) else None)
        return self.class_names(owner).get(name, UNKNOWN)

    def _property(self, owner: ClassInfo, member: Function, bound: Instance, after: ClassInfo | None) -> Value:
        key = f"property {member.name}"
        if after is not None or not bound.settled:
            return self.call(FunctionValue(owner.source, member, owner, bound), [], {})
        if key not in bound.cache:
            bound.cache[key] = UNKNOWN  # ends cycles
            bound.cache[key] = self.call(FunctionValue(owner.source, member, owner, bound), [], {})
        value: Value = bound.cache[key]
        # Who asked may go on and add to the list.
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
        if isinstance(symbol.node, ast.FunctionDef | ast.AsyncFunctionDef):
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
                self.update(keywords, value)
            else:
                keywords.items[keyword.arg] = value
        function = node.func
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
            if not (isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super"):
                value = self.eval(base, frame)
                spec = value.dotted.rpartition(".")[2] if isinstance(value, External) else ""
                if spec in SPEC_KINDS and function.attr == "template":
                    return self._template(spec, node, frame, arguments, keywords)
                found = call_method(self, value, function.attr, arguments, keywords)
                if found is not None:
                    return found
        called = self.eval(function, frame)
        if isinstance(called, External):
            name = called.dotted.rpartition(".")[2]
            if name in SPEC_KINDS:
                return self._spec(name, node, frame, arguments, keywords)
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
        bound = [function.instance, *arguments] if function.instance is not None else arguments
        frame = Frame(
            function.source,
            dict(function.closure),
            owner=function.owner,
            instance=function.instance,
            scope=None if isinstance(node, ast.Lambda) else node,
        )
        given = node.args
        positional = [argument.arg for argument in (*given.posonlyargs, *given.args)]
        defaults = dict(zip(reversed(positional), reversed(given.defaults), strict=False))
        defaults.update(
            {
                argument.arg: default
                for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
                if default
            }
        )
        for name in parameters(node):
            frame.names[name] = UNKNOWN
        for name, default in defaults.items():
            frame.names[name] = self.eval(default, Frame(function.source))
        frame.names.update(zip(positional, bound, strict=False))
        if given.vararg:
            frame.names[given.vararg.arg] = Items(list(bound[len(positional) :]))
        extra = {name: value for name, value in keywords.items() if name not in parameters(node)}
        if given.kwarg:
            frame.names[given.kwarg.arg] = Dictionary(dict(extra))
        frame.names.update({name: value for name, value in keywords.items() if name not in extra})
        if isinstance(node, ast.Lambda):
            return self.eval(node.body, frame)
        if any(isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Yield) for statement in node.body):
            return UNKNOWN
        finished = self._run(node.body, frame)
        if not finished and frame.returned:
            frame.returned.append(Constant(None))
        return choice(frame.returned) if frame.returned else Constant(None)

    def _spec(self, name: str, node: ast.Call, frame: Frame, arguments: Items, keywords: Dictionary) -> Value:
        order = self.declarations.fields[name]
        fields = dict(zip(order, arguments.items, strict=False))
        fields.update(keywords.items)
        return Spec(
            SPEC_KINDS[name], fields, node, frame.source, frozenset(fields), open=arguments.open or keywords.open
        )

    def _template(self, name: str, node: ast.Call, frame: Frame, arguments: Items, keywords: Dictionary) -> Value:
        given = dict(zip(("template_name", "note"), arguments.items, strict=False)) | keywords.items
        template = given.pop("template_name", UNKNOWN)
        note = given.pop("note", None)
        key = template.value if isinstance(template, Constant) and isinstance(template.value, str) else None
        known = self.declarations.templates.get(name, {}).get(key) if key is not None else None
        fields: dict[str, Value] = {"name": template if key is not None else UNKNOWN}
        fields.update(known or {})
        if note is not None:
            fields["note"] = note
        fields.update(given)
        unread = arguments.open or keywords.open or known is None
        return Spec(SPEC_KINDS[name], fields, node, frame.source, frozenset(given), template=key or "?", open=unread)

    # -- statements --------------------------------------------------------------------------------------------

    def _run(self, body: list[ast.stmt], frame: Frame) -> bool:
        """Run statements; whether they certainly return or raise."""
        return any(self._statement(statement, frame) for statement in body)

    def _statement(self, node: ast.stmt, frame: Frame) -> bool:
        if self._depth > 60:
            return False
        if isinstance(node, ast.Return):
            frame.returned.append(self.eval(node.value, frame) if node.value else Constant(None))
            return True
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Assign):
            value = self.eval(node.value, frame)
            for target in node.targets:
                self.assign(target, value, frame)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.assign(node.target, self.eval(node.value, frame), frame)
        elif isinstance(node, ast.AugAssign):
            self._augment(node, frame)
        elif isinstance(node, ast.Expr):
            self.eval(node.value, frame)
        elif isinstance(node, ast.ClassDef):
            self._run_class(self.classes.info(frame.source, node), frame)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if frame.scope is not None:
                frame.names[node.name] = FunctionValue(frame.source, node, closure=frame.names)
        else:
            return self._compound(node, frame)
        return False

    def _compound(self, node: ast.stmt, frame: Frame) -> bool:
        self._depth += 1
        try:
            if isinstance(node, ast.If):
                return self._if(node, frame)
            if isinstance(node, ast.For | ast.AsyncFor):
                self._for(node, frame)
            elif isinstance(node, ast.While):
                self._branches([node.body, []], frame)
            elif isinstance(node, ast.With | ast.AsyncWith):
                for item in node.items:
                    if item.optional_vars is not None:
                        self.assign(item.optional_vars, UNKNOWN, frame)
                return self._run(node.body, frame)
            elif isinstance(node, ast.Try | ast.TryStar):
                done = self._run([*node.body, *node.orelse], frame)
                for handler in node.handlers:
                    done = self._branches([handler.body, []], frame) and done
                return self._run(node.finalbody, frame) or (done and not node.handlers)
            elif isinstance(node, ast.Match):
                self._branches([case.body for case in node.cases] + [[]], frame)
            return False
        finally:
            self._depth -= 1

    def _if(self, node: ast.If, frame: Frame) -> bool:
        test = self.truth(self.eval(node.test, frame))
        if test is not None and frame.scope is not None:
            return self._run(node.body if test else node.orelse, frame)
        return self._branches([node.body, node.orelse], frame)

    def _branches(self, bodies: list[list[ast.stmt]], frame: Frame) -> bool:
        """Run alternatives of which only one happens; containers collect what any of them adds."""
        before = dict(frame.names)
        results: list[dict[str, Value]] = []
        for body in bodies:
            frame.names.clear()
            frame.names.update(before)
            if not self._run(body, frame):
                results.append(dict(frame.names))
        frame.names.clear()
        for name in {name: None for result in results or [before] for name in result}:
            frame.names[name] = choice([result[name] for result in results or [before] if name in result])
        return not results

    def _for(self, node: ast.For | ast.AsyncFor, frame: Frame) -> None:
        items, whole = elements(self.eval(node.iter, frame))
        for item in items[:200]:
            self.assign(node.target, item, frame)
            if self._run(node.body, frame):
                break
        if not whole:
            self.assign(node.target, UNKNOWN, frame)
            self._branches([node.body, []], frame)
        self._run(node.orelse, frame)

    def _augment(self, node: ast.AugAssign, frame: Frame) -> None:
        value = self.eval(node.value, frame)
        if not isinstance(node.target, ast.Name | ast.Attribute):
            return
        current = self.eval(node.target, frame)
        if isinstance(node.op, ast.Add) and isinstance(current, Items):
            items, whole = elements(value)
            current.extend(items, whole)
        else:
            self.assign(node.target, UNKNOWN, frame)

    def assign(self, target: ast.expr, value: Value, frame: Frame) -> None:
        if isinstance(target, ast.Name):
            frame.names[target.id] = value
        elif isinstance(target, ast.Attribute):
            base = self.eval(target.value, frame)
            if isinstance(base, Instance):
                base.attributes[target.attr] = value
        elif isinstance(target, ast.Subscript):
            base, key = self.eval(target.value, frame), self.eval(target.slice, frame)
            if isinstance(base, Dictionary):
                if isinstance(key, Constant):
                    base.items[key.value] = value
                else:
                    base.open = True
        elif isinstance(target, ast.Tuple | ast.List):
            items, whole = elements(value)
            matches = whole and len(items) == len(target.elts)
            for index, element in enumerate(target.elts):
                if isinstance(element, ast.Starred):
                    element, matches = element.value, False
                self.assign(element, items[index] if matches else UNKNOWN, frame)

    def _run_class(self, info: ClassInfo, outer: Frame | None) -> None:
        names: dict[str, Value] = {}
        self._class_bodies[info] = names
        closure = outer.names if outer is not None and outer.scope is not None else {}
        frame = Frame(info.source, dict(closure), owner=info)
        for statement in info.node.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.If | ast.For):
                self._statement(statement, frame)
                names.update({name: value for name, value in frame.names.items() if name not in closure})


def decorator_name(node: ast.expr) -> str:
    """Last part of a decorator's name."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
