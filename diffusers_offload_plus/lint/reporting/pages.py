"""Pages about rules, made from the rules: for the terminal and, as Markdown, for the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..core.files import write_file
from ..core.finding import Level
from ..rules.base.rule import Example, Rule

__all__ = ["explain", "listing", "page", "pages", "write_pages"]

_WIDTH = 100


def listing(rules: Sequence[Rule]) -> str:
    """One line a rule: code, level, name, and whether it can be fixed."""
    width = max(len(rule.name) for rule in rules)
    lines = [
        f"{rule.code:<7} {rule.level:<8} {rule.name:<{width}}  {'fixable' if rule.fixable else ''}".rstrip()
        for rule in rules
    ]
    return "\n".join([*lines, "", "offload-plus rule CODE explains one."]) + "\n"


def explain(rule: Rule) -> str:
    """What ``offload-plus rule CODE`` prints."""
    parts = [f"{rule.code} {rule.name}", _filled(rule.summary), _facts(rule), "Why\n" + _indented(rule.why)]
    if rule.gotcha:
        parts.append("The gotcha behind it\n" + _indented(rule.gotcha))
    parts.append("Instead\n" + _indented(rule.instead))
    if rule.allowed:
        parts.append("Not flagged\n" + "\n".join(_indented(text, bullet="- ") for text in rule.allowed))
    if rule.invalid:
        parts.append("Flagged\n" + _numbered(rule.invalid[0]))
    if rule.valid:
        parts.append("Fine\n" + _numbered(rule.valid[0]))
    return "\n\n".join(parts) + "\n"


def _facts(rule: Rule) -> str:
    facts = [f"Level: {rule.level}"]
    facts += [f"level of {kind}: {level}" for kind, level in rule.kinds.items()]
    facts.append("some findings can be fixed with --fix" if rule.fixable else "no automatic fix")
    if rule.needs_runtime:
        facts.append("more exact with --introspect")
    return _filled("; ".join(facts) + ".")


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _indented(text: str, bullet: str = "") -> str:
    first = "    " + bullet
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _numbered(example: Example) -> str:
    lines = [f"    {example.path}" + (f": {example.note}" if example.note else "")]
    for number, line in enumerate(example.source.rstrip("\n").split("\n"), 1):
        mark = ">" if number in example.lines else " "
        lines.append(f"    {mark} {line}".rstrip())
    return "\n".join(lines)


def pages(rules: Sequence[Rule]) -> dict[str, str]:
    """Text of each page by file name, the index among them."""
    return {"index.md": _index(rules), **{f"{rule.code}.md": page(rule) for rule in rules}}


def write_pages(rules: Sequence[Rule], directory: Path) -> list[Path]:
    """Write all pages into ``directory``; pages of rules that are gone are removed."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = pages(rules)
    for old in directory.glob("MOD*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        write_file(directory / name, text)
    return [directory / name for name in texts]


def _index(rules: Sequence[Rule]) -> str:
    rows = [
        f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.level} | {'yes' if rule.fixable else ''} "
        f"| {_cell(rule.summary)} |"
        for rule in rules
    ]
    return "\n".join(
        [
            "# Rules",
            "",
            "Made by `offload-plus rule --markdown docs/lint/rules` from the rules themselves.",
            "",
            "| code | name | level | fix | what is flagged |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def page(rule: Rule) -> str:
    """The Markdown page of ``rule``."""
    lines = [
        f"# {rule.code}: {rule.name}",
        "",
        rule.summary,
        "",
        *_markdown_facts(rule),
        "",
        "## Why",
        "",
        rule.why,
        "",
    ]
    if rule.gotcha:
        lines += ["## The gotcha behind it", "", rule.gotcha, ""]
    lines += ["## Instead", "", rule.instead, ""]
    if rule.allowed:
        lines += ["## What it leaves alone", "", *(f"* {text}" for text in rule.allowed), ""]
    lines += ["## Examples", ""]
    for title, examples in (("Flagged", rule.invalid), ("Fine", rule.valid)):
        for example in examples:
            lines += [*_markdown_example(title, example), ""]
    return "\n".join(lines)


def _markdown_facts(rule: Rule) -> list[str]:
    levels = ", ".join([f"{rule.level}", *(f"{level} for `{kind}`" for kind, level in rule.kinds.items())])
    return [
        "| | |",
        "|---|---|",
        f"| level | {levels} |",
        f"| fix | {'some findings, with `--fix`' if rule.fixable else 'none'} |",
        f"| decided | {'from source; more exact with `--introspect`' if rule.needs_runtime else 'from source'} |",
        *(["| default | off: set a level to see it |"] if rule.level is Level.OFF else []),
    ]


def _markdown_example(title: str, example: Example) -> list[str]:
    about = f"{title}, in `{example.path}`" + (f" ({example.note})" if example.note else "") + ":"
    # A fence longer than any in the source.
    fence = "```" if "```" not in example.source else "````"
    lines = example.source.rstrip("\n").split("\n")
    shown = [f"{line}  # <- here" if number in example.lines else line for number, line in enumerate(lines, 1)]
    return [about, "", f"{fence}python", *shown, fence]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
