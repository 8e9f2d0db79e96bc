"""The findings in the modular pipelines of the installed diffusers, with the verdict that reading the code gave.

``python -m tests.lint.tree.upstream`` writes the snapshot anew: findings that were there keep their verdict, others
are marked as unreviewed, which fails the test until somebody has read the code.
"""

import json
from pathlib import Path, PurePosixPath

from diffusers_offload_plus.lint.analysis import analyse
from diffusers_offload_plus.lint.project.location import installed_diffusers
from diffusers_offload_plus.lint.rules import all_rules

SNAPSHOT = Path(__file__).with_name("snapshot.jsonl")
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
    ]


def reviewed():
    """The rows of the snapshot."""
    return [json.loads(line) for line in SNAPSHOT.read_text().splitlines()] if SNAPSHOT.exists() else []


def main():
    verdicts = {key(row): {name: row[name] for name in ("verdict", "reason")} for row in reviewed()}
    rows = [row | verdicts.get(key(row), UNREVIEWED) for row in found()]
    SNAPSHOT.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
