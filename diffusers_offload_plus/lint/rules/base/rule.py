"""The base class of rules. What users read about a rule is its docstring and its page."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from ...core.finding import Finding, Level
from ...project.project import Project
from .page import Page, read_page

__all__ = ["Rule"]


class Rule(abc.ABC):
    """A convention. Subclasses are stateless; :meth:`check` sees the whole project and yields what breaks the rule.

    The docstring of a subclass says in one sentence what it flags. Users read it as the rule's ``summary``.

    Attributes:
        code: ``"MOD003"``, which never changes; ``name``: words with hyphens, which never change either.
        level: the default level; ``kinds``: default levels of those kinds of findings that have another one.
        summary: one sentence that says what is flagged.
        needs_runtime: whether ``--introspect`` makes the rule more exact.
        fixable: whether some findings of the rule can be fixed safely.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    level: ClassVar[Level]
    kinds: ClassVar[Mapping[str, Level]] = {}
    summary: ClassVar[str] = ""
    needs_runtime: ClassVar[bool] = False
    fixable: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if cls.__doc__ and "summary" not in vars(cls):
            cls.summary = " ".join(cls.__doc__.split())

    @functools.cached_property
    def page(self) -> Page:
        """What users can read about the rule."""
        return read_page(Path(inspect.getfile(type(self))), self.code)

    @abc.abstractmethod
    def check(self, project: Project) -> Iterator[Finding]:
        """Yield a finding for each place of ``project``'s linted files that breaks the rule, in any order."""
