"""The linter's own rules: about files and comments instead of blocks."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.finding import Finding, Level, Origin
from ...project.project import Project
from ...reading.source import Problem
from .rule import Rule

__all__ = ["OWN_RULES", "UnreadableFile", "UnusedSuppression"]


class _OwnRule(Rule):
    """A rule that checks nothing itself: other parts of the linter make its findings."""

    def check(self, project: Project) -> Iterator[Finding]:
        return iter(())


class UnreadableFile(_OwnRule):
    """A file cannot be opened, decoded or parsed, so that no rule has seen it."""

    code = "MOD000"
    name = "unreadable-file"
    level = Level.ERROR

    @classmethod
    def at(cls, problem: Problem, origin: Origin = Origin.STATIC) -> Finding:
        """The finding that reports ``problem``."""
        line, column = problem.line, problem.column
        return Finding(
            problem.path, line, column, cls.code, problem.message, line, column, cls.name, cls.level, origin=origin
        )


class UnusedSuppression(_OwnRule):
    """A `noqa` comment names a rule that reports nothing there, or a rule that does not exist."""

    code = "MOD100"
    name = "unused-noqa"
    level = Level.WARNING


OWN_RULES: tuple[Rule, ...] = (UnreadableFile(), UnusedSuppression())
