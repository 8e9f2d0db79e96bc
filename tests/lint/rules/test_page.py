"""Pages of rules: read from the TOML file beside the module of the rule."""

from __future__ import annotations

from pathlib import Path

from diffusers_offload_plus.lint.rules.base.page import read_page

PAGE = """
[MOD999]
why = "It matters."
instead = "Nothing."

[[MOD999.invalid]]
before = '''
import io


'''
name = "ToyDecodeStep"
file = "decoders.py"
inputs = 'InputParam("x")'
body = '''
x = 1
y = io.StringIO()
'''
at = [2]

[[MOD999.valid]]
path = "tests/test_a.py"
source = "pass\\n"
note = "a test"
"""


def test_a_body_and_a_whole_source(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(PAGE)
    page = read_page(tmp_path / "rules.py", "MOD999")
    (flagged,), (fine,) = page.invalid, page.valid
    (line,) = flagged.lines
    lines = flagged.source.split("\n")
    assert lines[0] == "import io"
    assert lines[line - 1] == "        y = io.StringIO()"
    assert "class ToyDecodeStep(ModularPipelineBlocks):" in lines
    assert '        return [InputParam("x")]' in lines
    assert flagged.path == "diffusers/modular_pipelines/toy/decoders.py"
    assert (fine.source, fine.path, fine.lines, fine.note) == ("pass\n", "tests/test_a.py", (), "a test")
    assert (page.why, page.allowed) == ("It matters.", ())
