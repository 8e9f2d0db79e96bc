"""What a rule is: one class, with the examples that are its tests and its documentation."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from ...core.finding import Finding, Level

if TYPE_CHECKING:
    from ...project.project import Project

__all__ = ["Example", "Rule"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Source that a rule flags, or does not.

    Attributes:
        source: the file's text.
        path: where it pretends to be, relative to a source tree that holds ``diffusers``.
        lines: where the rule has to report; empty for a valid example.
        note: one line on what it shows.
    """

    source: str
    path: str = "diffusers/modular_pipelines/toy/denoise.py"
    lines: tuple[int, ...] = ()
    note: str = ""


class Rule(abc.ABC):
    """A convention. Subclasses are stateless; :meth:`check` sees the whole project and yields what breaks the rule.

    The docstring of a subclass says in one sentence what it flags. Users read it as the rule's ``summary``.

    Attributes:
        code: ``"MOD003"``, stable for ever; ``name``: words with hyphens, stable as well.
        level: the default; ``kinds``: default levels of the rule's kinds where they differ.
        summary: one sentence, what is flagged; ``why``: why a user of the blocks cares; ``instead``: what to write.
        allowed: what is deliberately not flagged, a sentence each.
        gotcha: the intent of the original gotcha that the rule comes from, in our own words; empty if there is none.
        needs_runtime: decided best with ``--introspect``.
        fixable: some findings of it can be fixed safely.
        invalid, valid: examples.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    level: ClassVar[Level]
    kinds: ClassVar[Mapping[str, Level]] = {}
    summary: ClassVar[str]
    why: ClassVar[str]
    instead: ClassVar[str]
    allowed: ClassVar[tuple[str, ...]] = ()
    gotcha: ClassVar[str] = ""
    needs_runtime: ClassVar[bool] = False
    fixable: ClassVar[bool] = False
    invalid: ClassVar[tuple[Example, ...]]
    valid: ClassVar[tuple[Example, ...]]

    def __init_subclass__(cls) -> None:
        if "summary" not in vars(cls):
            cls.summary = " ".join((cls.__doc__ or "").split())

    @abc.abstractmethod
    def check(self, project: Project) -> Iterator[Finding]:
        """Yield a finding for each place of ``project``'s linted files that breaks the rule, in any order."""
