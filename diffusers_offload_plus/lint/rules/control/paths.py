"""The paths through a block's ``__call__``, and whether the state has been saved on each."""

from __future__ import annotations

import ast

from ...project.body import Body
from ...project.project import Project, once
from ...reading.nodes import Function, name_of
from ...resolution.classes import ClassInfo

__all__ = ["Paths"]

SAVE = "set_block_state"
_NEVER: frozenset[bool] = frozenset()
_SAVED = frozenset({True})
_PLAIN = ast.Assign | ast.Expr | ast.AnnAssign | ast.AugAssign | ast.Delete | ast.Assert
_LOOPS = ast.For | ast.AsyncFor | ast.While
_INNER = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Paths:
    """What happens on the way from the start of a ``__call__`` to its ends.

    Attributes:
        returns: the return statements, each with whether the state is certainly saved there.
        gets_state: whether the block state is asked for.
        falls_through: whether the function can end without a return.
    """

    def __init__(self, project: Project, info: ClassInfo, body: Body) -> None:
        self._source = body.source
        self._function = body.function
        saving = _saving(project, info)
        named: list[ast.Attribute | ast.Name] = [*body.of(ast.Attribute), *body.of(ast.Name)]
        self._saves = [node for node in named if name_of(node) in saving and isinstance(node.ctx, ast.Load)]
        self.gets_state = any(node.attr == "get_block_state" for node in body.of(ast.Attribute))
        self.returns: list[tuple[ast.Return, bool]] = []
        self._finals: list[list[ast.stmt]] = []  # of the try statements around the statement that is looked at
        self._left: list[frozenset[bool]] = []  # by break, for each loop around it
        wrapped = any(_names_saving(item, saving) for item in body.function.decorator_list)
        self.falls_through = bool(self._run(body.function.body, _SAVED if wrapped else frozenset({False})))

    def saves(self, node: ast.AST) -> bool:
        """Whether the state is saved in ``node``, by a call or by what is called later."""
        return any(self._source.is_inside(save, node) for save in self._saves)

    def saved_later(self, node: ast.AST) -> bool:
        """Whether the state may still be saved after the statement ``node``."""
        current: ast.AST = node
        for outer in self._source.ancestors(node):
            if isinstance(outer, _LOOPS | ast.With | ast.AsyncWith) and self.saves(outer):
                return True
            if isinstance(outer, ast.Try | ast.TryStar) and any(map(self.saves, outer.finalbody)):
                return True
            for field in ("body", "orelse", "finalbody"):
                block = getattr(outer, field, None)
                if isinstance(block, list) and current in block:
                    following = _reached(block[block.index(current) + 1 :])
                    later: list[ast.AST] = [*following]
                    if isinstance(outer, ast.Try | ast.TryStar) and field == "body":
                        later += [*outer.handlers, *outer.orelse]
                    if any(map(self.saves, later)):
                        return True
            if outer is self._function:
                return any(map(self.saves, self._function.decorator_list))
            current = outer
        return False

    def saved_before(self, node: ast.AST) -> bool:
        """Whether the state has certainly been saved in a statement before ``node``."""
        current: ast.AST = node
        for outer in self._source.ancestors(node):
            for field in ("body", "orelse", "finalbody"):
                block = getattr(outer, field, None)
                before = block[: block.index(current)] if isinstance(block, list) and current in block else []
                if any(isinstance(one, _PLAIN) and self.saves(one) for one in before):
                    return True
            if outer is self._function:
                return False
            current = outer
        return False

    def _run(self, statements: list[ast.stmt], saved: frozenset[bool]) -> frozenset[bool]:
        """The possible answers to whether the state is saved after ``statements``; empty if they never end."""
        for statement in statements:
            saved = self._statement(statement, saved)
            if not saved:
                return saved
        return saved

    def _statement(self, node: ast.stmt, saved: frozenset[bool]) -> frozenset[bool]:
        if isinstance(node, _PLAIN):
            return _SAVED if self.saves(node) else saved
        if isinstance(node, ast.Return):
            finally_saved = any(self._run_apart(final) == _SAVED for final in self._finals)
            self.returns.append((node, self.saves(node) or saved == _SAVED or finally_saved))
            return _NEVER
        if isinstance(node, ast.Raise):
            return _NEVER
        if isinstance(node, ast.Break | ast.Continue):
            if isinstance(node, ast.Break) and self._left:
                self._left[-1] |= saved
            return _NEVER if isinstance(node, ast.Break) else saved
        if isinstance(node, ast.If):
            saved = _SAVED if self.saves(node.test) else saved
            return self._run(node.body, saved) | self._run(node.orelse, saved)
        if isinstance(node, _LOOPS):
            return self._loop(node, saved)
        if isinstance(node, ast.With | ast.AsyncWith):
            managed = any(self.saves(item) for item in node.items)
            return self._run(node.body, _SAVED if managed else saved)
        if isinstance(node, ast.Try | ast.TryStar):
            return self._try(node, saved)
        if isinstance(node, ast.Match):
            left = _NEVER if any(_takes_all(case) for case in node.cases) else saved
            return left.union(*(self._run(case.body, saved) for case in node.cases))
        return saved

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While, saved: frozenset[bool]) -> frozenset[bool]:
        self._left.append(_NEVER)
        endless = isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and bool(node.test.value)
        after = self._run(node.body, saved)
        left = self._left.pop()
        return left if endless else left | self._run(node.orelse, saved | after)

    def _try(self, node: ast.Try | ast.TryStar, saved: frozenset[bool]) -> frozenset[bool]:
        self._finals.append(node.finalbody)
        after = self._run(node.body, saved)
        after = self._run(node.orelse, after) if after else after
        for handler in node.handlers:
            after |= self._run(handler.body, saved)
        self._finals.pop()
        ended = self._run(node.finalbody, after or saved)
        return ended if after else _NEVER

    def _run_apart(self, statements: list[ast.stmt]) -> frozenset[bool]:
        """What :meth:`_run` answers for statements that are looked at once more, elsewhere."""
        returns, finals = self.returns, self._finals
        self.returns, self._finals = [], []
        found = self._run(statements, frozenset({False}))
        self.returns, self._finals = returns, finals
        return found


