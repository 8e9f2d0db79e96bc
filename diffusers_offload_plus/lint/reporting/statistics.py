"""Statistics: the number of findings of each rule."""

from __future__ import annotations

import json
from collections import Counter

from ..core.text import counted
from ..running.report import Report

__all__ = ["STATISTICS_FORMATS", "render_statistics"]

STATISTICS_FORMATS = ("text", "json")


def render_statistics(report: Report, name: str) -> str:
    """The counts as a table (``name="text"``) or a list of objects (``"json"``), most frequent rules first."""
    counts = Counter((finding.code, finding.name, finding.level.value) for finding in report.findings)
    fixable = Counter((finding.code, finding.level.value) for finding in report.findings if finding.fixable)
    rows = [
        {"code": code, "name": rule, "level": level, "count": count, "fixable": fixable[code, level]}
        for (code, rule, level), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    if name == "json":
        return json.dumps(rows, indent=2) + "\n"
    if not rows:
        return "no findings\n"
    shown = [[str(row["count"]), str(row["code"]), str(row["level"]), str(row["name"])] for row in rows]
    total = str(sum(counts.values()))
    widths = [max(len(row[column]) for row in [*shown, [total, "", "", ""]]) for column in range(3)]
    lines = [
        f"{count:>{widths[0]}}  {code:<{widths[1]}}  {level:<{widths[2]}}  {rule}"
        + (f"  ({row['fixable']} fixable)" if row["fixable"] else "")
        for row, (count, code, level, rule) in zip(rows, shown, strict=True)
    ]
    return (
        "\n".join([*lines, f"{total:>{widths[0]}}  in {counted(len({f.path for f in report.findings}), 'file')}"])
        + "\n"
    )
