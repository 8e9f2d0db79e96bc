"""Small files with the findings they must give, each at its pretended place in the package."""

import re
from pathlib import Path

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse_source
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.rules.registry import all_rules

CASES = sorted((Path(__file__).parents[1] / "cases").glob("*.py"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_case(case):
    text = case.read_text()
    expected = re.match(r"# expect: (.*)", text)[1]
    path = re.search(r"^# path: (.*)", text, re.MULTILINE)[1]
    analysis = analyse_source(text, path, all_rules())
    assert not analysis.problems
    found = {f"{finding.code}@{finding.line}" for finding in analysis.findings if finding.level is not Level.OFF}
    assert found == (set() if expected == "none" else set(expected.split(",")))
