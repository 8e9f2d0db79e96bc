"""The linter's own findings, about files and comments instead of blocks, with codes, levels and pages as any other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core.finding import Finding, Level, Origin
from ...reading.source import Problem
from .rule import Example, Rule

if TYPE_CHECKING:
    from ...project.project import Project

__all__ = ["OWN_RULES", "UnreadableFile", "UnusedSuppression"]


class _OwnRule(Rule):
    """A rule whose findings are made elsewhere, where what they are about is known."""

    def check(self, project: Project) -> Iterator[Finding]:
        return iter(())


class UnreadableFile(_OwnRule):
    """A file cannot be opened, decoded or parsed, so that no rule has seen it."""

    code = "MOD000"
    name = "unreadable-file"
    level = Level.ERROR
    why = (
        "A run that skips a file looks clean although nothing was checked. The finding is reported whatever is "
        "selected, and no comment in the file can suppress it."
    )
    instead = "Mend the file, or leave it out with `exclude`."
    invalid = (Example(source="def f(:\n", lines=(1,), note="a syntax error"),)
    valid = (Example(source="", note="an empty file is fine"),)

    @classmethod
    def at(cls, problem: Problem, origin: Origin = Origin.STATIC) -> Finding:
        """The finding that tells of ``problem``."""
        line = problem.line
        return Finding(problem.path, line, 1, cls.code, problem.message, line, 1, cls.name, cls.level, origin=origin)


class UnusedSuppression(_OwnRule):
    """A `noqa` comment names a rule that reports nothing there, or a rule that does not exist."""

    code = "MOD100"
    name = "unused-noqa"
    level = Level.WARNING
    why = "A leftover suppression hides the next finding on that line, which nobody has looked at."
    instead = "Remove the code from the comment, or the comment."
    allowed = (
        "A bare `# noqa`: other linters may need it.",
        "Codes of other linters.",
        "Codes of rules that are not selected in this run.",
    )
    invalid = (Example(source="width = 8  # noqa: MOD003\n", lines=(1,), note="MOD003 has nothing to say here"),)
    valid = (
        Example(source="width = 8  # noqa\n", note="bare"),
        Example(source="width = 8  # noqa: E501\n", note="a code of another linter"),
        Example(source='text = "# noqa: MOD003"\n', note="a string is no comment"),
    )


OWN_RULES: tuple[Rule, ...] = (UnreadableFile(), UnusedSuppression())
