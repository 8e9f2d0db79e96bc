"""Expressions of the evaluator, on values that may be known in part only."""

from __future__ import annotations

import abc
import ast
from collections.abc import Callable
from typing import Any

from ..reading.nodes import Function, function_called
from ..reading.source import Source
from ..resolution.classes import ClassInfo
from .builtins import fold
from .values import (
    UNKNOWN,
    Choice,
    ClassValue,
    Constant,
    Dictionary,
    FunctionValue,
    Instance,
    Items,
    Spec,
    Value,
    choice,
    elements,
)

__all__ = ["Expressions", "Frame"]

_DEPTH = 40  # of nested expressions and calls
_STEPS = 20_000  # expressions in one question
_TRUE = Instance | ClassValue | FunctionValue | Spec  # true whatever is in them


class Frame:
    """Names visible while a function, class body or module runs."""

    def __init__(
        self,
        source: Source,
        names: dict[str, Value] | None = None,
        *,
        owner: ClassInfo | None = None,
        instance: Value | None = None,
        scope: Function | None = None,
    ) -> None:
        self.source = source
        self.names = names if names is not None else {}
        self.owner = owner
        self.instance = instance
        self.scope = scope
        self.returned: list[Value] = []


class Expressions(abc.ABC):
    """Evaluates expressions. Subclasses say what names, attributes and calls stand for."""

    def __init__(self) -> None:
        self._depth = 0
        self._steps = 0
        self._methods: dict[type[ast.AST], Callable[[Any, Frame], Value] | None] = {}

    @abc.abstractmethod
    def name(self, name: ast.Name, frame: Frame) -> Value:
        """The value of a name."""

    @abc.abstractmethod
    def attribute(self, value: Value, name: str) -> Value:
        """The value of ``value.name``."""

    @abc.abstractmethod
    def super_attribute(self, frame: Frame, name: str) -> Value:
        """The value of ``super().name``."""

    @abc.abstractmethod
    def assign(self, target: ast.expr, value: Value, frame: Frame) -> None:
        """Bind ``value`` to a target."""

    @abc.abstractmethod
    def evaluate_call(self, node: ast.Call, frame: Frame) -> Value:
        """The value of a call."""

    # -- expressions -------------------------------------------------------------------------------------------

    def eval(self, node: ast.AST, frame: Frame) -> Value:
        """The value of an expression."""
        self._steps += 1
        if self._depth > _DEPTH or self._steps > _STEPS:
            return UNKNOWN
        kind = node.__class__
        if kind not in self._methods:
            self._methods[kind] = getattr(self, f"_eval_{kind.__name__}", None)
        method = self._methods[kind]
        if method is None:
            return UNKNOWN
        self._depth += 1
        try:
            return method(node, frame)
        finally:
            self._depth -= 1

    def _eval_Constant(self, node: ast.Constant, frame: Frame) -> Value:
        return Constant(node.value)

    def _eval_Name(self, node: ast.Name, frame: Frame) -> Value:
        return frame.names[node.id] if node.id in frame.names else self.name(node, frame)

    def _eval_Call(self, node: ast.Call, frame: Frame) -> Value:
        return self.evaluate_call(node, frame)

    def _eval_Attribute(self, node: ast.Attribute, frame: Frame) -> Value:
        base = node.value
        if function_called(base) == "super":
            return self.super_attribute(frame, node.attr)
        return self.attribute(self.eval(base, frame), node.attr)

    def _items(self, nodes: list[ast.expr], frame: Frame) -> Items:
        found: list[Value] = []
        everything = True
        for node in nodes:
            if isinstance(node, ast.Starred):
                items, whole = elements(self.eval(node.value, frame))
                found += items
                everything = everything and whole
            else:
                found.append(self.eval(node, frame))
        return Items(found, not everything)

    def _eval_List(self, node: ast.List, frame: Frame) -> Value:
        return self._items(node.elts, frame)

    def _eval_Tuple(self, node: ast.Tuple, frame: Frame) -> Value:
        found = self._items(node.elts, frame)
        found.kind = "tuple"
        return found

    def _eval_Set(self, node: ast.Set, frame: Frame) -> Value:
        found = self._items(node.elts, frame)
        found.kind = "set"
        return found

    def _eval_Dict(self, node: ast.Dict, frame: Frame) -> Value:
        found = Dictionary({})
        for key, item in zip(node.keys, node.values, strict=True):
            value = self.eval(item, frame)
            if key is None:
                found.update(value)
                continue
            name = self.eval(key, frame)
            if isinstance(name, Constant):
                found.items[name.value] = value
            else:
                found.open = True
        return found

    def _eval_JoinedStr(self, node: ast.JoinedStr, frame: Frame) -> Value:
        parts = []
        for part in node.values:
            value = self.eval(part.value if isinstance(part, ast.FormattedValue) else part, frame)
            if not isinstance(value, Constant) or (isinstance(part, ast.FormattedValue) and part.format_spec):
                return UNKNOWN
            quoted = isinstance(part, ast.FormattedValue) and part.conversion in (ord("r"), ord("a"))
            parts.append(repr(value.value) if quoted else str(value.value))
        return Constant("".join(parts))

    def _eval_NamedExpr(self, node: ast.NamedExpr, frame: Frame) -> Value:
        value = self.eval(node.value, frame)
        frame.names[node.target.id] = value
        return value

    def _eval_IfExp(self, node: ast.IfExp, frame: Frame) -> Value:
        test = self.truth(self.eval(node.test, frame))
        if test is not None:
            return self.eval(node.body if test else node.orelse, frame)
        return choice([self.eval(node.body, frame), self.eval(node.orelse, frame)])

    def _eval_BoolOp(self, node: ast.BoolOp, frame: Frame) -> Value:
        options: list[Value] = []
        stops = isinstance(node.op, ast.Or)
        for item in node.values:
            value = self.eval(item, frame)
            truth = self.truth(value)
            options.append(value)
            if truth is stops:
                break
            if truth is not None and item is not node.values[-1]:
                options.pop()
        return choice(options)

    def _eval_UnaryOp(self, node: ast.UnaryOp, frame: Frame) -> Value:
        value = self.eval(node.operand, frame)
        if isinstance(node.op, ast.Not):
            truth = self.truth(value)
            return UNKNOWN if truth is None else Constant(not truth)
        return fold(node.op, [value])

    def _eval_BinOp(self, node: ast.BinOp, frame: Frame) -> Value:
        left, right = self.eval(node.left, frame), self.eval(node.right, frame)
        if isinstance(left, Constant) and isinstance(right, Constant):
            return fold(node.op, [left, right])
        if isinstance(node.op, ast.Add):
            (one, whole), (other, rest) = elements(left), elements(right)
            return Items(one + other, not (whole and rest)) if one or other or (whole and rest) else UNKNOWN
        if isinstance(node.op, ast.BitOr) and isinstance(left, Dictionary):
            merged = Dictionary(dict(left.items), left.open)
            merged.update(right)
            return merged
        return UNKNOWN

    def _eval_Compare(self, node: ast.Compare, frame: Frame) -> Value:
        values = [self.eval(node.left, frame), *(self.eval(item, frame) for item in node.comparators)]
        if len(values) != 2:
            return UNKNOWN
        operator = node.ops[0]
        if isinstance(operator, ast.In | ast.NotIn):
            items, whole = elements(values[1])
            if isinstance(values[0], Constant) and whole and all(isinstance(item, Constant) for item in items):
                inside = any(isinstance(item, Constant) and item.value == values[0].value for item in items)
                return Constant(inside is isinstance(operator, ast.In))
            return UNKNOWN
        if isinstance(operator, ast.Is | ast.IsNot) and isinstance(values[1], Constant) and values[1].value is None:
            if values[0] is UNKNOWN or isinstance(values[0], Choice):
                return UNKNOWN
            none = isinstance(values[0], Constant) and values[0].value is None
            return Constant(none is isinstance(operator, ast.Is))
        return fold(operator, values)

    def truth(self, value: Value) -> bool | None:
        """Whether ``value`` counts as true; ``None`` if that is not known."""
        if isinstance(value, Constant):
            return bool(value.value)
        if isinstance(value, Items | Dictionary):
            return True if value.items else (None if value.open else False)
        if isinstance(value, Choice):
            truths = {self.truth(option) for option in value.options}
            return truths.pop() if len(truths) == 1 else None
        return True if isinstance(value, _TRUE) else None

    def _eval_Subscript(self, node: ast.Subscript, frame: Frame) -> Value:
        value = self.eval(node.value, frame)
        if isinstance(node.slice, ast.Slice):
            return self._slice(value, node.slice, frame)
        key = self.eval(node.slice, frame)
        if not isinstance(key, Constant):
            return UNKNOWN
        if isinstance(value, Dictionary):
            try:
                return value.items.get(key.value, UNKNOWN)
            except TypeError:
                return UNKNOWN
        items, whole = elements(value)
        if whole and isinstance(key.value, int) and -len(items) <= key.value < len(items):
            return items[key.value]
        return UNKNOWN

    def _slice(self, value: Value, node: ast.Slice, frame: Frame) -> Value:
        items, whole = elements(value)
        if isinstance(value, Constant) or not items:
            return UNKNOWN
        bounds: list[int | None] = []
        for bound in (node.lower, node.upper, node.step):
            number = self.eval(bound, frame) if bound is not None else Constant(None)
            if not isinstance(number, Constant) or not isinstance(number.value, int | None):
                return Items(items, True)
            bounds.append(number.value)
        return Items(items[slice(*bounds)], not whole) if bounds[2] != 0 else UNKNOWN

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, frame: Frame
    ) -> tuple[list[Frame], bool]:
        frames = [frame]
        whole = True
        for generator in node.generators:
            following: list[Frame] = []
            for outer in frames:
                items, known = elements(self.eval(generator.iter, outer))
                whole = whole and known
                for item in items[:200]:
                    inner = Frame(
                        outer.source, dict(outer.names), owner=outer.owner, instance=outer.instance, scope=outer.scope
                    )
                    self.assign(generator.target, item, inner)
                    tests = [self.truth(self.eval(test, inner)) for test in generator.ifs]
                    if False not in tests:
                        following.append(inner)
            frames = following[:400]
        return frames, whole

    def _eval_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp, frame: Frame) -> Value:
        frames, whole = self._comprehension(node, frame)
        return Items([self.eval(node.elt, inner) for inner in frames], not whole)

    _eval_SetComp = _eval_ListComp
    _eval_GeneratorExp = _eval_ListComp

    def _eval_DictComp(self, node: ast.DictComp, frame: Frame) -> Value:
        frames, whole = self._comprehension(node, frame)
        found = Dictionary({}, not whole)
        for inner in frames:
            key = self.eval(node.key, inner)
            if isinstance(key, Constant):
                found.items[key.value] = self.eval(node.value, inner)
            else:
                found.open = True
        return found

    def _eval_Lambda(self, node: ast.Lambda, frame: Frame) -> Value:
        return FunctionValue(frame.source, node, closure=frame.names)
