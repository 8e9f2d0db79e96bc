"""The documentation pages are what the rules say."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from diffusers_offload_plus.cli import main
from diffusers_offload_plus.commands import CommandError, rule
from diffusers_offload_plus.lint.reporting.pages import explain, pages
from diffusers_offload_plus.lint.rules.registry import catalogue
from diffusers_offload_plus.lint.settings.file import KEYS

DOCS = Path(__file__).parents[3] / "docs" / "lint"


def test_the_committed_pages_are_up_to_date() -> None:
    texts = pages(catalogue().rules)
    there = {path.name for path in (DOCS / "rules").glob("*.md")}
    assert there == set(texts), "run: offload-plus rule --markdown docs/lint/rules"
    for name, text in texts.items():
        committed = (DOCS / "rules" / name).read_text(encoding="utf-8")
        assert committed == text, f"{name}: run: offload-plus rule --markdown docs/lint/rules"


@pytest.mark.parametrize("code", [rule.code for rule in catalogue().rules])
def test_a_page_says_all_that_the_rule_says(code: str) -> None:
    about = catalogue().by_code[code]
    text = pages([about])[f"{code}.md"]
    shown = " ".join(explain(about).split())
    for part in (about.summary, about.page.why, about.page.instead, about.page.gotcha, *about.page.allowed):
        assert part in text
        assert " ".join(part.split()) in shown
    for example in (*about.page.invalid, *about.page.valid):
        assert example.source.rstrip("\n").split("\n")[0] in text
    assert text.count("# <- here") == sum(len(example.lines) for example in about.page.invalid)
    assert all(len(line) <= 100 for line in explain(about).split("\nFlagged")[0].splitlines())


def test_the_index_links_every_page() -> None:
    text = (DOCS / "rules" / "index.md").read_text(encoding="utf-8")
    for about in catalogue().rules:
        assert f"[{about.code}]({about.code}.md) | {about.name} |" in text


def test_pages_of_rules_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "MOD999.md").write_text("gone")
    (tmp_path / "notes.md").write_text("mine")
    assert main(["rule", "--markdown", str(tmp_path)]) == 0
    assert not (tmp_path / "MOD999.md").exists()
    assert (tmp_path / "notes.md").exists()


def test_pages_are_of_all_rules(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="expected no RULE with it"):
        rule.run(_arguments("MOD003", tmp_path))


def _arguments(word: str, directory: Path) -> object:
    return argparse.Namespace(rule=word, markdown=directory)


def test_the_guide_names_every_key_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (DOCS / "index.md").read_text(encoding="utf-8")
    configuration = guide[guide.index("```toml") :]
    for key in KEYS:
        assert re.search(rf"^{key} = ", configuration, re.MULTILINE), key
    with pytest.raises(SystemExit):
        main(["lint", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--color"}
    assert options <= set(re.findall(r"--[a-z-]+", guide))
