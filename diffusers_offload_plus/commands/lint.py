"""``offload-plus lint``: check modular pipelines of diffusers against the conventions of their maintainers."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import CommandError

if TYPE_CHECKING:
    from ..lint.running.report import Report
    from ..lint.running.run import Request

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "check modular pipelines against the conventions of diffusers"

CLEAN, FOUND = 0, 1
_LEVELS = ("error", "warning", "info")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the linter."""
    parser.description = (
        "Reads modular pipelines and reports what breaks the conventions of diffusers. Nothing that is linted is "
        "imported or run, unless --introspect asks for it. Exit code: 0 if there is nothing to report, 1 if there is, "
        "2 if the linter could not run."
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="files and directories (default: .)")
    _add_selection(parser.add_argument_group("rules"))
    _add_output(parser.add_argument_group("output"))
    _add_scope(parser.add_argument_group("which findings"))
    _add_actions(parser.add_argument_group("instead of only reporting"))


def _add_selection(group: argparse._ArgumentGroup) -> None:
    for option, text in (
        ("--select", "run these rules and no others"),
        ("--extend-select", "run these rules too"),
        ("--ignore", "do not run these rules"),
    ):
        group.add_argument(
            option,
            type=_list,
            action="extend",
            metavar="RULES",
            help=f"{text}: codes, beginnings of codes, names or ALL, separated by commas. May be repeated",
        )
    group.add_argument(
        "--level",
        type=_level,
        action="append",
        default=[],
        metavar="RULE[:KIND]=LEVEL",
        help="report the rule as error, warning, info or off. May be repeated",
    )
    group.add_argument("--config", type=Path, metavar="FILE", help="read settings from this TOML file")
    group.add_argument("--isolated", action="store_true", help="read no settings file")
    group.add_argument(
        "--diffusers",
        type=Path,
        metavar="DIR",
        help="folder of the diffusers package whose framework the blocks use (default: the one that holds the linted "
        "files, else the installed one; it is read and not imported)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--format", choices=("text", "json", "github", "sarif"), default="text", help="of the findings (default: text)"
    )
    group.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to the terminal")
    group.add_argument("--statistics", action="store_true", help="count findings by rule instead of listing them")
    group.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours (default: on a terminal, unless NO_COLOR is set)",
    )
    group.add_argument(
        "--fail-on",
        choices=_LEVELS,
        default="info",
        metavar="LEVEL",
        help="exit with 1 only if there is a finding of this level or worse: error, warning or info (default: info)",
    )


def _add_scope(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--exclude",
        type=_list,
        action="extend",
        metavar="PATTERNS",
        help="leave out files and directories that match, besides those of the settings file",
    )
    group.add_argument(
        "--diff",
        metavar="REF",
        help="report only on lines that the working tree adds since it parted from this commit, such as origin/main",
    )
    group.add_argument("--baseline", type=Path, metavar="FILE", help="leave out the findings that this file lists")
    group.add_argument("--no-noqa", action="store_true", help="report what comments suppress as well")
    group.add_argument(
        "--siblings",
        action="store_true",
        help="read the whole package of each file named, so that its classes resolve, and report on the files named",
    )


