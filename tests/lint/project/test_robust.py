"""Whatever parses is linted without an exception, in the same order each time, whatever names and order of imports."""

import ast
import re

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from diffusers_offload_plus.lint.analysis.analyse import analyse, analyse_source
from diffusers_offload_plus.lint.rules.registry import all_rules

from .sources import paths, sources

# Sources are made of lines, and a failing one reads well as it is; shrinking it takes minutes.
SETTINGS = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


def parses(source):
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


@SETTINGS
@given(sources(), paths)
def test_linted_without_exception_and_in_order(source, path):
    first = analyse_source(source, path, all_rules())
    if parses(source):
        assert not first.problems
    assert first.findings == sorted(first.findings)
    assert first.findings == analyse_source(source, path, all_rules()[::-1]).findings
    lines = source.split("\n")
    for finding in first.findings:
        assert 1 <= finding.line <= finding.end_line <= len(lines)
        assert 1 <= finding.column <= len(lines[finding.line - 1]) + 1
        assert 1 <= finding.end_column <= len(lines[finding.end_line - 1]) + 1


@SETTINGS
@given(sources(), paths)
def test_names_of_locals_change_nothing(source, path):
    assume(parses(source))
    renamed = re.sub(r"\b(value|out)\b", lambda match: match[1] + "_renamed", source)
    assert codes(source, path) == codes(renamed, path)


def codes(source, path):
    return [
        (finding.code, finding.kind, finding.line) for finding in analyse_source(source, path, all_rules()).findings
    ]


@SETTINGS
@given(sources(), paths)
def test_order_of_imports_changes_nothing(source, path):
    assume(parses(source))
    pattern = re.compile(r"^import torch\n(.*?)^C = ", re.DOTALL | re.MULTILINE)
    block = pattern.search(source)
    moved = source[: block.start()] + block[1] + "import torch\nC = " + source[block.end() :]
    by_code = [code for code, _, _ in codes(source, path)]
    assert sorted(by_code) == sorted(code for code, _, _ in codes(moved, path))


NESTED = {
    "attributes": "x = a" + ".b" * 5000,
    "additions": "x = " + "1 + " * 3000 + "1",
    "lists": "x = " + "[" * 90 + "]" * 90,
    "calls": "x = " + "f(" * 90 + ")" * 90,
    "ifs": "\n".join("    " * depth + "if x:" for depth in range(90)) + "\n" + "    " * 90 + "pass",
    "elifs": "if x:\n    pass\n" + "elif x:\n    pass\n" * 2000,
    "parentheses": "x = " + "(" * 400 + ")" * 400,
    "strings": "x = 'a'\n" + "x = x + x\n" * 200 + "y = [1]\n" + "y = y + y\n" * 200,
    "products": "x = 9 ** 9 ** 9\ny = 'a' * 10 ** 9\nz = [0] * 10 ** 9\n",
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("inside", [False, True])
def test_deep_nesting(name, inside):
    text = NESTED[name]
    if inside:
        lines = ["    def __call__(self, components, state):", *("        " + line for line in text.split("\n"))]
        text = "\n".join(
            [
                "from ..modular_pipeline import ModularPipelineBlocks",
                "class Block(ModularPipelineBlocks):",
                *lines,
                "        return components, state",
            ]
        )
    analysis = analyse_source(text + "\n", "diffusers/modular_pipelines/toy/denoise.py", all_rules())
    assert len(analysis.problems) <= 1


PATTERNS = ["True", "None", "-1", "'a'", "a.b", "[1, *_]", "[x, *rest]", "{'a': 1, **rest}", "C(1, x=2) | None", "_"]


def test_patterns_of_match():
    cases = "".join(f"        case {pattern}:\n            import diffusers.pipelines\n" for pattern in PATTERNS)
    source = f"def helper(value):\n    match value:\n{cases}"
    found = codes(source, "diffusers/modular_pipelines/toy/denoise.py")
    assert [code for code, _, _ in found] == ["MOD001"] * len(PATTERNS)


def test_many_lines():
    step = """
class Step{0}(ModularPipelineBlocks):
    model_name = "toy"

    @property
    def inputs(self):
        return [InputParam("a{0}", description="A.")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.b = block_state.a{0}
        self.set_block_state(state, block_state)
        return components, state
"""
    header = "from ..modular_pipeline import ModularPipelineBlocks\nfrom ..modular_pipeline_utils import InputParam\n"
    source = header + "".join(step.format(number) for number in range(800))
    assert source.count("\n") > 10_000
    analysis = analyse_source(source, "diffusers/modular_pipelines/toy/denoise.py", all_rules())
    assert sum(finding.code == "MOD013" for finding in analysis.findings) == 800


def test_cycles(tmp_path):
    family = tmp_path / "diffusers" / "modular_pipelines" / "toy"
    family.mkdir(parents=True)
    (family / "__init__.py").write_text("")
    (family / "a.py").write_text(
        "from .b import *\nfrom .b import B, X\nfrom ..modular_pipeline import SequentialPipelineBlocks\n"
        "Y = X\nclass A(B):\n    block_classes = [A, B, C]\nclass C(C):\n    pass\n"
        "class S(SequentialPipelineBlocks):\n    block_classes = [S, S]\n    block_names = ['a', 'b']\n"
    )
    (family / "b.py").write_text("from .a import *\nfrom .a import A, Y\nX = Y\nclass B(A):\n    pass\n")
    analysis = analyse([tmp_path], all_rules())
    assert not analysis.problems
    assert len(analysis.files) == 3


def test_files_that_cannot_be_read(tmp_path):
    family = tmp_path / "diffusers" / "modular_pipelines" / "toy"
    family.mkdir(parents=True)
    contents = {
        "latin.py": b"x = '\xe9'\n",
        "declared.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
        "unknown.py": b"# -*- coding: nonsense -*-\n",
        "null.py": b"x = 1\x00\n",
        "syntax.py": b"x = (\n",
        "empty.py": b"",
        "mark.py": b"\xef\xbb\xbfx = 1\n",
        "returns.py": b"x = 1\rimport diffusers.pipelines\r",
        "form_feed.py": b"x = 1\n\x0c\nimport diffusers.pipelines\n",
    }
    for name, content in contents.items():
        (family / name).write_bytes(content)
    analysis = analyse([tmp_path, tmp_path / "missing"], all_rules())
    broken = {problem.path.rpartition("/")[2] for problem in analysis.problems}
    assert broken == {"latin.py", "unknown.py", "null.py", "syntax.py", "missing"}
    assert {(finding.path.rpartition("/")[2], finding.line) for finding in analysis.findings} == {
        ("returns.py", 2),
        ("form_feed.py", 3),
    }
    assert analysis.text(str(family / "mark.py")) == "x = 1\n"
