"""What the linter itself imports: the standard library, and one way through its layers."""

import ast
import subprocess
import sys
from pathlib import Path

import diffusers_offload_plus

PACKAGE = Path(diffusers_offload_plus.__file__).parent / "lint"


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_the_project_model_knows_no_rules():
    for path in (PACKAGE / "project").glob("*.py"):
        above = [name for name in imported_by(path) if name.startswith("..")]
        assert not above, path


def test_rules_know_the_project_model_only():
    for path in (PACKAGE / "rules").glob("*.py"):
        above = {name.split(".")[2] for name in imported_by(path) if name.startswith("..")}
        assert above <= {"project", "finding", "rule"}, path


def test_only_the_standard_library_is_imported():
    code = (
        "import sys; before = set(sys.modules);"
        "import diffusers_offload_plus.lint.analysis;"
        "from diffusers_offload_plus.lint.rules import all_rules; all_rules();"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(output.split()) - sys.stdlib_module_names == {"diffusers_offload_plus"}
