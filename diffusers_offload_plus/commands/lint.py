"""``offload-plus lint``: check modular pipelines of diffusers against the conventions of their maintainers."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ..lint.analysis.garbage import without_garbage_collection
from ..lint.analysis.workers import available_processes
from ..lint.core.files import write_file
from ..lint.core.output import write_output
from ..lint.core.text import counted
from ..lint.reading.source import decode
from ..lint.reporting.formats import formatter
from ..lint.reporting.statistics import render_statistics
from ..lint.reporting.text_format import render_text
from ..lint.rules.registry import catalogue
from ..lint.running.report import Report
from ..lint.running.run import Request, check_paths, examine, run_lint
from ..lint.settings.baseline import Baseline
from ..lint.settings.file import parse_level, read_settings
from ..lint.settings.layers import Layer, Settings
from ..lint.settings.nearest import NearestSettings
from . import CommandError
from .arguments import DIRECTORY, FILE, FLAG, add_options, expecting, words

__all__ = ["add_arguments", "run"]

CLEAN, FOUND = 0, 1
_LEVELS = ("error", "warning", "info")


def _level(text: str) -> tuple[str, str]:
    key, _, level = text.rpartition("=")
    if not key or not level:
        raise ValueError
    return key.strip(), level.strip()


_LEVEL = {
    "type": expecting("RULE=LEVEL or RULE:KIND=LEVEL", _level),
    "action": "append",
    "default": [],
    "metavar": "RULE[:KIND]=LEVEL",
}
_COLOURS = {"choices": ("auto", "always", "never"), "default": "auto"}
_RULES = {"type": words, "action": "extend", "metavar": "RULES"}
_RULES_HELP = "codes, beginnings of codes, names or ALL, separated by commas. May be repeated"
_FORMATS = {"choices": ("text", "json", "github", "sarif"), "default": "text"}
_OPTIONS: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "rules": [
        ("--select", _RULES, f"run these rules and no others: {_RULES_HELP}"),
        ("--extend-select", _RULES, f"run these rules too: {_RULES_HELP}"),
        ("--ignore", _RULES, f"do not run these rules: {_RULES_HELP}"),
        ("--level", _LEVEL, "report the rule as error, warning, info or off. May be repeated"),
        ("--config", FILE, "read settings from this TOML file"),
        ("--isolated", FLAG, "read no settings file"),
        (
            "--stdin-filename",
            FILE,
            "the file that the path - stands for: standard input is linted as if it were this one",
        ),
        ("--allow-no-files", FLAG, "do not take it for an error if no Python file is found"),
        (
            "--diffusers",
            DIRECTORY,
            "folder of the diffusers package whose framework the blocks use (default: the one that holds the linted "
            "files, else the installed one; it is read and not imported)",
        ),
    ],
    "output": [
        ("--format", _FORMATS, "format of the findings (default: text)"),
        ("--output", FILE, "write the output to FILE instead of to the terminal"),
        ("--statistics", FLAG, "count findings by rule instead of listing them"),
        ("--color", _COLOURS, "colours (default: on a terminal, unless NO_COLOR is set)"),
        (
            "--fail-on",
            {"choices": _LEVELS, "default": "info", "metavar": "LEVEL"},
            "exit with 1 only if there is a finding of this level or worse: error, warning or info (default: info)",
        ),
    ],
    "which findings": [
        (
            "--exclude",
            {"type": words, "action": "extend", "metavar": "PATTERNS"},
            "leave out files and directories that match, in addition to those that the settings file excludes",
        ),
        (
            "--diff",
            {"metavar": "REF"},
            "report only on lines that the working tree adds since it parted from this commit, such as origin/main",
        ),
        ("--baseline", FILE, "leave out the findings that this file lists"),
        ("--no-noqa", FLAG, "report what comments suppress as well"),
        (
            "--siblings",
            FLAG,
            "read the whole package of each file named, so that its classes resolve, and report on the files named",
        ),
    ],
    "instead of only reporting": [
        ("--fix", FLAG, "fix what can be fixed safely (needs libcst)"),
        ("--diff-only", FLAG, "show what --fix would change, and change nothing (needs libcst)"),
        (
            "--write-baseline",
            FILE,
            "write a baseline: list the findings in FILE, so that --baseline FILE leaves them out",
        ),
        ("--introspect", FLAG, "IMPORT AND RUN the linted code: instantiate its blocks and use what they declare"),
        ("--checklist", DIRECTORY, "go through the conversion checklist for the model family in DIR"),
    ],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the linter."""
    parser.description = (
        "Reads modular pipelines and reports what breaks the conventions of diffusers. Nothing that is linted is "
        "imported or run, unless --introspect asks for it. Exit code: 0 if there is nothing to report, 1 if there is, "
        "2 if the linter could not run."
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="files and directories, or - for standard input (default: .)",
    )
    for title, options in _OPTIONS.items():
        add_options(parser.add_argument_group(title), options)


