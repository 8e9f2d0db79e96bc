"""Findings for people: grouped by file, each with its source line and a caret below."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from ..core.finding import Finding, Level
from ..core.text import counted, display_width, printable, source_lines
from ..running.report import Report

__all__ = ["render", "render_text"]

_COLOURS = {Level.ERROR: "31", Level.WARNING: "33", Level.INFO: "36"}
_LEAST_WIDTH = 40
_TAB = "    "


def render(report: Report) -> str:
    """The findings as text, without colours, with lines as long as they come."""
    return render_text(report)


def render_text(report: Report, *, colour: bool = False, width: int | None = None) -> str:
    """The findings as text, with a summary at the end.

    Args:
        colour: use ANSI colours.
        width: columns of the terminal: messages are wrapped and source lines cut to fit. ``None`` leaves them alone.
    """
    writer = _Writer(colour, None if width is None else max(width, _LEAST_WIDTH))
    parts = []
    for path, findings in itertools.groupby(report.findings, key=lambda finding: finding.path):
        parts.append(writer.file(path, list(findings), source_lines(report.text(path))))
    parts.append(writer.summary(report))
    return "\n\n".join(parts) + "\n"


class _Writer:
    def __init__(self, colour: bool, width: int | None) -> None:
        self._colour = colour
        self._width = width

    def _paint(self, text: str, style: str) -> str:
        return f"\033[{style}m{text}\033[0m" if self._colour and text else text

    def file(self, path: str, findings: Sequence[Finding], lines: Sequence[str]) -> str:
        place = max(len(_place(finding)) for finding in findings)
        level = max(len(finding.level) for finding in findings)
        shown = [self._finding(finding, lines, place, level) for finding in findings]
        return "\n".join([self._paint(printable(path), "1;4"), *shown])

    def _finding(self, finding: Finding, lines: Sequence[str], place: int, level: int) -> str:
        where = _place(finding)
        head = (
            f"  {where:<{place}}  {self._paint(f'{finding.level:<{level}}', _COLOURS[finding.level])}  "
            f"{self._paint(finding.code, '1')}  "
        )
        indent = 2 + place + 2 + level + 2 + len(finding.code) + 2
        # The rule's name, which selects or suppresses it, follows the message.
        tail = f" ({finding.name}{', fixable' if finding.fixable else ''})"
        message = self._wrapped(printable(finding.message) + tail, indent)
        if message.endswith(tail):
            message = message.removesuffix(tail) + self._paint(tail, "2")
        return "\n".join([head + message, *self._excerpt(finding, lines)])

    def _wrapped(self, text: str, indent: int) -> str:
        if self._width is None:
            return text
        # In a narrow terminal a long place leaves too little room beside it.
        hanging = indent if self._width - indent >= 30 else 6
        wrapped = textwrap.wrap(
            text,
            width=self._width,
            initial_indent=" " * indent,
            subsequent_indent=" " * hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return "\n".join(wrapped)[indent:] if wrapped else ""

    def _excerpt(self, finding: Finding, lines: Sequence[str]) -> Iterator[str]:
        if finding.line > len(lines) or not lines[finding.line - 1].strip():
            return
        line = lines[finding.line - 1]
        start = min(finding.column - 1, len(line))
        end = min(finding.end_column - 1, len(line)) if finding.end_line == finding.line else len(line.rstrip())
        # Control characters in the source are written as escapes: they must not move the cursor or change colours.
        before, marked, after = printable(line[:start]), printable(line[start:end]), printable(line[end:])
        stripped = before.lstrip()
        number = str(finding.lines_shown[0])
        margin = " " * len(number)
        offset, carets = display_width(stripped), max(display_width(marked), 1)
        source = f"{stripped}{marked}{after}".rstrip()
        if self._width is not None:
            source, offset, carets = _cut(source, offset, carets, self._width - len(margin) - 7)
        bar = self._paint("|", "2")
        yield f"    {self._paint(number, '2')} {bar} {source}"
        yield f"    {margin} {bar} {' ' * offset}{self._paint('^' * carets, _COLOURS[finding.level])}"

    def summary(self, report: Report) -> str:
        findings = report.findings
        files = counted(len(report.files), "file")
        if findings:
            levels = Counter(finding.level for finding in findings)
            names = {Level.ERROR: "error", Level.WARNING: "warning", Level.INFO: "note"}
            each = ", ".join(counted(levels[level], name) for level, name in names.items() if levels[level])
            head, style = f"{counted(len(findings), 'finding')} ({each})", "1"
            text = f"{head} in {len({finding.path for finding in findings})} of {files}."
            if fixable := sum(finding.fixable for finding in findings):
                text += f" {fixable} can be fixed: see --diff-only, then --fix."
        else:
            head, style = f"No findings in {files}.", "32"
            text = head
        if report.unchecked:
            text += f" {counted(report.unchecked, 'class')} not checked: a base is not found (MOD101)."
        if report.in_part:
            text += f" {counted(report.in_part, 'class')} checked in part: a block is not found (MOD101:step)."
        if report.known:
            text += f" {counted(report.known, 'finding')} of the baseline left out."
        if self._width is not None:
            text = textwrap.fill(text, self._width)
        if text.startswith(head):
            text = self._paint(head, style) + text.removeprefix(head)
        parts = [text]
        if report.resolved:
            parts += ["", "Resolved entries of the baseline, which can be dropped by writing it anew:"]
            parts += [f"  {printable(f'{one.path}: {one.code} {one.source}')}" for one in report.resolved]
        return "\n".join(parts)


def _place(finding: Finding) -> str:
    """Where a finding is, in its file or in a cell of its notebook."""
    place = f"{finding.lines_shown[0]}:{finding.column}"
    return f"cell {finding.cell}, {place}" if finding.cell else place


def _cut(source: str, offset: int, carets: int, room: int) -> tuple[str, int, int]:
    """The part of a long line around the carets, with dots where something is cut off."""
    if display_width(source) <= room:
        return source, offset, min(carets, max(room - offset, 1))
    if offset + min(carets, 8) > room - 3:
        # Whole characters are cut off at the front, so that the carets stay below the same characters.
        dropped, position = 0, 0
        while position < len(source) and offset - dropped > room // 3:
            dropped += display_width(source[position])
            position += 1
        source, offset = f"...{source[position:]}", offset - dropped + 3
    kept, width = [], 0
    for one in source:
        if width + display_width(one) > room - 3:
            kept.append("...")
            break
        kept.append(one)
        width += display_width(one)
    return "".join(kept), offset, max(min(carets, room - 3 - offset), 1)
