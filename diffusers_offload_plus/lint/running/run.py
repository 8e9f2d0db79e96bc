"""A run: analyse files, then leave out findings by settings, comments, a diff and a baseline."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..analysis.analyse import Analysis, analyse
from ..core.errors import LintError
from ..core.finding import Finding, Level
from ..project.unchecked import unchecked
from ..reading.location import enclosing_diffusers, odd_kind
from ..reading.notebook import Notebook
from ..rules.base.own_rules import UnreadableFile
from ..settings.layers import Settings
from ..settings.nearest import NearestSettings
from ..settings.suppression import suppress
from .report import Report

if TYPE_CHECKING:
    from ..introspection.merging import Introspection
    from ..settings.baseline import Baseline, Entry
    from .changes import Changes

__all__ = ["Outcome", "Request", "check_paths", "examine", "limits", "report", "roots", "run_lint"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """The files to lint, and how to lint them.

    Attributes:
        paths: files and directories to lint.
        diffusers: folder of the diffusers package to read the framework from; ``None`` to look for one.
        siblings: read the whole package of each file that is named, and report on the named files only.
        noqa: honour suppressing comments.
        diff: only report what the working tree adds since it parted from this reference.
        baseline: only report what this file does not list.
        sources: texts to use instead of the files on disk, by path; these files need not exist.
        allow_no_files: take it for right if there is no file to lint.
        introspect: import the code and use what the blocks declare at run time.
        processes: the most processes to use, see ``available_processes``.
    """

    paths: Sequence[Path]
    settings: Settings | NearestSettings
    diffusers: Path | None = None
    siblings: bool = False
    noqa: bool = True
    diff: str | None = None
    baseline: Path | None = None
    introspect: bool = False
    processes: int = 1
    sources: Mapping[Path, str] = dataclasses.field(default_factory=dict)
    allow_no_files: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The findings about the files, before a diff or a baseline leaves some out.

    Attributes:
        findings: the findings, sorted; ``suppressed``: the findings that comments suppress.
        excluded: whether settings leave out anything.
    """

    analysis: Analysis
    findings: list[Finding]
    suppressed: list[Finding]
    excluded: bool = False


def run_lint(request: Request) -> Report:
    """Lint the files of ``request``, and collect the findings to report.

    Raises:
        LintError: a path is missing, no file is found, or what the request names (a reference, a baseline) cannot be
            used.
    """
    check_paths(request)
    baseline, changes = limits(request)
    if changes is not None:
        # Only the packages of changed files are read: findings elsewhere would be left out anyway.
        changed = [path for path in changes.below(request.paths) if path.suffix == ".py"]
        request = dataclasses.replace(request, paths=changed, siblings=True)
    outcome = examine(request)
    if not (outcome.analysis.files or outcome.excluded or request.diff is not None or request.allow_no_files):
        named = ", ".join(str(path) for path in request.paths)
        raise LintError(
            f"{named}: no Python files there. Name files or directories that hold some, or say --allow-no-files."
        )
    return report(request, outcome, baseline, changes)


def limits(request: Request) -> tuple[Baseline | None, Changes | None]:
    """The baseline and the changes that ``request`` names.

    Raises:
        LintError: the baseline or the reference cannot be used.
    """
    # Imported here because most runs need neither, and importing them takes a while.
    baseline: Baseline | None = None
    changes: Changes | None = None
    if request.baseline is not None:
        from ..settings.baseline import Baseline

        baseline = Baseline.read(request.baseline)
    if request.diff is not None:
        from .changes import changed_lines

        changes = changed_lines(request.diff, request.paths)
    return baseline, changes


def report(
    request: Request, outcome: Outcome, baseline: Baseline | None = None, changes: Changes | None = None
) -> Report:
    """The report of ``outcome``: findings that the baseline does not list, on changed lines."""
    text = outcome.analysis.text
    findings = outcome.findings
    if changes is not None:
        findings = changes.keep(findings, text)
    known = 0
    resolved: list[Entry] = []
    if baseline is not None:
        new, resolved = baseline.split(outcome.findings, text, outcome.analysis.files, request.settings.codes)
        known = len(outcome.findings) - len(new)
        remaining = set(new)
        findings = [finding for finding in findings if finding in remaining]
    return Report(
        findings=findings,
        files=[path for path in outcome.analysis.files if _named(request, path)],
        rules=request.settings.rules,
        text=text,
        suppressed=len(outcome.suppressed),
        known=known,
        resolved=resolved,
        unchecked=_counted(request, outcome, "base"),
        in_part=_counted(request, outcome, "step"),
    )


