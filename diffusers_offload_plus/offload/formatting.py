"""Sizes and tables in the form people write and read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidPolicyError

__all__ = ["first_line", "format_bytes", "parse_bytes", "round_up", "table"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power


def parse_bytes(argument: str, value: Any) -> int:
    """``value`` in bytes: a whole number, or text such as ``"16GiB"`` or ``"1.5 GB"``.

    Args:
        argument: name of the argument that ``value`` was given for.

    Raises:
        InvalidPolicyError: ``value`` is neither, or is negative. The message names ``argument``.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if match and match[2].upper() in _UNITS:
            return int(float(match[1]) * _UNITS[match[2].upper()])
    raise InvalidPolicyError(
        f"`{argument}` must be a number of bytes or a size such as '16GiB' or '500 MB', got {value!r}."
    )


def format_bytes(nbytes: int) -> str:
    """``nbytes`` in the largest unit that keeps it above one, such as ``"1.5 GiB"``."""
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{nbytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def first_line(error: Exception) -> str:
    """The first line of the error's message."""
    return next(iter(str(error).strip().splitlines()), "")


def round_up(nbytes: int) -> int:
    """``nbytes`` rounded up, by at most a tenth, to a size that :func:`format_bytes` prints exactly."""
    unit = 1
    while nbytes >= 1024 * unit and unit < 1024**4:
        unit *= 1024
    tenths = -(-10 * nbytes // unit)
    return tenths * unit // 10


def table(rows: Sequence[Sequence[str]], *, text_columns: int, remarks: bool = False) -> list[str]:
    """The lines of a text table.

    Args:
        rows: cells of each row; the first row is the head.
        text_columns: number of columns at the left that are flush left. Other columns are flush right.
        remarks: the last column is flush left too.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column < text_columns or (remarks and column == last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines
