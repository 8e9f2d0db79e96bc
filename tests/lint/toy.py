"""A linter with rules of its own, so that the tests of the shell do not depend on what the real rules say."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers_offload_plus.lint.core.finding import Finding, Level
from diffusers_offload_plus.lint.project.project import Project
from diffusers_offload_plus.lint.reading.source import Source
from diffusers_offload_plus.lint.rules.base.catalogue import Catalogue
from diffusers_offload_plus.lint.rules.base.own_rules import OWN_RULES
from diffusers_offload_plus.lint.rules.base.page import Page
from diffusers_offload_plus.lint.rules.base.rule import Rule
from diffusers_offload_plus.lint.running.report import Report
from diffusers_offload_plus.lint.running.run import Request, run_lint
from diffusers_offload_plus.lint.settings.layers import Layer, Settings


class ToyRule(Rule):
    """Flags what :meth:`picks` picks."""

    summary = "A toy."
    page = Page(why="To test the shell.", instead="Nothing.")

    def picks(self, node: ast.AST) -> str | None:
        """The kind of finding at ``node``, or nothing."""
        raise NotImplementedError

    def check(self, project: Project) -> Iterator[Finding]:
        for source in project.sources:
            for node in ast.walk(source.tree):
                kind = self.picks(node)
                if kind is None:
                    continue
                line, column = _place(source, node.lineno, node.col_offset)  # type: ignore[attr-defined]
                last, end = _place(source, node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
                if isinstance(node, ast.ClassDef):
                    last, end = line, len(source.lines[line - 1]) + 1
                yield Finding(
                    source.path,
                    line,
                    column,
                    self.code,
                    f"this is {self.name}, 100% sure: yes",
                    last,
                    end,
                    self.name,
                    self.kinds.get(kind, self.level),
                    kind,
                    self.fixable,
                )


def _place(source: Source, line: int, offset: int) -> tuple[int, int]:
    """``ast`` counts bytes from 0, findings characters from 1."""
    return line, len(source.lines[line - 1].encode()[:offset].decode()) + 1


class BadName(ToyRule):
    code = "MOD901"
    name = "bad-name"
    level = Level.ERROR
    kinds: Mapping[str, Level] = {"worse": Level.WARNING}
    fixable = True

    def picks(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name) and node.id in ("bad", "worse"):
            return node.id.replace("bad", "")
        return None


class BadClass(ToyRule):
    code = "MOD902"
    name = "bad-class"
    level = Level.WARNING

    def picks(self, node: ast.AST) -> str | None:
        return "" if isinstance(node, ast.ClassDef) and node.name.startswith("Bad") else None


class BadCall(ToyRule):
    code = "MOD911"
    name = "bad-call"
    level = Level.INFO

    def picks(self, node: ast.AST) -> str | None:
        return "" if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "wrong" else None


CATALOGUE = Catalogue([BadName(), BadClass(), BadCall(), *OWN_RULES])


def settings(*layers: Layer, **keys: Any) -> Settings:
    """Settings over the toy rules; ``keys`` are those of one layer."""
    own = [Layer(where="test", root=keys.pop("root", Path.cwd()), **keys)] if keys else []
    return Settings(CATALOGUE, [*layers, *own])


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def lint(*paths: Path, using: Settings | None = None, **request: Any) -> Report:
    return run_lint(Request(paths=paths, settings=using or settings(), **request))


def places(findings: Sequence[Finding]) -> list[str]:
    """``file:line code`` of each finding."""
    return [f"{Path(finding.path).name}:{finding.line} {finding.code}" for finding in findings]