def _counted(request: Request, outcome: Outcome, kind: str) -> int:
    """The number of classes that could not be checked, or only in part."""
    found = (one for one in unchecked(outcome.analysis.project) if one.kind == kind)
    return sum(len(one.about) for one in found if _named(request, one.source.path))


def check_paths(request: Request) -> None:
    """Raise an error if a named path does not exist, so that a misspelled path never looks like a clean run."""
    if not request.paths:
        raise LintError("paths: expected at least one file or directory, got none.")
    for path in request.paths:
        if path in request.sources:
            continue
        if not path.exists():
            raise LintError(f"{path}: no such file or directory.")
        if kind := odd_kind(path):
            raise LintError(f"{path}: expected a file or a directory, got {kind}. Use `-` to read standard input.")
    if request.diffusers is not None and not (request.diffusers / "modular_pipelines").is_dir():
        raise LintError(
            f"--diffusers {request.diffusers}: expected the folder of the diffusers package, with modular_pipelines "
            "in it, such as src/diffusers of a checkout."
        )


def examine(
    request: Request, sources: Mapping[Path, str] | None = None, runtime: Introspection | None = None
) -> Outcome:
    """Analyse the files once, and apply settings and comments to the findings.

    Args:
        sources: texts to use instead of the files on disk.
        runtime: declarations of the blocks at run time; by default collected if the request asks for it.
    """
    settings = request.settings
    excluded = False

    def skip(path: Path) -> bool:
        nonlocal excluded
        left_out = settings.excluded(path)
        excluded = excluded or left_out
        return left_out

    analysis = analyse(
        roots(request),
        lambda: settings.rules,
        skip=skip,
        sources={**request.sources, **(sources or {})},
        diffusers=request.diffusers,
        processes=request.processes,
    )
    findings = [*analysis.findings, *map(UnreadableFile.at, analysis.problems)]
    if runtime is None and request.introspect:
        from ..introspection.asking import introspect

        runtime = introspect(analysis)
    if runtime is not None:
        findings = runtime.merge(findings, settings.rules)
    return dataclasses.replace(_apply(request, analysis, findings), excluded=excluded)


def _apply(request: Request, analysis: Analysis, findings: Iterable[Finding]) -> Outcome:
    settings = request.settings
    by_path = {path: list(found) for path, found in itertools.groupby(sorted(findings), key=_path)}
    kept: list[Finding] = []
    suppressed: list[Finding] = []
    for path in sorted({*analysis.files, *by_path}):
        if not _named(request, path):
            continue
        ignored = settings.ignored_codes(path)
        found = _levelled(settings, (finding for finding in by_path.get(path, ()) if finding.code not in ignored))
        if request.noqa:
            rules = [rule for rule in settings.rules if rule.code not in ignored]
            found, hidden = suppress(found, path, analysis.text(path), rules, settings.catalogue.by_code)
            found = _levelled(settings, found)
            suppressed += hidden
        kept += found
    return Outcome(analysis=analysis, findings=sorted(in_cells(kept, analysis.notebooks)), suppressed=suppressed)


def in_cells(findings: Iterable[Finding], notebooks: Mapping[str, Notebook]) -> Iterator[Finding]:
    """The findings, with those in notebooks told by cell."""
    for finding in findings:
        notebook = notebooks.get(finding.path)
        cell = notebook.cell_at(finding.line) if notebook is not None else None
        yield finding if cell is None else dataclasses.replace(finding, cell=cell.number, above=cell.first - 1)


def _levelled(settings: Settings | NearestSettings, findings: Iterable[Finding]) -> list[Finding]:
    """The findings at the levels chosen for this run, without those that are off."""
    chosen = ((finding, settings.level(finding)) for finding in findings)
    return [
        finding if level is finding.level else dataclasses.replace(finding, level=level)
        for finding, level in chosen
        if level is not Level.OFF
    ]


def _path(finding: Finding) -> str:
    return finding.path


def roots(request: Request) -> list[Path]:
    """The files and directories that are read for ``request``."""
    if not request.siblings:
        return list(request.paths)
    return list(dict.fromkeys(_package(path) if path.is_file() else path for path in request.paths))


def _package(path: Path) -> Path:
    """The directory whose files are needed to understand the one at ``path``."""
    directory = path.parent
    if enclosing_diffusers(path) is not None:
        return directory  # the rest of diffusers is read when something of it is asked for
    while directory.name not in ("", "..") and all(
        (one / "__init__.py").is_file() for one in (directory, directory.parent)
    ):
        directory = directory.parent
    return directory


def _named(request: Request, path: str) -> bool:
    if not request.siblings:
        return True
    here = Path(path)
    return any(here == given or given in here.parents for given in request.paths)
