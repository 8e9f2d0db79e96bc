"""Selection, levels, ignores per file, excluded paths: from the file and from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffusers_offload_plus.lint.core.errors import LintError, SettingsError
from diffusers_offload_plus.lint.core.finding import Level
from diffusers_offload_plus.lint.settings.file import find_settings, read_settings
from diffusers_offload_plus.lint.settings.layers import Layer, Settings
from diffusers_offload_plus.lint.settings.patterns import matches

from ..toy import CATALOGUE, lint, places, settings, write

HERE = Path("/project")


def layer(**keys: object) -> Layer:
    return Layer(where="test", root=HERE, **keys)  # type: ignore[arg-type]


def from_file(path: Path, text: str) -> Settings:
    path.write_text("[tool.diffusers-offload-plus.lint]\n" + text)
    return Settings(CATALOGUE, read_settings(path))


@pytest.mark.parametrize(
    ("layers", "codes"),
    [
        ([], "901 902 911 000 100"),
        ([layer(select=("MOD901",))], "901"),
        ([layer(select=("MOD90",))], "901 902"),
        ([layer(select=("mod90",))], "901 902"),
        ([layer(select=("bad-call",))], "911"),
        ([layer(ignore=("MOD9",))], "000 100"),
        # The more specific selector wins, wherever it stands; of equals the one that ignores.
        ([layer(select=("MOD901",), ignore=("MOD9",))], "901"),
        ([layer(select=("MOD9",), ignore=("MOD901",))], "902 911"),
        ([layer(select=("MOD901", "MOD902"), ignore=("bad-name",))], "902"),
        ([layer(select=("ALL",), ignore=("MOD",))], ""),
        # A later layer wins over an earlier one.
        ([layer(ignore=("MOD901",)), layer(extend_select=("MOD90",))], "901 902 911 000 100"),
        ([layer(select=("MOD901",)), layer(ignore=("MOD9",))], ""),
        ([layer(select=("MOD901",)), layer(extend_select=("MOD911",))], "901 911"),
        ([layer(ignore=("MOD901",)), layer(select=("MOD90",))], "901 902"),
    ],
)
def test_what_is_selected(layers: list[Layer], codes: str) -> None:
    assert settings(*layers).codes == {f"MOD{code}" for code in codes.split()}


def test_levels_by_code_prefix_name_and_kind(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "bad\nworse\nwrong()\n"})

    def levels(**chosen: Level) -> list[str]:
        return [f"{found.code} {found.level}" for found in lint(tmp_path, using=settings(levels=chosen)).findings]

    assert levels() == ["MOD901 error", "MOD901 warning", "MOD911 info"]
    assert levels(MOD9=Level.WARNING) == ["MOD901 warning", "MOD901 warning", "MOD911 warning"]
    assert levels(**{"MOD9": Level.OFF, "bad-name": Level.INFO}) == ["MOD901 info", "MOD901 info"]
    assert levels(**{"bad-name": Level.INFO, "MOD9": Level.OFF}) == ["MOD901 info", "MOD901 info"]
    assert levels(**{"MOD901:worse": Level.OFF}) == ["MOD901 error", "MOD911 info"]
    assert levels(**{"MOD901:worse": Level.ERROR, "MOD901": Level.OFF}) == ["MOD901 error", "MOD911 info"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("selct = []", "has no key 'selct'. Did you mean select"),
        ("per_file_ignores = {}", "Did you mean per-file-ignores?"),
        ("select = ['MOD999']", "select: 'MOD999' is no rule"),
        ("select = ['MOD912']", "Did you mean MOD9"),
        ("ignore = ['bad-nam']", "Did you mean bad-name"),
        ("select = 'MOD901'", "select: expected a list of strings, got 'MOD901'"),
        ("select = [1]", "select: expected a list of strings, got [1]"),
        (
            "levels = {MOD901 = 'warn'}",
            "expected a level (error, warning, info, off), got 'warn'. Did you mean warning?",
        ),
        ("levels = {'MOD901:wors' = 'off'}", "MOD901 has no kind 'wors'; its kinds are: worse. Did you mean worse?"),
        ("levels = ['MOD901']", "levels: expected a table"),
        ("per-file-ignores = {'a.py' = ['MOD777']}", "per-file-ignores: 'a.py': 'MOD777' is no rule"),
        ("exclude = 'build'", "exclude: expected a list of strings"),
        ("extend = 3", "extend: expected the path of a TOML file, got 3"),
        ("extend = 'gone.toml'", "gone.toml: cannot be read: No such file"),
        ("extend = 'pyproject.toml'", "extend each other in a circle"),
        ("select = [", "is not valid TOML"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        from_file(tmp_path / "pyproject.toml", text)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_extend_takes_another_file_as_the_base(tmp_path: Path) -> None:
    write(tmp_path, {"base/lint.toml": "select = ['MOD90']\nexclude = ['old/**']\nlevels = {MOD901 = 'info'}\n"})
    write(tmp_path, {"base/old/a.py": "", "old/a.py": ""})
    found = from_file(tmp_path / "pyproject.toml", "extend = 'base/lint.toml'\nignore = ['MOD902']\n")
    assert found.codes == {"MOD901"}
    assert found.levels == {"MOD901": Level.INFO}
    # Patterns belong to the file they are written in.
    assert found.excluded(tmp_path / "base/old/a.py")
    assert not found.excluded(tmp_path / "old/a.py")


def test_the_nearest_file_with_our_table_counts(tmp_path: Path) -> None:
    ours = "[tool.diffusers-offload-plus.lint]\n"
    write(
        tmp_path,
        {"pyproject.toml": ours, "a/pyproject.toml": ours, "a/b/pyproject.toml": "[project]\n", "a/b/c.py": ""},
    )
    assert find_settings([tmp_path / "a/b/c.py"]) == tmp_path / "a/pyproject.toml"
    assert find_settings([tmp_path / "a/b/c.py", tmp_path / "x.py"]) == tmp_path / "pyproject.toml"


def test_ignores_per_file_and_excluded_paths(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"src/a.py": "bad\n", "src/gen/b.py": "bad\n", "tests/a.py": "bad\nwrong()\n", "build2/c.py": "bad\n"},
    )
    found = settings(
        root=tmp_path, per_file_ignores={"tests/**": ("bad-name",), "src/*.py": ("MOD9",)}, exclude=("gen", "build?")
    )
    assert places(lint(tmp_path, using=found).findings) == ["a.py:2 MOD911"]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a.py", "x/y/a.py", True),
        ("y", "x/y/a.py", True),
        ("*.py", "x/y/a.py", True),
        ("x/y", "x/y/a.py", True),
        ("x/y/", "x/y/a.py", True),
        ("./x", "x/y/a.py", True),
        ("x/*", "x/y/a.py", True),
        ("x/*.py", "x/y/a.py", False),
        ("x/**/a.py", "x/a.py", True),
        ("x/**/a.py", "x/b/c/a.py", True),
        ("**/a.py", "x/b/c/a.py", True),
        ("y/a.py", "x/y/a.py", False),
        ("x", "xx/a.py", False),
        ("a", "../a/b.py", False),
        ("[ab].py", "a.py", False),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, HERE / path, HERE) is expected


def test_patterns_without_pathspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pathspec", None)
    with pytest.raises(
        LintError, match=r"'\*_unseen\.py': patterns need pathspec, which is not installed: pip install"
    ):
        matches("*_unseen.py", HERE / "a.py", HERE)
