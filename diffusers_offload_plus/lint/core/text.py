"""Text for people: lines as Python counts them, counted nouns, characters that a terminal can show."""

from __future__ import annotations

import unicodedata

__all__ = ["counted", "display_width", "printable", "source_lines"]

_TAB = "    "


def source_lines(text: str) -> list[str]:
    """The lines of ``text`` as Python counts them. (``str.splitlines`` also breaks at form feeds and the like.)"""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def counted(number: int, noun: str) -> str:
    """``number`` and ``noun``, as in ``1 file``, ``2 files`` and ``2 classes``."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def printable(text: str) -> str:
    """``text`` with tabs as spaces and other control characters spelled out."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else _TAB if one == "\t" else one.encode("unicode_escape").decode() for one in text
    )


def display_width(text: str) -> int:
    """The number of columns that ``text`` takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )
