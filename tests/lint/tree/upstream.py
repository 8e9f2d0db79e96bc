"""The findings in the modular pipelines of the installed diffusers, with the verdict that reading the code gave.

``python -m tests.lint.tree.upstream`` writes the snapshot anew: findings that were there keep their verdict, others
are marked as unreviewed, which fails the test until somebody has read the code.
"""

import json
from collections import Counter
from pathlib import Path, PurePosixPath

from diffusers_offload_plus.lint.analysis.analyse import analyse
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.reading.location import installed_diffusers
from diffusers_offload_plus.lint.rules.registry import all_rules

SNAPSHOT = Path(__file__).with_name("snapshot.jsonl")
DOCUMENT = Path(__file__).parents[3] / "docs" / "lint" / "upstream.md"
MARKER = "<!-- The tables are written by python -m tests.lint.tree.upstream. -->\n\n"
UNREVIEWED = {"verdict": "unreviewed", "reason": ""}
KEY = ("code", "kind", "file", "line", "message")


def key(row):
    return tuple(row[name] for name in KEY)


def found(rules=None):
    """Findings of the whole tree, each as a row without a verdict."""
    root = installed_diffusers() / "modular_pipelines"
    analysis = analyse([root], rules or all_rules())
    assert not analysis.problems
    return [
        {
            "code": finding.code,
            "kind": finding.kind,
            "file": str(PurePosixPath(finding.path).relative_to(root.as_posix())),
            "line": finding.line,
            "message": finding.message,
            "fixable": finding.fixable,
        }
        for finding in analysis.findings
        if finding.level is not Level.OFF
    ]


def reviewed():
    """The rows of the snapshot."""
    return [json.loads(line) for line in SNAPSHOT.read_text().splitlines()] if SNAPSHOT.exists() else []


def families(rows):
    """Families by how much was found in them, with counts by code."""
    counts = Counter((row["file"].partition("/")[0], row["code"]) for row in rows)
    names = sorted({family for family, _ in counts}, key=lambda name: (-sum(of(counts, name).values()), name))
    return {name: of(counts, name) for name in names}


def of(counts, family):
    return {code: number for (name, code), number in sorted(counts.items()) if name == family}


def summary(rows):
    """Tables of what was found, by rule and by family, as Markdown."""
    by_code = {rule.code: rule for rule in all_rules()}
    lines = ["| rule | | violations | debatable | families |", "|---|---|---:|---:|---|"]
    for code in sorted({row["code"] for row in rows}):
        mine = [row for row in rows if row["code"] == code]
        verdicts = Counter(row["verdict"] for row in mine)
        places = Counter(row["file"].partition("/")[0] for row in mine)
        listed = ", ".join(f"{name} {number}" for name, number in sorted(places.items(), key=lambda i: (-i[1], i[0])))
        name = by_code[code].name
        lines.append(f"| {code} | {name} | {verdicts['violation'] or ''} | {verdicts['debatable'] or ''} | {listed} |")
    lines += ["", "| family | findings | of them |", "|---|---:|---|"]
    for family, codes in families(rows).items():
        listed = ", ".join(f"{code} {number}" for code, number in codes.items())
        lines.append(f"| {family} | {sum(codes.values())} | {listed} |")
    return "\n".join(lines) + "\n"


def main():
    verdicts = {key(row): {name: row[name] for name in ("verdict", "reason")} for row in reviewed()}
    rows = [row | verdicts.get(key(row), UNREVIEWED) for row in found()]
    SNAPSHOT.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, marker, _ = DOCUMENT.read_text().partition(MARKER)
    DOCUMENT.write_text(before + marker + summary(rows))


if __name__ == "__main__":
    main()
