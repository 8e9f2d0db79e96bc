"""Pages about rules, made from the rules: for the terminal and, as Markdown, for the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.files import write_file
from ..core.finding import Level
from ..rules.base.page import Example
from ..rules.base.rule import Rule

__all__ = ["explain", "listing", "page", "pages", "write_pages"]

_WIDTH = 100


def _sections(rule: Rule) -> Iterator[tuple[str, str, Sequence[str]]]:
    """The texts of a page: heading in the terminal, heading in Markdown, paragraph or items of a list."""
    yield "Why", "Why", [rule.page.why]
    if rule.page.gotcha:
        yield "The gotcha behind it", "The gotcha behind it", [rule.page.gotcha]
    yield "Instead", "Instead", [rule.page.instead]
    if rule.page.allowed:
        yield "Not flagged", "What it leaves alone", rule.page.allowed


def listing(rules: Sequence[Rule]) -> str:
    """One line for each rule: code, level, name, and whether it can be fixed."""
    width = max(len(rule.name) for rule in rules)
    lines = [
        f"{rule.code:<7} {rule.level:<8} {rule.name:<{width}}  {'fixable' if rule.fixable else ''}".rstrip()
        for rule in rules
    ]
    return "\n".join([*lines, "", "offload-plus rule CODE explains one."]) + "\n"


def explain(rule: Rule) -> str:
    """The page of ``rule`` for the terminal, as ``offload-plus rule CODE`` prints it."""
    facts = [f"Level: {rule.level}", *(f"level of {kind}: {level}" for kind, level in rule.kinds.items())]
    facts.append("some findings can be fixed with --fix" if rule.fixable else "no automatic fix")
    facts += ["more exact with --introspect"] if rule.needs_runtime else []
    parts = [f"{rule.code} {rule.name}", _filled(rule.summary), _filled("; ".join(facts) + ".")]
    for heading, _, texts in _sections(rule):
        bullet = "    - " if texts is rule.page.allowed else "    "
        parts.append("\n".join([heading, *(_filled(text, bullet) for text in texts)]))
    for heading, examples in (("Flagged", rule.page.invalid), ("Fine", rule.page.valid)):
        parts += [f"{heading}\n{_numbered(example)}" for example in examples[:1]]
    return "\n\n".join(parts) + "\n"


def _filled(text: str, first: str = "") -> str:
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
    """The text of each page by file name, the index among them."""
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


_INDEX = """\
# Rules

Made by `offload-plus rule --markdown docs/lint/rules` from the rules themselves.

| code | name | level | fix | what is flagged |
|---|---|---|---|---|
"""


def _index(rules: Sequence[Rule]) -> str:
    return _INDEX + "".join(
        f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.level} | {'yes' if rule.fixable else ''} "
        f"| {_cell(rule.summary)} |\n"
        for rule in rules
    )


def page(rule: Rule) -> str:
    """The page of ``rule`` in Markdown."""
    parts = [f"# {rule.code}: {rule.name}", rule.summary, _markdown_facts(rule)]
    for _, heading, texts in _sections(rule):
        parts += [f"## {heading}", "\n".join(f"* {text}" if texts is rule.page.allowed else text for text in texts)]
    parts.append("## Examples")
    for title, examples in (("Flagged", rule.page.invalid), ("Fine", rule.page.valid)):
        parts += [_markdown_example(title, example) for example in examples]
    return "\n\n".join(parts) + "\n"


def _markdown_facts(rule: Rule) -> str:
    levels = ", ".join([f"{rule.level}", *(f"{level} for `{kind}`" for kind, level in rule.kinds.items())])
    facts = {
        "level": levels,
        "fix": "some findings, with `--fix`" if rule.fixable else "none",
        "decided": "from source; more exact with `--introspect`" if rule.needs_runtime else "from source",
    }
    if rule.level is Level.OFF:
        facts["default"] = "off: set a level to see it"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _markdown_example(title: str, example: Example) -> str:
    about = f"{title}, in `{example.path}`" + (f" ({example.note})" if example.note else "") + ":"
    # The fence has to be longer than any fence in the source.
    fence = "```" if "```" not in example.source else "````"
    lines = example.source.rstrip("\n").split("\n")
    shown = [f"{line}  # <- here" if number in example.lines else line for number, line in enumerate(lines, 1)]
    return "\n".join([about, "", f"{fence}python", *shown, fence])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
