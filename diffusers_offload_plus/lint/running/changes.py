"""The changed lines that ``--diff REF`` reports findings on, taken from ``git diff``."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..core.errors import LintError
from ..core.finding import Finding
from ..reading.scopes import Scopes

__all__ = ["Changes", "changed_lines"]

_HUNK = re.compile(rb"^@@ -\d+(?:,\d+)? \+(?P<start>\d+)(?:,(?P<count>\d+))? @@")
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


@dataclasses.dataclass
class _File:
    added: set[int] = dataclasses.field(default_factory=set)
    beside_removed: set[int] = dataclasses.field(default_factory=set)  # lines before and after removed ones
    new: bool = False


class Changes:
    """The lines of each file that a change adds. Keys are absolute paths with links resolved."""

    def __init__(self, files: dict[str, _File]) -> None:
        self._files = files

    def below(self, paths: Iterable[Path]) -> list[Path]:
        """The changed files at and below ``paths``, sorted, as paths that begin as given."""
        found: dict[str, Path] = {}
        for path in paths:
            real = os.path.realpath(path)
            for name in self._files:
                if name == real:
                    found.setdefault(name, path)
                elif name.startswith(os.path.join(real, "")) and os.path.isfile(name):
                    found.setdefault(name, path / os.path.relpath(name, real))
        return sorted(found.values())

    def after(self, edited: Iterable[tuple[Path, str, str]]) -> Changes:
        """The changes after files have been edited, given as paths with their texts before and after."""
        files = dict(self._files)
        for path, before, text in edited:
            name = os.path.realpath(path)
            if name in files:
                files[name] = _moved(files[name], before, text)
        return Changes(files)

    def keep(self, findings: Iterable[Finding], text: Callable[[str], str]) -> list[Finding]:
        """The findings on lines that the change adds.

        A finding at a ``class`` statement is about the whole class: it stays if anything in the class was added or
        removed.
        """
        scopes: dict[str, Scopes] = {}
        kept = []
        for finding in findings:
            file = self._files.get(os.path.realpath(finding.path))
            if file is None:
                continue
            if file.new or not file.added.isdisjoint(range(finding.line, finding.end_line + 1)):
                kept.append(finding)
                continue
            if finding.path not in scopes:
                scopes[finding.path] = Scopes(text(finding.path))
            scope = scopes[finding.path].class_at(finding.line)
            touched = file.added | file.beside_removed
            if scope is not None and not touched.isdisjoint(range(scope.first, scope.last + 1)):
                kept.append(finding)
        return kept


def _moved(file: _File, before: str, text: str) -> _File:
    """The changed lines of ``file`` after ``before`` has become ``text``; lines that are new count as added."""
    # Not splitlines(): findings count lines by "\n" alone.
    matcher = difflib.SequenceMatcher(None, before.split("\n"), text.split("\n"), autojunk=False)
    moved = _File(new=file.new)
    for kind, first, last, start, end in matcher.get_opcodes():
        if kind == "equal":
            kept, offset = range(first + 1, last + 1), start - first
            moved.added.update(line + offset for line in file.added.intersection(kept))
            moved.beside_removed.update(line + offset for line in file.beside_removed.intersection(kept))
        else:
            moved.added.update(range(start + 1, end + 1))
            moved.beside_removed.update((start, start + 1) if start == end else ())
    return moved


def changed_lines(reference: str, paths: Sequence[Path]) -> Changes:
    """The lines that the working tree has added since it parted from ``reference``; untracked files count as new.

    Raises:
        LintError: git is missing, a path lies outside of a repository, or the repository has no commit ``reference``.
    """
    files: dict[str, _File] = {}
    for root in dict.fromkeys(_repository(path) for path in paths):
        base = _merge_base(root, reference)
        # Commands that the repository configures (external diffs, text conversion, monitors) must not run.
        diff = _git(
            root,
            *("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--unified=0", "--find-renames"),
            *("--src-prefix=a/", "--dst-prefix=b/", "--no-relative", "--ignore-submodules", "--diff-filter=d"),
            *(base, "--"),
        )
        _read_diff(diff, root, files)
        untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z")
        for name in untracked.split(b"\0"):
            if name:
                files.setdefault(_absolute(root, name), _File()).new = True
    return Changes(files)


def _repository(path: Path) -> Path:
    directory = path if path.is_dir() else path.parent
    try:
        return Path(os.fsdecode(_git(directory, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    except _GitError as error:
        raise LintError(
            f"--diff: {path} does not lie in a git repository whose working tree can be read ({error}). Lint it "
            "without --diff."
        ) from error


def _merge_base(root: Path, reference: str) -> str:
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}")
    except _GitError as error:
        raise LintError(
            f"--diff {reference}: {root} has no commit of this name. Name a branch, a tag or a commit that exists "
            "there; a remote branch has to be fetched first."
        ) from error
    try:
        return _git(root, "merge-base", commit.decode().strip(), "HEAD").decode().strip()
    except _GitError as error:
        raise LintError(
            f"--diff {reference}: this commit and HEAD have no common ancestor in {root}. In a shallow clone fetch "
            "the history: `git fetch --unshallow`, or fetch-depth: 0 of actions/checkout."
        ) from error


class _GitError(Exception):
    pass


def _git(directory: Path, *arguments: str) -> bytes:
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-c", "core.hooksPath=/dev/null"]
    try:
        done = subprocess.run(
            [*command, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise LintError("--diff: git was not found, or the directory no longer exists. Install git.") from None
    except OSError as error:
        raise LintError(f"--diff: git cannot be run in {directory}: {error.strerror or error}.") from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().splitlines()
        raise _GitError(message[0] if message else f"git {arguments[0]} ended with {done.returncode}")
    return done.stdout


def _read_diff(diff: bytes, root: Path, files: dict[str, _File]) -> None:
    current: _File | None = None
    remaining = 0  # lines of the hunk's body: one that looks like a header is none
    for line in diff.split(b"\n"):
        if remaining:
            remaining -= not line.startswith(b"\\")
            continue
        if line.startswith(b"diff --git "):
            current = None
        elif line.startswith(b"+++ ") and line != b"+++ /dev/null":
            name = _unquoted(line[4:]).removeprefix(b"b/")
            current = files.setdefault(_absolute(root, name), _File())
        elif current is not None and (hunk := _HUNK.match(line)):
            start, count = int(hunk["start"]), int(hunk["count"] or 1)
            current.added.update(range(start, start + count))
            removed = re.match(rb"^@@ -\d+(?:,(\d+))?", line)
            taken = int(removed[1]) if removed and removed[1] else 1
            if taken:
                current.beside_removed.update((start, start + 1) if not count else (start,))
            remaining = taken + count


def _unquoted(name: bytes) -> bytes:
    """A path as git prints it: in quotes with escapes if it has odd characters, ended by a tab if it has spaces."""
    if not name.startswith(b'"'):
        return name.removesuffix(b"\t")
    inner = name.rstrip(b"\t")[1:-1]

    def plain(match: re.Match[bytes]) -> bytes:
        what = match[1]
        return bytes([int(what, 8)]) if len(what) == 3 else _ESCAPED.get(what, what)

    return _ESCAPE.sub(plain, inner)


def _absolute(root: Path, name: bytes) -> str:
    return os.path.realpath(os.path.join(root, os.fsdecode(name)))
