"""Comments that suppress findings: ``# noqa: MOD003 why`` for a line, ``# offload-plus: noqa: MOD003`` for a file."""

from __future__ import annotations

import dataclasses
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator, Sequence

from ..core.finding import Finding
from ..rules.base.own_rules import UnreadableFile, UnusedSuppression
from ..rules.base.rule import Rule

__all__ = ["Comment", "comments", "suppress"]

# Codes of other linters are in capitals only, so that the first word of a reason is not taken for a code.
_CODE = r"(?:[A-Z]+|(?i:mod))[0-9]+[a-z]?\b"
_CODES = rf"{_CODE}(?:[\s,]+{_CODE})*"
_LINE = re.compile(rf"#\s*(?i:noqa)(?P<colon>\s*:\s*(?P<codes>{_CODES})?)?")
_FILE = re.compile(rf"#\s*offload-plus\s*:\s*(?i:noqa)(?P<colon>\s*:\s*(?P<codes>{_CODES})?)?")
_ONE = re.compile(_CODE)
_OURS = re.compile(r"MOD[0-9]+[a-z]?")
_OURS_ANYWHERE = re.compile(r"(?i:mod)[0-9]")


@dataclasses.dataclass(frozen=True, slots=True)
class Comment:
    """A comment that suppresses findings.

    Attributes:
        line: line of the comment, from 1; ``columns``: columns of the codes, from 1, in the order of ``codes``.
        codes: the codes that the comment names; none means every rule.
        whole_file: whether the comment is about the whole file, not about its line only.
    """

    line: int
    codes: tuple[str, ...]
    columns: tuple[int, ...]
    whole_file: bool

    def covers(self, finding: Finding) -> bool:
        """Whether the comment suppresses ``finding``, which may begin before and end after the comment's line."""
        if self.codes and finding.code not in self.codes:
            return False
        return self.whole_file or finding.line <= self.line <= finding.end_line


def comments(text: str) -> list[Comment]:
    """The suppressing comments in ``text``. Strings that look like comments do not count."""
    if "noqa" not in text.lower():  # splitting a file into tokens takes longer than parsing it
        return []
    return [found for line, column, comment in _comments(text) for found in _parsed(comment, line, column)]


def _comments(text: str) -> Iterator[tuple[int, int, str]]:
    try:
        for token in tokenize.generate_tokens(io.StringIO(text, newline=None).readline):
            if token.type == tokenize.COMMENT and "noqa" in token.string.lower():
                yield (*token.start, token.string)
    except (tokenize.TokenError, SyntaxError):  # what was seen until there counts
        return


def _parsed(comment: str, line: int, column: int) -> Iterator[Comment]:
    for match in _FILE.finditer(comment):
        yield _comment(match, line, column, whole_file=True)
    for match in _LINE.finditer(_FILE.sub(lambda found: " " * len(found.group()), comment)):
        yield _comment(match, line, column, whole_file=False)


def _comment(match: re.Match[str], line: int, column: int, *, whole_file: bool) -> Comment:
    codes = list(_ONE.finditer(match["codes"] or ""))
    start = column + 1 + (match.start("codes") if codes else match.start())
    return Comment(
        line,
        tuple(re.sub("^mod", "MOD", code.group(), flags=re.IGNORECASE) for code in codes),
        tuple(start + code.start() for code in codes),
        whole_file,
    )


def suppress(
    findings: Iterable[Finding], path: str, text: str, rules: Sequence[Rule], known: Collection[str]
) -> tuple[list[Finding], list[Finding]]:
    """Split the findings of the file at ``path`` into those that stay and those that its comments suppress.

    The ``rules`` are those that ran, ``known`` are the codes of all rules. If :class:`UnusedSuppression` is among the
    rules, its findings are among those that stay.
    """
    findings = list(findings)
    # Comments without a code of this linter cannot be unused, so they need not be looked for.
    found = comments(text) if findings or _OURS_ANYWHERE.search(text) else []
    if not found:
        return findings, []
    used: set[tuple[Comment, str]] = set()
    kept: list[Finding] = []
    suppressed: list[Finding] = []
    for finding in findings:
        covering = [] if finding.code == UnreadableFile.code else [one for one in found if one.covers(finding)]
        used.update((comment, finding.code) for comment in covering)
        (suppressed if covering else kept).append(finding)
    unused = next((rule for rule in rules if isinstance(rule, UnusedSuppression)), None)
    if unused is not None:
        ran = {rule.code for rule in rules}
        for finding in _unused(found, used, path, ran, unused, known):
            covering = [comment for comment in found if comment.codes and comment.covers(finding)]
            (suppressed if covering else kept).append(finding)
    return kept, suppressed


def _unused(
    found: Sequence[Comment],
    used: set[tuple[Comment, str]],
    path: str,
    ran: set[str],
    rule: Rule,
    known: Collection[str],
) -> Iterator[Finding]:
    for comment in found:
        for position, (code, column) in enumerate(zip(comment.codes, comment.columns, strict=True)):
            repeated = code in comment.codes[:position]
            if not _OURS.fullmatch(code) or code == rule.code:
                continue
            if code not in known:
                message = f"noqa names {code}, but there is no such rule"
            elif repeated:
                message = f"noqa names {code} twice"
            elif code in ran and (comment, code) not in used:
                where = "in this file" if comment.whole_file else "here"
                message = f"noqa names {code}, but that rule reports nothing {where}"
            else:
                continue
            yield Finding(
                path,
                comment.line,
                column,
                rule.code,
                message,
                comment.line,
                column + len(code),
                rule.name,
                rule.level,
            )
