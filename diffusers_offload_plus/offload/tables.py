"""Tables as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["table"]


def table(rows: Sequence[Sequence[str]], *, text_columns: int, remarks: bool = False) -> list[str]:
    """Lines of a table: the first of ``rows`` is its head, the first ``text_columns`` columns are set flush left, and
    with ``remarks`` the last one, too."""
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
