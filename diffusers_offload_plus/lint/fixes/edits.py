"""Changes to one file, collected on its concrete syntax tree and applied in one go."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from ..core.finding import Finding
from ..project.project import Project
from ..reading.source import Source

__all__ = ["CannotFix", "Edits", "Tree", "below"]

Node = TypeVar("Node", bound=cst.CSTNode)
Change = Callable[[Any], Any]
Place = tuple[int, int]


class CannotFix(Exception):
    """A finding that cannot be fixed safely. The message says why."""


class Tree:
    """A parsed file with the places and parents of its nodes."""

    def __init__(self, text: str) -> None:
        # A tree fresh from the parser contains no node twice, so it needs no copy.
        wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
        self.module = wrapper.module
        self.positions = wrapper.resolve(PositionProvider)
        self.parents: dict[cst.CSTNode, cst.CSTNode] = {}
        self._by_kind: dict[type[cst.CSTNode], list[cst.CSTNode]] = defaultdict(list)
        for node in _walk(self.module):
            self._by_kind[type(node)].append(node)
            for child in _children(node):
                self.parents[child] = node

    def nodes(self, kind: type[Node]) -> list[Node]:
        """All nodes of exactly this kind."""
        return self._by_kind[kind]  # type: ignore[return-value]


def below(node: cst.CSTNode, kind: type[Node]) -> Iterator[Node]:
    """Nodes of a kind at and below ``node``, in no particular order."""
    for found in _walk(node):
        if isinstance(found, kind):
            yield found


def _walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield current
        waiting += _children(current)


def _children(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    # The attribute `children` of nodes runs a visitor, which takes many times longer.
    for name in _fields(type(node)):
        value = getattr(node, name)
        if isinstance(value, cst.CSTNode):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, cst.CSTNode))


@functools.cache
def _fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


class Edits:
    """The changes to make in a file. The tree itself stays as it is, so several :class:`Edits` can share it.

    Attributes:
        project: all linted files; ``source``: the file to change.
    """

    def __init__(self, project: Project, source: Source, tree: Tree) -> None:
        self.project = project
        self.source = source
        self.module = tree.module
        self._tree = tree
        self._changes: dict[cst.CSTNode, list[Change]] = defaultdict(list)
        self._imports: dict[str, cst.SimpleStatementLine] = {}

    def code(self) -> str:
        """The text of the changed file."""
        changed = self.module.visit(_Apply(self._changes))
        for statement in self._imports.values():
            changed = _with_import(changed, statement)
        return changed.code

    def change(self, node: cst.CSTNode, change: Change) -> None:
        """Replace ``node`` by what ``change`` makes of it, once what lies inside of it has changed."""
        self._changes[node].append(change)

    def start(self, node: cst.CSTNode) -> Place:
        """The place where ``node`` starts: line from 1, column from 0."""
        position = self._range(node).start
        return position.line, position.column

    def end(self, node: cst.CSTNode) -> Place:
        """The place one past the last character of ``node``."""
        position = self._range(node).end
        return position.line, position.column

    def _range(self, node: cst.CSTNode) -> CodeRange:
        found = self._tree.positions[node]
        assert isinstance(found, CodeRange)
        return found

    def at(self, finding: Finding, kind: type[Node], fits: Callable[[Node], bool] = lambda node: True) -> Node:
        """The node that ``finding`` is about: at the finding's place, else inside of its range, else around it.

        Raises:
            CannotFix: there is no such node, or more than one.
        """
        first, last = (finding.line, finding.column - 1), (finding.end_line, finding.end_column - 1)
        candidates = [node for node in self._tree.nodes(kind) if fits(node)]
        for near in (
            [node for node in candidates if self.start(node) == first and self.end(node) == last],
            [node for node in candidates if first <= self.start(node) and self.end(node) <= last],
            [node for node in candidates if self.start(node) == first],
            [node for node in candidates if self.start(node)[0] == finding.line],
        ):
            if len(near) == 1:
                return near[0]
            if near:
                raise CannotFix("several places on the line fit the finding")
        around = [node for node in candidates if self.start(node) <= first and last <= self.end(node)]
        if not around:
            raise CannotFix("it is written in a form that cannot be fixed automatically")
        return max(around, key=self.start)

    def enclosing(self, node: cst.CSTNode, kind: type[Node]) -> Node:
        """The innermost node of a kind around ``node``.

        Raises:
            CannotFix: there is no such node.
        """
        current = self._tree.parents.get(node)
        while current is not None:
            if isinstance(current, kind):
                return current
            current = self._tree.parents.get(current)
        raise CannotFix(f"it is not inside a {kind.__name__}")

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """The node right around ``node``."""
        found = self._tree.parents.get(node)
        assert found is None or isinstance(found, cst.CSTNode)
        return found

    def refuse_comments(self, node: cst.CSTNode) -> None:
        """Raise if comments would be lost with ``node``."""
        if any(True for _ in below(node, cst.Comment)):
            raise CannotFix("a comment there would be lost")

    def require_import(self, module: str, name: str) -> None:
        """Make ``name`` from ``module`` available; an empty ``name`` means the module itself.

        Raises:
            CannotFix: the name stands for something else in this file.
        """
        bound = name or module
        dotted = f"{module}.{name}" if name else module
        symbol = self.project.modules.lookup(self.source, bound)
        if symbol is not None:
            if symbol.dotted != dotted:
                raise CannotFix(f"`{bound}` already stands for {symbol.dotted} in this file")
            return
        statement = f"from {self._relative(module)} import {name}" if name else f"import {module}"
        parsed = cst.parse_statement(statement)
        assert isinstance(parsed, cst.SimpleStatementLine)
        self._imports[dotted] = parsed

    def _relative(self, module: str) -> str:
        """The name of ``module`` as this file would write it: relative within diffusers, as its files do."""
        here = self.source.module.split(".")
        package = here if self.source.package else here[:-1]
        parts = module.split(".")
        if not package or package[0] != parts[0]:
            return module
        shared = 0
        while shared < min(len(package), len(parts) - 1) and package[shared] == parts[shared]:
            shared += 1
        return "." * (len(package) - shared + 1) + ".".join(parts[shared:])


class _Apply(cst.CSTTransformer):
    def __init__(self, changes: dict[cst.CSTNode, list[Change]]) -> None:
        super().__init__()
        self._changes = changes

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        updated = super().on_leave(original_node, updated_node)
        for change in self._changes.get(original_node, ()):
            if isinstance(updated, cst.CSTNode):
                updated = change(updated)
        return updated


def _with_import(module: cst.Module, statement: cst.SimpleStatementLine) -> cst.Module:
    """The module with ``statement`` added among its imports, at its place in sorted order."""
    body = list(module.body)
    imports = [index for index, line in enumerate(body) if _import(line) is not None]
    wanted = _order(statement)
    alike = [index for index in imports if _order(body[index])[0] == wanted[0]]
    blank = [cst.EmptyLine(indent=False)]
    if not alike:
        earlier = [index for index in imports if _order(body[index]) < wanted]
        place = earlier[-1] + 1 if earlier else imports[0] if imports else int(module.get_docstring() is not None)
        # The import becomes a group of its own.
        statement = statement.with_changes(leading_lines=blank if place else [])
        return module.with_changes(body=[*body[:place], statement, *body[place:]])
    later = [index for index in alike if _order(body[index]) > wanted]
    place = later[0] if later else alike[-1] + 1
    if place == alike[0]:
        # The blank lines above a group of imports stay above it.
        following = body[place]
        assert isinstance(following, cst.SimpleStatementLine)
        if not any(line.comment for line in following.leading_lines):
            statement = statement.with_changes(leading_lines=following.leading_lines)
            body[place] = following.with_changes(leading_lines=[])
    return module.with_changes(body=[*body[:place], statement, *body[place:]])


def _import(line: cst.CSTNode) -> cst.Import | cst.ImportFrom | None:
    if isinstance(line, cst.SimpleStatementLine) and isinstance(line.body[0], cst.Import | cst.ImportFrom):
        return line.body[0]
    return None


def _order(line: cst.CSTNode) -> tuple[int, int, str]:
    """The sort key of an import: absolute imports come first, then relative ones, those with more dots before."""
    found = _import(line)
    empty = cst.Module([])
    if isinstance(found, cst.ImportFrom):
        module = empty.code_for_node(found.module) if found.module is not None else ""
        if module == "__future__":
            return (-99, 0, "")
        dots = len(found.relative)
        return (1 if dots else 0, -dots if dots else 1, module)
    return (0, 0, empty.code_for_node(found.names[0].name) if found is not None else "")
