"""Rule MOD043: what a block reads from the pipeline's configuration, it declares."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.blocks import Block
from ...project.body import Access
from ...project.project import Project
from ..base.accesses import is_guarded, relatives_agree
from ..base.declared import component_names
from ..base.report import report
from ..base.rule import Rule
from ..base.scope import own_calls

__all__ = ["UndeclaredConfig"]

# Of every configuration, which is a dictionary.
_OF_DICTIONARIES = set(dir(dict)) | {"to_dict", "to_json_string"}


class UndeclaredConfig(Rule):
    """A block reads a value of `components.config` that it does not declare."""

    code = "MOD043"
    name = "undeclared-config"
    level = Level.ERROR
    needs_runtime = True

    def check(self, project: Project) -> Iterator[Finding]:
        places: dict[ast.AST, tuple[Access, list[Block]]] = {}
        for block in own_calls(project):
            for access in project.flow(block.info).accesses:
                about = access.place[:2] == ("components", "config") and len(access.place) == 3
                if about and access.kind == "read" and not access.body.in_pipeline:
                    places.setdefault(access.node, (access, []))[1].append(block)
        seen: set[tuple[Block, str]] = set()
        for access, blocks in places.values():
            # What a base class reads may be declared by each of its heirs.
            broken = relatives_agree(blocks, [one for one in blocks if self._is_missing(project, one, access)])
            if broken is not None and (broken, access.name) not in seen:
                seen.add((broken, access.name))
                message = f"{broken.name} reads `components.config.{access.name}` without a ConfigSpec for it"
                yield from report(self, access.source, access.node, message)

    def _is_missing(self, project: Project, block: Block, access: Access) -> bool:
        if access.name in _OF_DICTIONARIES or access.name.startswith("_") or is_guarded(access):
            return False
        if access.name in component_names(project, block.source.group):
            return False
        around = [block, *project.loops_of(block)]
        declared = [one.declared("expected_configs", anywhere=True) for one in around]
        return all(one.whole for one in declared) and not any(access.name in one.names for one in declared)
