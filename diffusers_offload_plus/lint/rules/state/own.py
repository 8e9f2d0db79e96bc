"""Rule MOD046: a block keeps nothing from one call to the next."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.body import SELF
from ...project.project import Project
from ..base.accesses import is_restored, is_restoring
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import own_calls

__all__ = ["SelfWrite"]


class SelfWrite(Rule):
    """A block writes to itself when it is called."""

    code = "MOD046"
    name = "self-write"
    level = Level.WARNING

    def check(self, project: Project) -> Iterator[Finding]:
        seen: set[ast.AST] = set()
        for block in own_calls(project):
            for access in project.flow(block.info).changes:
                if access.place[:1] != SELF or access.body.in_pipeline or access.body.function.name == "__init__":
                    continue
                node = access.source.statement(access.node)
                if node in seen or is_restoring(access) or is_restored(access):
                    continue
                seen.add(node)
                what = ".".join(access.place)
                yield from report(self, access.source, node, f"writes `{what}`: a block is shared between calls")
