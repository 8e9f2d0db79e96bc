"""Patterns for paths in the configuration: ``build``, ``*_pb2.py``, ``src/old/**``."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

__all__ = ["matches"]


def matches(pattern: str, path: Path, root: Path) -> bool:
    """Whether ``path``, or a directory it lies in, is what ``pattern`` means.

    A pattern without a slash is a name anywhere below ``root``; with one it is a path from ``root``. ``*`` and ``?``
    stay within a name, ``**`` stands for any number of directories.
    """
    absolute = os.path.abspath(path)
    try:
        relative = os.path.relpath(absolute, root).replace(os.sep, "/")
    except ValueError:  # another drive
        return False
    if relative == ".." or relative.startswith("../"):
        return False
    cleaned = pattern.removeprefix("./").rstrip("/")
    if "/" not in cleaned:
        return any(_expression(cleaned).fullmatch(part) for part in relative.split("/"))
    return _expression(cleaned.lstrip("/") + "/**").fullmatch(relative + "/") is not None


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts = []
    position = 0
    while position < len(pattern):
        if pattern.startswith("**/", position):
            parts.append("(?:[^/]+/)*")
            position += 3
        elif pattern.startswith("**", position):
            parts.append(".*")
            position += 2
        elif pattern[position] == "*":
            parts.append("[^/]*")
            position += 1
        elif pattern[position] == "?":
            parts.append("[^/]")
            position += 1
        else:
            parts.append(re.escape(pattern[position]))
            position += 1
    return re.compile("".join(parts), re.DOTALL)
