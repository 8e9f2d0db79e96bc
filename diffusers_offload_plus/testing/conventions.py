"""``assert_block_conventions``: the linter as an assertion about blocks that are already imported."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..lint.analysis.analyse import analyse
from ..lint.core.errors import LintError
from ..lint.core.finding import Finding, Level
from ..lint.introspection.facts import BlockFacts, facts_of
from ..lint.introspection.merging import Introspection
from ..lint.reading.scopes import Scopes
from ..lint.reporting.text_format import render
from ..lint.rules.registry import catalogue
from ..lint.running.run import Request, examine, report, roots
from ..lint.settings.file import find_settings, parse_level, read_settings
from ..lint.settings.layers import Layer, Settings

__all__ = ["assert_block_conventions"]

_SEVERITY = (Level.ERROR, Level.WARNING, Level.INFO)


def assert_block_conventions(
    *blocks: type[Any],
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    fail_on: str = "warning",
) -> None:
    """Assert that blocks keep the conventions of modular pipelines.

    Lints the source of each class, of the classes of the same package that it inherits from or runs, and of the
    imports and functions in their files. What the blocks declare is taken from an instance of
    each, made without arguments where that is possible. Settings come from the nearest pyproject.toml, and comments in
    the source suppress findings, as on the command line.

    Args:
        blocks: classes of blocks.
        select: rules to check instead of those that the settings select: codes, beginnings of codes or names.
        ignore: rules not to check.
        fail_on: the lowest level that fails: ``"error"``, ``"warning"`` or ``"info"``.

    Raises:
        AssertionError: a block breaks a convention; the message shows where, as the command line does.
        LintError: an argument is wrong, or a class has no source file.
    """
    if not blocks:
        raise LintError("assert_block_conventions: expected at least one class of blocks, got none.")
    for block in blocks:
        if not inspect.isclass(block):
            raise LintError(f"assert_block_conventions: expected classes of blocks, got {block!r}; pass its class.")
    least = parse_level(fail_on, "fail_on")
    if least is Level.OFF:
        raise LintError("fail_on: expected error, warning or info, got 'off'; then there is nothing to assert.")
    facts: dict[type[Any], BlockFacts] = {}
    for block in blocks:
        _collect(block, block.__module__.partition(".")[0], facts)
    files = {kind: _file(kind) for kind in facts}
    if not facts:
        raise LintError(
            f"assert_block_conventions: expected blocks, that is subclasses of ModularPipelineBlocks outside of the "
            f"framework, got {', '.join(block.__name__ for block in blocks)}."
        )
    request = _request(sorted(set(files.values())), select, ignore)
    known = {(path, kind.__name__): found for kind, found in facts.items() for path in [files[kind].as_posix()]}
    analysis = analyse(roots(request), (), skip=request.settings.excluded)
    outcome = examine(request, runtime=Introspection(analysis.project, known))
    found = report(request, outcome)
    names = {path: {name for other, name in known if other == path} for path, _ in known}
    scopes = {path: Scopes(analysis.text(path)) for path in names}
    concerned = [
        finding
        for finding in found.findings
        if finding.path in names
        and _SEVERITY.index(finding.level) <= _SEVERITY.index(least)
        and _concerns(finding, names[finding.path], scopes[finding.path])
    ]
    if concerned:
        shown = ", ".join(block.__name__ for block in blocks)
        text = render(dataclasses.replace(found, findings=concerned, files=sorted(names)))
        raise AssertionError(f"{shown}: conventions of modular pipelines are not kept.\n\n{text}")


def _collect(kind: type[Any], package: str, found: dict[type[Any], BlockFacts]) -> None:
    """Add to ``found`` the facts about ``kind`` and about the classes of ``package`` that it inherits from or runs."""
    for base in inspect.getmro(kind):
        if base not in found and base.__module__.partition(".")[0] == package and _is_own(base):
            instance = _instance(base)
            found[base] = (
                facts_of(instance) if instance is not None else BlockFacts(module=base.__module__, name=base.__name__)
            )
            for below in _below(instance):
                _collect(type(below), package, found)


def _is_own(kind: type[Any]) -> bool:
    """Whether ``kind`` is a block outside of the framework, whose own classes need not keep the conventions."""
    is_block = any(base.__name__ == "ModularPipelineBlocks" for base in inspect.getmro(kind))
    return is_block and not kind.__module__.startswith("diffusers.modular_pipelines.modular_pipeline")


def _instance(kind: type[Any]) -> Any:
    try:
        return kind()
    except Exception:  # it needs arguments, or is abstract: what its source says has to do
        return None


def _below(instance: Any) -> Iterator[Any]:
    blocks = getattr(instance, "sub_blocks", None)
    for block in dict(blocks or {}).values():
        if not inspect.isclass(block):
            yield block


def _file(kind: type[Any]) -> Path:
    try:
        name = inspect.getsourcefile(kind)
    except (OSError, TypeError):
        name = None
    if name is None or not os.path.isfile(name):
        raise LintError(
            f"assert_block_conventions: {kind.__name__} has no source file to read; define it in a module on disk."
        )
    path = Path(name)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _request(files: Sequence[Path], select: Sequence[str] | None, ignore: Sequence[str]) -> Request:
    settings_file = find_settings(files)
    layers = read_settings(settings_file) if settings_file is not None else []
    own = Layer(
        where="assert_block_conventions",
        root=Path.cwd(),
        select=None if select is None else tuple(select),
        ignore=tuple(ignore),
    )
    return Request(paths=files, settings=Settings(catalogue(), [*layers, own]), siblings=True)


def _concerns(finding: Finding, names: set[str], scopes: Scopes) -> bool:
    """Whether a finding lies in one of the classes ``names``, or outside of all classes."""
    around = scopes.name(finding.line).partition(".")[0]
    classes = {scope.name for scope in scopes.all if scope.is_class}
    return around in names or around not in classes