def _add_actions(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--fix", action="store_true", help="fix what can be fixed safely (needs libcst)")
    group.add_argument(
        "--diff-only", action="store_true", help="show what --fix would change, and change nothing (needs libcst)"
    )
    group.add_argument(
        "--write-baseline", type=Path, metavar="FILE", help="list the findings in FILE, to be left out from now on"
    )
    group.add_argument(
        "--introspect",
        action="store_true",
        help="IMPORT AND RUN the linted code: instantiate its blocks and use what they declare",
    )
    group.add_argument(
        "--checklist",
        type=Path,
        metavar="DIR",
        help="go through the conversion checklist for the model family in DIR",
    )


def run(arguments: argparse.Namespace) -> int:
    """Lint, then report or fix the findings as the arguments say."""
    from ..lint.analysis.garbage import without_garbage_collection

    # A last garbage collection at exit would take a third of the run time.
    atexit.register(gc.freeze)
    with without_garbage_collection():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
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
        _say("--introspect: importing and instantiating the blocks of the linted files.")
    if arguments.diff_only:
        return _show_fixes(request, arguments)
    if arguments.write_baseline is not None:
        return _write_baseline(request, arguments.write_baseline)
    if arguments.fix:
        _fix(request)
    from ..lint.running.run import run_lint

    report = run_lint(request)
    _write(_rendered(report, arguments), arguments.output)
    worst = _LEVELS[: _LEVELS.index(arguments.fail_on) + 1]
    return FOUND if any(finding.level.value in worst for finding in report.findings) else CLEAN


def _check_combinations(arguments: argparse.Namespace) -> None:
    if arguments.config is not None and arguments.isolated:
        raise CommandError(
            "--config and --isolated: the one names a settings file and the other forbids it; drop one."
        )
    if arguments.statistics and arguments.format not in ("text", "json"):
        raise CommandError(f"--statistics: expected --format text or json with it, got {arguments.format}.")
    # --diff-only shows what --fix would change, so together they do what --diff-only does alone.
    chosen = "diff_only" if arguments.diff_only else "fix"
    actions = [name for name in (chosen, "write_baseline", "checklist") if getattr(arguments, name)]
    if len(actions) > 1:
        shown = " and ".join(f"--{name.replace('_', '-')}" for name in actions)
        raise CommandError(f"{shown}: expected one of them at a time.")
    if arguments.checklist is not None and arguments.format not in ("text", "json"):
        raise CommandError(f"--checklist: expected --format text or json with it, got {arguments.format}.")
    if arguments.checklist is not None and arguments.paths:
        raise CommandError(
            f"--checklist {arguments.checklist}: is about this one directory; expected no further paths, got "
            f"{' '.join(map(str, arguments.paths))}."
        )
    if arguments.write_baseline is not None and (arguments.diff is not None or arguments.baseline is not None):
        raise CommandError("--write-baseline: lists all findings, so it cannot be combined with --diff or --baseline.")


def _request(arguments: argparse.Namespace) -> Request:
    from ..lint.analysis.workers import available_processes
    from ..lint.rules.registry import catalogue
    from ..lint.running.run import Request
    from ..lint.settings.file import find_settings, parse_level, read_settings
    from ..lint.settings.layers import Layer, Settings

    paths = arguments.paths or [Path()]
    layers: list[Layer] = []
    if not arguments.isolated:
        file = arguments.config or find_settings(paths)
        layers += read_settings(file) if file is not None else []
    layers.append(
        Layer(
            where="command line",
            root=Path.cwd(),
            select=None if arguments.select is None else tuple(arguments.select),
            extend_select=tuple(arguments.extend_select or ()),
            ignore=tuple(arguments.ignore or ()),
            levels={key: parse_level(level, f"--level {key}") for key, level in arguments.level},
            exclude=tuple(arguments.exclude or ()),
        )
    )
    return Request(
        paths=paths,
        settings=Settings(catalogue(), layers),
        diffusers=arguments.diffusers,
        siblings=arguments.siblings,
        noqa=not arguments.no_noqa,
        diff=arguments.diff,
        baseline=arguments.baseline,
        introspect=arguments.introspect,
        processes=available_processes(),
    )


def _write_baseline(request: Request, path: Path) -> int:
    from ..lint.core.text import counted
    from ..lint.running.run import check_paths, examine
    from ..lint.settings.baseline import Baseline

    check_paths(request)
    outcome = examine(request)
    baseline = Baseline.of(path, outcome.findings, outcome.analysis.text)
    baseline.write()
    listed = counted(len(outcome.findings), "finding")
    _say(f"{listed} listed in {path}; lint with --baseline {path} from now on.")
    return CLEAN


def _fix(request: Request) -> None:
    from ..lint.fixes.apply import fix_files

    outcome = fix_files(request)
    for file in outcome.files:
        file.write()
    if outcome.files:
        _say(f"Fixed {outcome}.")
    for note in outcome.notes:
        _say(note)


def _show_fixes(request: Request, arguments: argparse.Namespace) -> int:
    from ..lint.fixes.apply import fix_files

    outcome = fix_files(request)
    _write("".join(file.diff() for file in outcome.files), arguments.output)
    _say(f"{outcome} would be fixed.")
    for note in outcome.notes:
        _say(note)
    return FOUND if outcome.files else CLEAN


def _rendered(report: Report, arguments: argparse.Namespace) -> str:
    if arguments.statistics:
        from ..lint.reporting.statistics import render_statistics

        return render_statistics(report, arguments.format)
    if arguments.format == "text":
        import shutil

        from ..lint.reporting.text_format import render_text

        to_terminal = arguments.output is None and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if to_terminal else None
        return render_text(report, colour=_colour(arguments), width=width)
    from ..lint.reporting.formats import formatter

    return formatter(arguments.format)(report)


def _colour(arguments: argparse.Namespace) -> bool:
    if arguments.color != "auto":
        return bool(arguments.color == "always")
    terminal = arguments.output is None and sys.stdout.isatty()
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _write(text: str, path: Path | None) -> None:
    if path is not None:
        from ..lint.core.files import write_file

        write_file(path, text)
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        # Characters that the terminal cannot show are escaped instead of raising.
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # `offload-plus lint | head` is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _list(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise argparse.ArgumentTypeError(f"expected words separated by commas, got {text!r}")
    return items


def _level(text: str) -> tuple[str, str]:
    key, equals, level = text.rpartition("=")
    if not equals or not key or not level:
        raise argparse.ArgumentTypeError(f"expected RULE=LEVEL or RULE:KIND=LEVEL, got {text!r}")
    return key.strip(), level.strip()