def _reached(statements: list[ast.stmt]) -> list[ast.stmt]:
    """The statements up to the first that leaves for certain."""
    ends = [index for index, one in enumerate(statements) if isinstance(one, ast.Return | ast.Raise)]
    return statements[: ends[0] + 1] if ends else statements


def _takes_all(case: ast.match_case) -> bool:
    return case.guard is None and isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None


def _names_saving(node: ast.expr, saving: frozenset[str]) -> bool:
    return name_of(node.func if isinstance(node, ast.Call) else node) in saving


@once
def _saving(project: Project, info: ClassInfo) -> frozenset[str]:
    """The names of functions that save the state: methods of the block, and functions of its file."""
    return frozenset({SAVE}).union(
        *(_saving_in_class(project, entry) for entry in info.mro if not entry.source.in_framework),
        _saving_in_module(project, info),
    )


@once
def _saving_in_class(project: Project, info: ClassInfo) -> frozenset[str]:
    methods = {name: member for name, member in info.members.items() if isinstance(member, Function)}
    return frozenset(name for name, member in methods.items() if name != "__call__" and _mentions(info, member))


def _saving_in_module(project: Project, info: ClassInfo) -> frozenset[str]:
    names = project.modules.scope(info.source, info.source.tree)[0]
    functions = {name: bound[-1] for name, bound in names.items() if isinstance(bound[-1], Function)}
    return frozenset(name for name, function in functions.items() if _mentions(info, function))


def _mentions(info: ClassInfo, function: Function) -> bool:
    return any(node.attr == SAVE for node in info.source.within(function, ast.Attribute))
