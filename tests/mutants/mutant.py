"""A mutant: a name for the fault, the function it is in, and the edit that makes it."""

from __future__ import annotations

import ast
import builtins
import importlib
import pathlib
import symtable
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.mutants.edits import Edit
from tests.mutants.functions import Function, Package
from tests.mutants.patterns import Stale

__all__ = ["Mutant", "Room", "mutated"]


class Mutant(NamedTuple):
    """A fault that the suite has to notice.

    ``where`` names a function of the package: ``lay_out``, ``ParamGroup.onload``, ``slabs:SlabPool.take``.
    """

    name: str
    where: str
    edit: Edit


class Room(NamedTuple):
    """The mutants of one part of the package.

    ``first`` names the test files that notice most of them, wherever below ``tests`` they lie.
    """

    first: tuple[str, ...]
    mutants: list[Mutant]


def mutated(mutant: Mutant, package: Package) -> tuple[pathlib.Path, str]:
    """The file that the mutant changes, and its text then.

    Raises:
        Stale: it does not apply, or what it puts in could not run and would be noticed for that alone.
    """
    function = package.function(mutant.where)
    start, stop, new = mutant.edit.splice(function)
    text = (function.source[:start] + new.encode() + function.source[stop:]).decode()
    try:
        tree = ast.parse(text)
        compile(tree, function.file.name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise Stale(f"{function}: not Python any more: {error.msg} in `{error.text}`") from error
    if ast.dump(tree) == ast.dump(package.trees[function.file]):
        raise Stale(f"{function}: it makes no difference")
    unknown = [
        *_unknown_names(text, function),
        *sorted(_attributes(tree) - _known_attributes(package.trees[function.file])),
    ]
    if unknown:
        raise Stale(f"{function}: what it puts in names what is not there: {', '.join(unknown)}")
    return function.file, text


def _unknown_names(text: str, function: Function) -> Iterator[str]:
    """Names that the changed function looks up in its module, which has none of that name."""
    module = symtable.symtable(text, function.file.name, "exec")
    known = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    known |= {*dir(builtins), "__name__", "__file__", "__doc__"}
    table = module
    for name in function.name.split("."):
        (table, *_) = [child for child in table.get_children() if child.get_name() == name]
    waiting = [table]
    while waiting:
        table = waiting.pop()
        waiting.extend(table.get_children())
        yield from (s.get_name() for s in table.get_symbols() if s.is_global() and s.get_name() not in known)


def _attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _known_attributes(tree: ast.Module) -> set[str]:
    """Names after a dot that the file uses, and those that containers have and the modules of Python it imports. Not
    of the whole package: what one class no longer has another may have."""
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.split(".")[0] in sys.stdlib_module_names
    }
    modules = (importlib.import_module(name) for name in {*imported, "sys"})
    return _attributes(tree).union(*map(dir, (dict, list, set, *modules)))
