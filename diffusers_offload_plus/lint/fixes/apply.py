"""Fixing the findings of a run. Fixed files are linted again, and fixes that do not help are dropped."""

from __future__ import annotations

import dataclasses
import difflib
import io
import tokenize
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import LintError
from ..core.files import write_bytes
from ..core.finding import Finding
from ..core.text import counted
from ..running.run import Outcome, Request, check_paths, examine, limits, report

if TYPE_CHECKING:
    from .edits import Edits, Tree

__all__ = ["FileFix", "Fixed", "fix_files"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFix:
    """A file, with its text before and after the fixes."""

    path: str
    before: str
    after: str

    def diff(self) -> str:
        """The change as a unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            fromfile=self.path,
            tofile=self.path,
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def write(self) -> None:
        """Write the fixed text, in the encoding that the file has.

        Raises:
            LintError: the file has changed since it was linted, or cannot be written.
        """
        path = Path(self.path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LintError(f"{path}: cannot be read again to be fixed: {error.strerror or error}.") from error
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if data.decode(encoding, errors="replace") != self.before:
            raise LintError(
                f"{path}: has changed while it was being linted, so nothing has been written to it. Lint it again."
            )
        write_bytes(path, self.after.encode(encoding))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
    """The outcome of fixing: the changed files, the number of fixed findings, and a note about each that is left."""

    files: list[FileFix]
    fixed: int
    notes: list[str]

    def __str__(self) -> str:
        return f"{counted(self.fixed, 'finding')} in {counted(len(self.files), 'file')}"


def fix_files(request: Request) -> Fixed:
    """Fix the findings of ``request`` that can be fixed. Nothing is written.

    Raises:
        LintError: libcst is not installed, or the request cannot be carried out.
    """
    _require_libcst()  # before anything takes time
    check_paths(request)
    baseline, changes = limits(request)
    session = _Session(request)
    outcome = examine(request)
    wanted = [finding for finding in report(request, outcome, baseline, changes).findings if finding.fixable]
    while wanted and session.fix(wanted):
        # Later rounds fix what the first uncovered. Not with a baseline: its entries name lines that fixes change.
        if baseline is not None:
            break
        again = examine(request, session.texts)
        moved = changes.after(session.edited(outcome)) if changes is not None else None
        wanted = [finding for finding in report(request, again, None, moved).findings if finding.fixable]
    return session.result(outcome)


class _Session:
    def __init__(self, request: Request) -> None:
        # A fix must not break any rule, even one that is not selected.
        self._request = dataclasses.replace(
            request,
            settings=request.settings.unrestricted(),
            baseline=None,
            diff=None,
            introspect=False,
            noqa=False,
        )
        self.texts: dict[Path, str] = {}
        self._fixed = 0
        self._notes: list[str] = []

    def fix(self, findings: Sequence[Finding]) -> bool:
        """Fix those of ``findings`` that can be fixed. True if any was."""
        self._notes.clear()  # a later round may be able to fix what an earlier one left
        base = self._look(self.texts)
        accepted: list[Finding] = []
        best: dict[Path, str] = {}
        trees = _Trees(base)
        waiting = [[finding for finding in findings if self._possible(finding, trees)]]
        while waiting:
            group = waiting.pop()
            if not group:
                continue
            texts, reason = self._attempt(trees, [*accepted, *group])
            if not reason:
                accepted += group
                best = texts
            elif len(group) == 1:
                self._leave(group[0], reason)
            else:
                middle = len(group) // 2
                waiting += [group[middle:], group[:middle]]
        if accepted:
            self.texts |= best
            self._fixed += len(accepted)
        return bool(accepted)

    def _look(self, texts: dict[Path, str]) -> Outcome:
        return examine(self._request, texts)

    def _possible(self, finding: Finding, trees: _Trees) -> bool:
        from .edits import CannotFix
        from .fixers import FIXERS

        if finding.cell:
            self._leave(finding, "notebooks are not changed")
            return False
        if finding.code not in FIXERS:
            self._leave(finding, "it has no automatic fix")
            return False
        try:
            FIXERS[finding.code](trees.edits(finding.path), finding)
        except CannotFix as error:
            self._leave(finding, str(error))
            return False
        return True

    def _attempt(self, trees: _Trees, findings: Sequence[Finding]) -> tuple[dict[Path, str], str]:
        """The texts with ``findings`` fixed, and the reason why these are not acceptable; empty if they are."""
        from .edits import CannotFix
        from .fixers import FIXERS

        texts: dict[Path, str] = {}
        for path in dict.fromkeys(finding.path for finding in findings):
            edits = trees.edits(path)
            try:
                for finding in findings:
                    if finding.path == path:
                        FIXERS[finding.code](edits, finding)
                texts[Path(path)] = edits.code()
            except CannotFix as error:
                return {}, str(error)
        after = self._look({**self.texts, **texts})
        return texts, _objection(trees.outcome, after, findings)

    def _leave(self, finding: Finding, reason: str) -> None:
        self._notes.append(f"{finding.path}:{finding.line}: {finding.code} is left: {reason}.")

    def result(self, outcome: Outcome) -> Fixed:
        files = [
            FileFix(path=path.as_posix(), before=before, after=after)
            for path, before, after in self.edited(outcome)
            if before != after
        ]
        return Fixed(files=files, fixed=self._fixed, notes=sorted(self._notes))

    def edited(self, outcome: Outcome) -> list[tuple[Path, str, str]]:
        """The files with their texts at the time of ``outcome`` and now, sorted."""
        return [(path, outcome.analysis.text(path.as_posix()), after) for path, after in sorted(self.texts.items())]


def _objection(before: Outcome, after: Outcome, fixed: Sequence[Finding]) -> str:
    """The reason why the state ``after`` is not acceptable; empty if it is."""
    if len(after.analysis.problems) > len(before.analysis.problems):
        return "the fixed file could not be parsed"
    allowed = _counts(before.findings)
    left = _counts(after.findings)
    wanted = _counts(fixed)
    for key, count in left.items():
        if count > allowed[key]:
            return f"the fix would bring {key[1]} in {key[0]}"
    if any(count > allowed[key] - wanted[key] for key, count in left.items()):
        return "the fix did not make the finding go away"
    return ""


def _counts(findings: Sequence[Finding]) -> Counter[tuple[str, str, str]]:
    return Counter((finding.path, finding.code, finding.kind) for finding in findings)


class _Trees:
    """Syntax trees of the files that an outcome is about, each parsed once."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._sources = {source.path: source for source in outcome.analysis.project.sources}
        self._trees: dict[str, Tree] = {}

    def edits(self, path: str) -> Edits:
        from .edits import Edits, Tree

        source = self._sources[path]
        if path not in self._trees:
            self._trees[path] = Tree(source.text)
        return Edits(self.outcome.analysis.project, source, self._trees[path])


def _require_libcst() -> None:
    try:
        import libcst  # noqa: F401
    except ImportError as error:
        raise LintError(
            "--fix and --diff-only need libcst, which is not installed: pip install 'diffusers-offload-plus[fix]'."
        ) from error
