"""Statements of the evaluator: assignments, branches and loops on values that may be known in part only."""

from __future__ import annotations

import abc
import ast

from ..reading.nodes import Dotted, Function, Listing
from .expressions import Expressions, Frame
from .values import UNKNOWN, Constant, Dictionary, FunctionValue, Instance, Items, Value, choice, elements

__all__ = ["Statements"]


class Statements(Expressions):
    """Runs statements on abstract values."""

    @abc.abstractmethod
    def define(self, node: ast.ClassDef, frame: Frame) -> None:
        """Run a class statement."""

    def run(self, body: list[ast.stmt], frame: Frame) -> bool:
        """Run statements. True if they certainly return or raise."""
        return any(self.statement(statement, frame) for statement in body)

    def statement(self, node: ast.stmt, frame: Frame) -> bool:
        """Run one statement. True if it certainly returns or raises."""
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
            self.define(node, frame)
        elif isinstance(node, Function):
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
                return self.run(node.body, frame)
            elif isinstance(node, ast.Try | ast.TryStar):
                done = self.run([*node.body, *node.orelse], frame)
                for handler in node.handlers:
                    done = self._branches([handler.body, []], frame) and done
                return self.run(node.finalbody, frame) or (done and not node.handlers)
            elif isinstance(node, ast.Match):
                self._branches([case.body for case in node.cases] + [[]], frame)
            return False
        finally:
            self._depth -= 1

    def _if(self, node: ast.If, frame: Frame) -> bool:
        test = self.truth(self.eval(node.test, frame))
        if test is not None and frame.scope is not None:
            return self.run(node.body if test else node.orelse, frame)
        return self._branches([node.body, node.orelse], frame)

    def _branches(self, bodies: list[list[ast.stmt]], frame: Frame) -> bool:
        """Run alternative ``bodies``, of which only one happens. Containers collect what any of these adds."""
        before = dict(frame.names)
        results: list[dict[str, Value]] = []
        for body in bodies:
            frame.names.clear()
            frame.names.update(before)
            if not self.run(body, frame):
                results.append(dict(frame.names))
        frame.names.clear()
        for name in {name: None for result in results or [before] for name in result}:
            frame.names[name] = choice([result[name] for result in results or [before] if name in result])
        return not results

    def _for(self, node: ast.For | ast.AsyncFor, frame: Frame) -> None:
        items, whole = elements(self.eval(node.iter, frame))
        for item in items[:200]:
            self.assign(node.target, item, frame)
            if self.run(node.body, frame):
                break
        if not whole:
            self.assign(node.target, UNKNOWN, frame)
            self._branches([node.body, []], frame)
        self.run(node.orelse, frame)

    def _augment(self, node: ast.AugAssign, frame: Frame) -> None:
        value = self.eval(node.value, frame)
        if not isinstance(node.target, Dotted):
            return
        current = self.eval(node.target, frame)
        if isinstance(node.op, ast.Add) and isinstance(current, Items):
            items, whole = elements(value)
            current.extend(items, whole)
        else:
            self.assign(node.target, UNKNOWN, frame)

    def assign(self, target: ast.expr, value: Value, frame: Frame) -> None:
        """Bind ``value`` to a target."""
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
        elif isinstance(target, Listing):
            items, whole = elements(value)
            matches = whole and len(items) == len(target.elts)
            for index, element in enumerate(target.elts):
                if isinstance(element, ast.Starred):
                    element, matches = element.value, False
                self.assign(element, items[index] if matches else UNKNOWN, frame)
