"""Errors that stop the linter, and hints for misspelled words."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import OffloadPlusError

__all__ = ["LintError", "SettingsError", "nearest"]


class LintError(OffloadPlusError):
    """The linter cannot do what it was asked to do. The command ends with exit code 2."""


class SettingsError(LintError, ValueError):
    """A setting, in a file or on the command line, is wrong."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint at the end of a message about an unknown word: the most similar known word, or nothing."""
    import difflib  # most runs have nothing to complain about

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""