@without_garbage_collection()
def run(arguments: argparse.Namespace) -> int:
    """Run the linter, and report, write or fix the findings as the arguments say."""
    # Looking for garbage once more when the process ends would take a third of the time.
    atexit.register(gc.freeze)
    _check_combinations(arguments)
    if arguments.checklist is not None:
        from ..lint.checklist.items import render_checklist
        from ..lint.checklist.steps import checklist

        items = checklist(arguments.checklist, diffusers=arguments.diffusers)
        as_json = arguments.format == "json"
        _write(render_checklist(items, colour=_colour(arguments), as_json=as_json), arguments.output)
        return FOUND if any(item.missing for item in items) else CLEAN
    request = _request(arguments)
    if arguments.introspect:
        _say("--introspect: importing the linted files and instantiating their blocks.")
    if arguments.diff_only:
        return FOUND if _fix(request, arguments) else CLEAN
    if arguments.write_baseline is not None:
        return _write_baseline(request, arguments.write_baseline)
    if arguments.fix:
        _fix(request, arguments)
    report = run_lint(request)
    _write(_rendered(report, arguments), arguments.output)
    worst = _LEVELS[: _LEVELS.index(arguments.fail_on) + 1]
    return FOUND if any(finding.level.value in worst for finding in report.findings) else CLEAN


def _check_combinations(arguments: argparse.Namespace) -> None:
    if arguments.config is not None and arguments.isolated:
        raise CommandError(
            "--config and --isolated: expected one of them at most. The first names a settings file, the second reads "
            "none."
        )
    for name in ("statistics", "checklist"):
        if getattr(arguments, name) and arguments.format not in ("text", "json"):
            raise CommandError(f"--{name}: expected --format text or json with it, got {arguments.format}.")
    # --fix with --diff-only is what the latter does by itself.
    chosen = "diff_only" if arguments.diff_only else "fix"
    actions = [name for name in (chosen, "write_baseline", "checklist") if getattr(arguments, name)]
    if len(actions) > 1:
        shown = " and ".join(f"--{name.replace('_', '-')}" for name in actions)
        raise CommandError(f"{shown}: expected one of them at a time.")
    if Path("-") in arguments.paths:
        _check_standard_input(arguments)
    elif arguments.stdin_filename is not None:
        raise CommandError(
            f"--stdin-filename {arguments.stdin_filename}: expected the path - with it, which reads standard input."
        )
    if arguments.checklist is not None and arguments.paths:
        raise CommandError(
            f"--checklist {arguments.checklist}: looks at this directory only; expected no further paths, got "
            f"{' '.join(map(str, arguments.paths))}."
        )
    if arguments.write_baseline is not None and (arguments.diff is not None or arguments.baseline is not None):
        raise CommandError("--write-baseline: lists all findings, so it cannot be combined with --diff or --baseline.")


