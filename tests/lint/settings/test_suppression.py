"""Comments that suppress findings, and those that suppress nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffusers_offload_plus.lint.settings.suppression import comments

from ..toy import lint, places, settings


def found(path: Path, text: str, **keys: object) -> list[str]:
    path.write_text(text)
    return places(lint(path, using=settings(**keys) if keys else None).findings)


@pytest.mark.parametrize(
    "comment",
    [
        "# noqa",
        "# noqa: MOD901",
        "#noqa:MOD901",
        "# NOQA : mod901",
        "# noqa: E501, MOD901",
        "# noqa: MOD901 the name is what the checkpoint calls it",
        "# noqa: MOD901 - see the paper",
        "# type: ignore  # noqa: MOD901",
    ],
)
def test_a_comment_suppresses_the_finding_of_its_line(comment: str, tmp_path: Path) -> None:
    assert found(tmp_path / "a.py", f"bad  {comment}\nbad\n") == ["a.py:2 MOD901"]


@pytest.mark.parametrize(
    "line", ["bad; '# noqa: MOD901'", "bad  # noqa: E501", "bad  # nonoqa", 'bad; f"{x}# noqa"', "bad  # noq: MOD901"]
)
def test_what_does_not_suppress(line: str, tmp_path: Path) -> None:
    assert found(tmp_path / "a.py", f"{line}\n") == ["a.py:1 MOD901"]


def test_any_line_of_the_finding_may_hold_the_comment(tmp_path: Path) -> None:
    text = (
        "wrong(\n    1,\n    2,  # noqa: MOD911\n)\nwrong(\n    1,\n)  # noqa: MOD911 why\nwrong(\n)\n# noqa: MOD911\n"
    )
    assert found(tmp_path / "a.py", text) == ["a.py:8 MOD911", "a.py:10 MOD100"]


def test_a_whole_file(tmp_path: Path) -> None:
    text = "bad\nwrong()\n# offload-plus: noqa: MOD901 generated\nbad\n"
    assert found(tmp_path / "a.py", text) == ["a.py:2 MOD911"]
    assert found(tmp_path / "a.py", "bad\nwrong()\n# offload-plus: noqa\n") == []
    assert found(tmp_path / "a.py", "good\n# offload-plus: noqa: MOD901\n") == ["a.py:2 MOD100"]


def test_unused_codes_are_reported_at_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("bad  # noqa: MOD901, MOD911, MOD777, MOD901\n")
    report = lint(path)
    assert [(one.column, one.end_column, one.message) for one in report.findings] == [
        (22, 28, "noqa names MOD911, but that rule reports nothing here"),
        (30, 36, "noqa names MOD777, but there is no such rule"),
        (38, 44, "noqa names MOD901 twice"),
    ]
    assert report.suppressed == 1


def test_unused_is_only_said_of_rules_that_ran(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    assert found(path, "good  # noqa: MOD911\n", select=("MOD901", "MOD100")) == []
    assert found(path, "good  # noqa: MOD911\n", select=("MOD911",)) == []
    ignored = {"a.py": ("MOD911",)}
    assert found(path, "wrong()  # noqa: MOD911\n", per_file_ignores=ignored, root=tmp_path) == []
    assert found(path, "good  # noqa: MOD911, MOD100\n") == []
    assert found(path, "good  # noqa\n") == []


def test_comments_can_be_disregarded(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("bad  # noqa\n")
    assert places(lint(tmp_path, noqa=False).findings) == ["a.py:1 MOD901"]


def test_an_unreadable_file_cannot_be_suppressed(tmp_path: Path) -> None:
    assert found(tmp_path / "a.py", "# offload-plus: noqa\ndef f(:  # noqa\n") == ["a.py:2 MOD000"]


@hypothesis_settings(deadline=None)
@given(st.text())
def test_any_text_can_be_searched_for_comments(text: str) -> None:
    comments(text + "\n# noqa: MOD901")


LINES = st.sampled_from(["bad", "worse", "wrong()", "bad; wrong()", "class Bad: x = bad", "good", "", "'# noqa'"])
CODES = ("MOD901", "MOD902", "MOD911")


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(LINES, min_size=1, max_size=8), st.data())
def test_a_comment_removes_exactly_the_findings_it_names(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("noqa", numbered=True) / "a.py"
    path.write_text("\n".join(lines) + "\n")
    before = lint(path).findings
    number = data.draw(st.integers(1, len(lines)))
    code = data.draw(st.sampled_from(CODES))
    lines[number - 1] += f"  # noqa: {code} because"
    path.write_text("\n".join(lines) + "\n")
    after = lint(path).findings
    expected = [one for one in before if (one.line, one.code) != (number, code)]
    unused = [f"a.py:{number} MOD100"] if len(expected) == len(before) else []
    assert sorted(places(after)) == sorted(places(expected) + unused)
