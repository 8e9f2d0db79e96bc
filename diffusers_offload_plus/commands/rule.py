"""``offload-plus rule``: explain a rule of the linter, list all rules, or write their pages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..lint.core.output import write_output
from ..lint.reporting.pages import explain, listing, write_pages
from ..lint.rules.registry import catalogue
from . import CommandError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``offload-plus rule``."""
    parser.description = (
        "Explains a rule: what it flags, why, an example, what to write instead, and what it does not flag on "
        "purpose. Without a rule, lists them all."
    )
    parser.add_argument("rule", nargs="?", metavar="RULE", help="code or name, such as MOD003 or guidance-scale-input")
    parser.add_argument(
        "--markdown", type=Path, metavar="DIR", help="write a page for each rule into DIR, as in the documentation"
    )


def run(arguments: argparse.Namespace) -> int:
    """Explain a rule, list all rules, or write the pages of all rules."""
    if arguments.markdown is not None:
        if arguments.rule is not None:
            raise CommandError("--markdown: writes the pages of all rules; expected no RULE with it.")
        written = write_pages(catalogue().rules, arguments.markdown)
        sys.stderr.write(f"{len(written)} pages in {arguments.markdown}\n")
        return 0
    if arguments.rule is None:
        write_output(listing(catalogue().rules))
    else:
        write_output(explain(catalogue().rule(arguments.rule, "rule")))
    return 0
