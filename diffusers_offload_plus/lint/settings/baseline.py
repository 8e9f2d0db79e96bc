"""Baselines: a file that lists known findings, so that only new ones are reported.

An entry names the code, the file, the class or function around the finding, and the source line with single spaces. So
an entry still matches after lines have moved. The same line several times in one scope is one entry with a count.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import LintError
from ..core.files import write_file
from ..core.finding import Finding
from ..core.text import source_lines
from ..reading.scopes import Scopes

__all__ = ["Baseline", "Entry"]

_VERSION = 1


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Entry:
    """A known finding. ``path`` is relative to the directory of the baseline file."""

    path: str
    scope: str
    code: str
    source: str


class Baseline:
    """The known findings of one file.

    Args:
        path: path of the baseline file; paths in its entries are relative to its directory.
    """

    def __init__(self, path: Path, entries: Counter[Entry]) -> None:
        self.path = path
        self.entries = entries

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read the baseline file at ``path``.

        Raises:
            LintError: the file does not exist, or is no baseline.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LintError(f"--baseline {path}: no such file. Make it once with `--write-baseline {path}`.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise LintError(f"--baseline {path}: cannot be read as JSON: {error}.") from error
        if not isinstance(data, dict) or data.get("version") != _VERSION or not isinstance(data.get("findings"), list):
            raise LintError(
                f"--baseline {path}: expected a baseline of version {_VERSION}, found something else. Make it anew "
                f"with `--write-baseline {path}`."
            )
        entries: Counter[Entry] = Counter()
        for number, item in enumerate(data["findings"]):
            entry, count = _entry(item, f"--baseline {path}: findings[{number}]")
            entries[entry] += count
        return cls(path, entries)

    @classmethod
    def of(cls, path: Path, findings: Iterable[Finding], text: Callable[[str], str]) -> Baseline:
        """A baseline of ``findings``; ``text`` gives the text of a file."""
        baseline = cls(path, Counter())
        baseline.entries = Counter(entry for _, entry in baseline._entries(findings, text))
        return baseline

    def write(self) -> None:
        """Write the baseline file, sorted, so that its diffs read well."""
        findings = [
            {**dataclasses.asdict(entry), "count": count} for entry, count in sorted(self.entries.items()) if count > 0
        ]
        lines = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in findings)
        body = f"[\n{lines}\n  ]" if findings else "[]"
        write_file(self.path, f'{{\n  "version": {_VERSION},\n  "findings": {body}\n}}\n')

    def split(
        self, findings: Sequence[Finding], text: Callable[[str], str], files: Iterable[str], codes: frozenset[str]
    ) -> tuple[list[Finding], list[Entry]]:
        """The findings that the baseline does not list, and the entries that no finding matches any more.

        Entries of files that were not looked at, and of rules that did not run, are not resolved; entries of files
        that no longer exist are.
        """
        left = self.entries.copy()
        new = []
        for finding, entry in self._entries(findings, text):
            if left[entry] > 0:
                left[entry] -= 1
            else:
                new.append(finding)
        seen = {self._relative(path) for path in files}
        resolved = [
            entry
            for entry, count in sorted(left.items())
            if entry.code in codes and (entry.path in seen or not (self.path.parent / entry.path).exists())
            for _ in range(count)
        ]
        return new, resolved

    def _entries(self, findings: Iterable[Finding], text: Callable[[str], str]) -> Iterable[tuple[Finding, Entry]]:
        scopes: dict[str, tuple[Scopes, list[str]]] = {}
        for finding in findings:
            if finding.path not in scopes:
                content = text(finding.path)
                scopes[finding.path] = (Scopes(content), source_lines(content))
            found, lines = scopes[finding.path]
            line = lines[finding.line - 1] if finding.line <= len(lines) else ""
            yield (
                finding,
                Entry(self._relative(finding.path), found.name(finding.line), finding.code, " ".join(line.split())),
            )

    def _relative(self, path: str) -> str:
        absolute = os.path.abspath(path)
        try:
            return os.path.relpath(absolute, os.path.abspath(self.path.parent)).replace(os.sep, "/")
        except ValueError:  # another drive
            return absolute.replace(os.sep, "/")


def _entry(item: Any, where: str) -> tuple[Entry, int]:
    names = [field.name for field in dataclasses.fields(Entry)]
    if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in names):
        raise LintError(f"{where}: expected an object with the strings {', '.join(names)}, got {item!r}.")
    count = item.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise LintError(f"{where}: count: expected a whole number of at least 1, got {count!r}.")
    return Entry(*(item[name] for name in names)), count
