"""Sizes in bytes as people write them."""

from __future__ import annotations

import re
from typing import Any

from ..errors import InvalidPolicyError

__all__ = ["format_bytes", "parse_bytes"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power


def parse_bytes(argument: str, value: Any) -> int:
    """``value`` in bytes: a whole number, or text such as ``"16GiB"`` or ``"1.5 GB"``.

    Raises:
        InvalidPolicyError: it is neither, or negative; ``argument`` is named.
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
