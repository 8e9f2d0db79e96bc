"""The examples of every rule, which are its documentation as well."""

import pytest

from diffusers_offload_plus.lint.analysis.analyse import analyse_source
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.rules.registry import all_rules

EXAMPLES = [(rule, example) for rule in all_rules() for example in (*rule.page.invalid, *rule.page.valid)]


@pytest.mark.parametrize(("rule", "example"), EXAMPLES, ids=lambda value: getattr(value, "code", None))
def test_example(rule, example):
    analysis = analyse_source(example.source, example.path, [rule])
    assert not analysis.problems
    assert (
        tuple(sorted({finding.line for finding in analysis.findings if finding.level is not Level.OFF}))
        == example.lines
    )


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.code)
def test_rule_is_documented(rule):
    assert rule.summary.endswith(".")
    assert rule.page.why.endswith(".")
    assert rule.page.instead.endswith(".")
    assert all(text.endswith(".") for text in rule.page.allowed)
    assert rule.page.invalid
    assert rule.page.valid
    assert all(example.lines for example in rule.page.invalid)
    assert not any(example.lines for example in rule.page.valid)
