"""Rule MOD050: a loop that can be nested only iterates; what is done in a round is a step."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ...core.finding import Finding, Level
from ...project.body import Body
from ...project.project import Project
from ...reading.nodes import Dotted
from ..base.report import report
from ..base.rule import Rule

__all__ = ["LoopWork"]

_READING = {"get", "get_by_kwargs"}


class LoopWork(Rule):
    """An `IterativePipelineBlocks` does work of its own between its steps."""

    code = "MOD050"
    name = "loop-work"
    level = Level.INFO

    def check(self, project: Project) -> Iterator[Finding]:
        for block in project.blocks:
            if block.kind != "iterative" or block.info.call is None:
                continue
            for body in project.flow(block.info).bodies:
                for node in body.of(ast.Call):
                    work = "" if body.in_pipeline else _work(body, node)
                    if work:
                        yield from report(self, body.source, node, f"{block.name} {work} in its loop: make it a step")


def _work(body: Body, node: ast.Call) -> str:
    """What a call does that is a step's to do; ``""`` if nothing."""
    if not isinstance(node.func, Dotted):
        return ""
    for place in sorted(body.places(node.func)):
        if place[0] == "components" and (len(place) == 2 or place[2:] in (("step",), ("encode",), ("decode",))):
            name = place[1]
            return "" if name in ("progress_bar", "set_progress_bar_config") else f"runs `{name}`"
        if place[0] == "state" and len(place) == 2 and place[1] in _READING:
            return "reads the pipeline state"
    return ""
