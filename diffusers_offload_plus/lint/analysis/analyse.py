"""Runs rules over files: finds and parses the files, builds the project, collects the findings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.finding import Finding
from ..project.project import Project
from ..reading.location import enclosing_diffusers, installed_diffusers, module_name, odd_kind, python_files, shown
from ..reading.notebook import Notebook, NotebookError, is_notebook, read_notebook
from ..reading.source import Problem, Source, decode, parse, syntax_problem
from ..rules.base.rule import Rule
from .garbage import without_garbage_collection
from .workers import spread

__all__ = ["Analysis", "analyse", "analyse_source"]

# With fewer files or rules, a second process takes longer to start than it saves.
_MANY_FILES = 50
_MANY_RULES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """The findings about some files, and the files as the rules saw them.

    Attributes:
        findings: the findings, sorted by place; the order in which files are given makes no difference.
        problems: files that could not be read, decoded or parsed.
        files: paths of all files that were looked at.
        project: the files as the rules saw them.
        notebooks: the notebooks among the files, by path; places in them are those in their text.
    """

    findings: list[Finding]
    problems: list[Problem]
    files: list[str]
    project: Project
    notebooks: Mapping[str, Notebook]
    _texts: Mapping[str, str]

    def text(self, path: str) -> str:
        """The text of a file that was looked at; empty if it could not be read."""
        return self._texts.get(path, "")


def _nothing(path: Path) -> bool:
    return False


def analyse(
    roots: Sequence[Path],
    rules: Sequence[Rule] | Callable[[], Sequence[Rule]],
    *,
    skip: Callable[[Path], bool] = _nothing,
    sources: Mapping[Path, str] | None = None,
    diffusers: Path | None = None,
    processes: int = 1,
) -> Analysis:
    """Apply ``rules`` to the Python files at and below ``roots``.

    Args:
        rules: the rules, or a function that is asked for them once ``skip`` has seen all files.
        skip: whether a file or directory is left out.
        sources: texts to use instead of the files on disk, by path; files that do not exist can be given too.
        diffusers: folder of the diffusers package to read the framework from. By default the package that the files
            lie in, else the installed one, which is found without importing it. Without any, rules find less.
        processes: the most processes to use; for few files or few rules one is enough.
    """
    overrides = {_absolute(path): text for path, text in (sources or {}).items()}
    problems: list[Problem] = []
    texts: dict[str, str] = {}
    found: list[Source] = []
    notebooks: dict[str, Notebook] = {}
    with without_garbage_collection():
        for path in _files(roots, skip, sources or {}, problems):
            text = _read(path, overrides, problems)
            if text is None:
                texts.setdefault(shown(path), "")
                continue
            if is_notebook(path.name):
                notebook = _notebook(shown(path), text, problems)
                text = notebook.text if notebook is not None else ""
                if notebook is not None:
                    notebooks[shown(path)] = notebook
            texts[shown(path)] = text
            tree = parse(text, shown(path))
            if isinstance(tree, Problem):
                problems.append(tree)
            else:
                found.append(Source(shown(path), module_name(path, overrides), text, tree, linted=True))
        if diffusers is None:
            around = (enclosing_diffusers(Path(source.path)) for source in found[:1])
            diffusers = next((path for path in around if path is not None), None) or installed_diffusers()
        project = Project(found, diffusers, overrides)
        rules = rules() if callable(rules) else rules
        worth_it = len(found) >= _MANY_FILES and len(rules) >= _MANY_RULES
        findings = _apply(rules, project, problems, processes if worth_it else 1)
    return Analysis(
        findings=findings,
        problems=sorted(set(problems)),
        files=sorted(texts),
        project=project,
        notebooks=notebooks,
        _texts=texts,
    )


def _notebook(path: str, text: str, problems: list[Problem]) -> Notebook | None:
    try:
        notebook = read_notebook(text)
    except NotebookError as error:
        problems.append(Problem(path, 1, str(error)))
        return None
    problems += (syntax_problem(path, error, line) for line, error in notebook.broken)
    return notebook


def analyse_source(source: str, path: str, rules: Sequence[Rule], *, diffusers: Path | None = None) -> Analysis:
    """Apply ``rules`` to one text as if it lay at ``path``, relative to a tree that holds ``diffusers``."""
    return analyse([Path(path)], rules, sources={Path(path): source}, diffusers=diffusers or installed_diffusers())


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _files(
    roots: Sequence[Path], skip: Callable[[Path], bool], sources: Mapping[Path, str], problems: list[Problem]
) -> Iterator[Path]:
    seen: set[Path] = set()
    for root in roots:
        given = [path for path in sources if path == root or root in path.parents]
        if not root.exists() and not given:
            problems.append(Problem(shown(root), 1, "no such file or directory"))
        try:
            paths = (
                [*python_files(root, skip), *(path for path in given if not skip(path))] if root.exists() else given
            )
        except OSError as error:
            problems.append(Problem(shown(root), 1, f"cannot be listed: {error.strerror or error}"))
            continue
        for path in paths:
            if _absolute(path) not in seen:
                seen.add(_absolute(path))
                yield path


def _read(path: Path, overrides: Mapping[Path, str], problems: list[Problem]) -> str | None:
    if _absolute(path) in overrides:
        return overrides[_absolute(path)]
    if kind := odd_kind(path):
        problems.append(Problem(shown(path), 1, f"is {kind}, not a file: skipped"))
        return None
    try:
        return decode(path.read_bytes())
    except OSError as error:
        problems.append(Problem(shown(path), 1, f"cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError as error:
        problems.append(Problem(shown(path), 1, f"is not text in {error.encoding}: byte {error.start} is not valid"))
    except SyntaxError as error:
        problems.append(Problem(shown(path), 1, f"cannot be decoded: {error.msg}"))
    return None


def _apply(rules: Sequence[Rule], project: Project, problems: list[Problem], processes: int) -> list[Finding]:
    def check(rule: Rule) -> tuple[set[Finding], list[Problem]]:
        try:
            return set(rule.check(project)), []
        except RecursionError:
            where = project.sources[0].path if project.sources else ""
            return set(), [Problem(where, 1, f"nested too deeply for {rule.code}")]

    if processes > 1:
        with suppress(RecursionError):  # the rule that meets it says so
            project.prepare()
    findings: set[Finding] = set()
    for found, unfinished in spread(rules, check, processes):
        findings |= found
        problems += unfinished
    return sorted(findings)
