"""Rule MOD101: blocks that could not be read are named, so that silence means that a block is fine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...core.finding import Finding, Level
from ...project.project import Project
from ...project.unchecked import Unchecked, unchecked
from ...resolution.classes import KNOWN_BLOCKS
from ..base.report import report
from ..base.rule import Rule

__all__ = ["UncheckedBlock"]


class UncheckedBlock(Rule):
    """A block is not checked, or only in part, because a class that it builds on is not found."""

    code = "MOD101"
    name = "unchecked-block"
    level = Level.WARNING
    kinds: ClassVar[Mapping[str, Level]] = {"step": Level.OFF, "newer": Level.INFO}

    def check(self, project: Project) -> Iterator[Finding]:
        for one in unchecked(project):
            kind = "" if one.kind == "base" else one.kind
            yield from report(self, one.source, one.node, _message(one), kind=kind)


def _message(one: Unchecked) -> str:
    names = ", ".join(f"`{name}`" for name in one.names[:5]) + (" and others" if len(one.names) > 5 else "")
    rest = f" and {len(one.about) - 3} more" if len(one.about) > 3 else ""
    about = ", ".join(one.about[:3]) + rest
    if one.kind == "base":
        return f"block base {names} not found: {about} not checked"
    if one.kind == "step":
        return f"block {names} not found: {about} checked without it"
    known = all(name in KNOWN_BLOCKS for name in one.names)
    rest = "its blocks are checked as those of another version" if known else "what uses it is not checked"
    return f"the diffusers that was read has no {names}: {rest}; name another with --diffusers"
