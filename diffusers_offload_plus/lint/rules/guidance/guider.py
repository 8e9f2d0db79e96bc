"""Rule MOD004: the guider is shared, so blocks do not change it."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.project import Project
from ..base.accesses import is_restored, is_restoring
from ..base.declared import guiders
from ..base.report import report
from ..base.rule import Rule

__all__ = ["GuiderMutation"]


class GuiderMutation(Rule):
    """A block changes an attribute of a guider."""

    code = "MOD004"
    name = "guider-mutation"
    level = Level.ERROR

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            known = guiders(project, block.source.group)
            for access in project.flow(block.info).changes:
                place = access.place
                if place[0] != "components" or len(place) < 3:
                    continue
                if place[1] not in known or is_restoring(access) or is_restored(access):
                    continue
                what = f"`{'.'.join(place)}`"
                node = access.source.statement(access.node)
                yield from report(self, access.source, node, f"writes {what}: the guider is shared")