def _check_standard_input(arguments: argparse.Namespace) -> None:
    if len(arguments.paths) > 1:
        raise CommandError("-: standard input is linted by itself; expected no other paths.")
    for name in ("fix", "write_baseline", "diff", "siblings", "introspect"):
        if getattr(arguments, name):
            raise CommandError(f"--{name.replace('_', '-')}: cannot be combined with -, which is no file on disk.")


def _standard_input(arguments: argparse.Namespace) -> dict[Path, str]:
    """The text of standard input, by the file that it stands for."""
    name = arguments.stdin_filename or Path("stdin.py")
    if sys.stdin is None:
        raise CommandError("-: standard input is closed.")
    try:
        return {name: decode(sys.stdin.buffer.read())}
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise CommandError(f"-: standard input cannot be read as Python: {error}.") from error


def _settings(arguments: argparse.Namespace) -> Settings | NearestSettings:
    """The settings: of the file that is named, else for each file those of the nearest settings file."""
    last = Layer(
        where="command line",
        root=Path.cwd(),
        select=None if arguments.select is None else tuple(arguments.select),
        extend_select=tuple(arguments.extend_select or ()),
        ignore=tuple(arguments.ignore or ()),
        levels={key: parse_level(level, f"--level {key}") for key, level in arguments.level},
        exclude=tuple(arguments.exclude or ()),
    )
    named = read_settings(arguments.config) if arguments.config is not None else []
    # Made in any case, so that a wrong option is an error even if no file is found.
    fixed = Settings(catalogue(), [*named, last])
    return fixed if arguments.isolated or named else NearestSettings(catalogue(), last)


def _request(arguments: argparse.Namespace) -> Request:
    paths = arguments.paths or [Path()]
    sources: dict[Path, str] = {}
    if Path("-") in paths:
        sources = _standard_input(arguments)
        paths = list(sources)
    return Request(
        paths=paths,
        sources=sources,
        allow_no_files=arguments.allow_no_files,
        settings=_settings(arguments),
        diffusers=arguments.diffusers,
        siblings=arguments.siblings,
        noqa=not arguments.no_noqa,
        diff=arguments.diff,
        baseline=arguments.baseline,
        introspect=arguments.introspect,
        processes=available_processes(),
    )


def _write_baseline(request: Request, path: Path) -> int:
    check_paths(request)
    outcome = examine(request)
    Baseline.of(path, outcome.findings, outcome.analysis.text).write()
    listed = counted(len(outcome.findings), "finding")
    _say(f"{listed} listed in {path}; lint with --baseline {path} from now on.")
    return CLEAN


def _fix(request: Request, arguments: argparse.Namespace) -> bool:
    """Write what can be fixed, or with --diff-only show it; says whether there is anything."""
    from ..lint.fixes.apply import fix_files

    outcome = fix_files(request)
    if arguments.diff_only:
        _write("".join(file.diff() for file in outcome.files), arguments.output)
        _say(f"{outcome} would be fixed.")
    else:
        for file in outcome.files:
            file.write()
        if outcome.files:
            _say(f"Fixed {outcome}.")
    for note in outcome.notes:
        _say(note)
    return bool(outcome.files)


def _rendered(report: Report, arguments: argparse.Namespace) -> str:
    if arguments.statistics:
        return render_statistics(report, arguments.format)
    if arguments.format != "text":
        return formatter(arguments.format)(report)
    width = shutil.get_terminal_size().columns if _to_terminal(arguments) else None
    return render_text(report, colour=_colour(arguments), width=width)


def _to_terminal(arguments: argparse.Namespace) -> bool:
    return arguments.output is None and sys.stdout is not None and sys.stdout.isatty()


def _colour(arguments: argparse.Namespace) -> bool:
    if arguments.color != "auto":
        return bool(arguments.color == "always")
    return _to_terminal(arguments) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write(text: str, path: Path | None) -> None:
    if path is not None:
        write_file(path, text)
        return
    write_output(text)


def _say(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
