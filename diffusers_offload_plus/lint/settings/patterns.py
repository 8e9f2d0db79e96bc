"""Patterns for paths in the settings: ``build``, ``*_pb2.py``, ``src/old/**``."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import LintError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

__all__ = ["matches"]


def matches(pattern: str, path: Path, root: Path) -> bool:
    """Whether ``path``, or a directory it lies in, is what ``pattern`` means.

    Patterns are those of ``.gitignore``, with ``*``, ``?`` and ``**`` as the only special characters: without a slash
    a name anywhere below ``root``, with one a path from ``root``.
    """
    try:
        relative = os.path.relpath(os.path.abspath(path), root).replace(os.sep, "/")
    except ValueError:  # another drive
        return False
    return relative != ".." and not relative.startswith("../") and _spec(pattern).match_file(relative)


@functools.cache
def _spec(pattern: str) -> GitIgnoreSpec:
    # Imported here because runs without patterns do not need it.
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as error:
        raise LintError(
            f"{pattern!r}: patterns need pathspec, which is not installed: pip install 'pathspec>=0.12'."
        ) from error
    # The path of a directory has no slash at its end, so the pattern must not have one either.
    return GitIgnoreSpec.from_lines([re.sub(r"([\\\[\]!#])", r"\\\1", pattern.removeprefix("./").rstrip("/"))])
