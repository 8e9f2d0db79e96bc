"""The formats: all show the same findings, each in a form its reader understands."""

from __future__ import annotations

import itertools
import json
import re
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diffusers_offload_plus.lint.core.finding import Finding, Level, Origin
from diffusers_offload_plus.lint.core.text import display_width
from diffusers_offload_plus.lint.reading.location import installed_diffusers
from diffusers_offload_plus.lint.reporting.formats import FORMATS, formatter
from diffusers_offload_plus.lint.reporting.statistics import render_statistics
from diffusers_offload_plus.lint.reporting.text_format import render_text
from diffusers_offload_plus.lint.rules.registry import catalogue
from diffusers_offload_plus.lint.running.report import Report
from diffusers_offload_plus.lint.running.run import Request, run_lint
from diffusers_offload_plus.lint.settings.layers import Settings

from ..toy import CATALOGUE, lint, write

SCHEMA = json.loads((Path(__file__).parent / "data" / "sarif-2.1.0-rtm.5.json").read_text())

RULES = [rule for rule in CATALOGUE.rules if rule.code.startswith("MOD9")]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def findings(draw: st.DrawFn) -> Finding:
    rule = draw(st.sampled_from(RULES))
    line, column = draw(st.integers(1, 30)), draw(st.integers(1, 60))
    below = draw(st.integers(0, 3))
    return Finding(
        path="/".join(draw(st.lists(st.sampled_from(["a", "b c", "é", "x%y", "d,e"]), min_size=1, max_size=3)))
        + ".py",
        line=line,
        column=column,
        code=rule.code,
        message=draw(TEXT) or "-",
        end_line=line + below,
        end_column=draw(st.integers(1, 60)) if below else column + draw(st.integers(0, 40)),
        name=rule.name,
        level=draw(st.sampled_from([Level.ERROR, Level.WARNING, Level.INFO])),
        kind=draw(st.sampled_from(["", "worse"])),
        fixable=draw(st.booleans()),
        origin=draw(st.sampled_from(Origin)),
    )


@st.composite
def reports(draw: st.DrawFn) -> Report:
    found = sorted(draw(st.lists(findings(), max_size=12)))
    text = "\n".join(draw(st.lists(TEXT, max_size=20)))
    return Report(findings=found, files=sorted({one.path for one in found}), rules=RULES, text=lambda path: text)


Row = tuple[str, str, int, int]


def rows(found: list[Finding]) -> Counter[Row]:
    return Counter((one.path, one.code, one.line, one.column) for one in found)


def from_json(text: str) -> Counter[Row]:
    return Counter((one["path"], one["code"], one["line"], one["column"]) for one in json.loads(text))


def from_sarif(text: str) -> Counter[Row]:
    found: Counter[Row] = Counter()
    for result in json.loads(text)["runs"][0]["results"]:
        place = result["locations"][0]["physicalLocation"]
        path = urllib.parse.unquote(place["artifactLocation"]["uri"])
        found[path, result["ruleId"], place["region"]["startLine"], place["region"]["startColumn"]] += 1
    return found


def from_github(text: str) -> Counter[tuple[str, str, int]]:
    def plain(value: str) -> str:
        for escaped, character in (("%3A", ":"), ("%2C", ","), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
            value = value.replace(escaped, character)
        return value

    found: Counter[tuple[str, str, int]] = Counter()
    for line in text.split("\n")[:-1]:
        match = re.fullmatch(r"::(error|warning|notice) ([^:]*)::(.*)", line)
        assert match, line
        values = dict(pair.split("=", 1) for pair in match[2].split(","))
        found[plain(values["file"]), plain(values["title"]).split()[0], int(values["line"])] += 1
    return found


def from_text(text: str) -> Counter[Row]:
    found: Counter[Row] = Counter()
    path = ""
    for line in text.split("\n"):
        match = re.match(r"  (\d+):(\d+) +(?:error|warning|info) +(MOD\d+[a-z]?)  ", line)
        if match:
            found[path, match[3], int(match[1]), int(match[2])] += 1
        elif line.endswith(".py"):
            path = line
    return found


@hypothesis_settings(deadline=None)
@given(reports())
def test_every_format_shows_the_same_findings(report: Report) -> None:
    expected = rows(list(report.findings))
    assert from_json(formatter("json")(report)) == expected
    assert from_sarif(formatter("sarif")(report)) == expected
    assert from_text(formatter("text")(report)) == expected
    assert from_github(formatter("github")(report)) == Counter(one[:3] for one in expected.elements())
    counts = json.loads(render_statistics(report, "json"))
    assert sum(row["count"] for row in counts) == expected.total()


@hypothesis_settings(deadline=None)
@given(reports())
def test_sarif_is_valid(report: Report) -> None:
    jsonschema.Draft4Validator(SCHEMA).validate(json.loads(formatter("sarif")(report)))


def test_a_real_family_in_every_format() -> None:
    diffusers = installed_diffusers()
    assert diffusers is not None
    family = diffusers / "modular_pipelines" / "flux"
    report = run_lint(Request(paths=[family], settings=Settings(catalogue())))
    expected = rows(list(report.findings))
    assert expected.total() > 10
    assert from_json(formatter("json")(report)) == expected
    assert from_text(formatter("text")(report)) == expected
    assert from_github(formatter("github")(report)).total() == expected.total()
    log = formatter("sarif")(report)
    assert from_sarif(log).total() == expected.total()
    jsonschema.Draft4Validator(SCHEMA).validate(json.loads(log))


def real(tmp_path: Path, text: str = "x = bad\nwrong(\n)\n") -> Report:
    write(tmp_path, {"a.py": text})
    return lint(tmp_path / "a.py")


def test_json_says_everything(tmp_path: Path) -> None:
    first = json.loads(formatter("json")(real(tmp_path)))[0]
    assert first == {
        "code": "MOD901",
        "name": "bad-name",
        "kind": "",
        "path": str(tmp_path / "a.py"),
        "cell": None,
        "line": 1,
        "column": 5,
        "end_line": 1,
        "end_column": 8,
        "message": "this is bad-name, 100% sure: yes",
        "level": "error",
        "fixable": True,
        "origin": "static",
    }


def test_nothing_found_is_well_formed_in_every_format(tmp_path: Path) -> None:
    report = real(tmp_path, "good\n")
    assert [formatter(name)(report) for name in FORMATS[:3]] == ["No findings in 1 file.\n", "[]\n", ""]
    assert json.loads(formatter("sarif")(report))["runs"][0]["results"] == []
    assert render_statistics(report, "text") == "no findings\n"


def test_github_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert formatter("github")(real(tmp_path)).splitlines() == [
        "::error file=a.py,line=1,endLine=1,col=5,endColumn=8,title=MOD901 bad-name::"
        "this is bad-name, 100%25 sure: yes",
        "::notice file=a.py,line=2,endLine=3,title=MOD911 bad-call::this is bad-call, 100%25 sure: yes",
    ]


def test_a_message_cannot_issue_a_command_of_its_own() -> None:
    evil = Finding("a,b:c.py", 1, 1, "MOD901", "x\n::stop-commands::%0A", 1, 2, "bad-name", Level.ERROR)
    shown = formatter("github")(Report(findings=[evil], files=[], rules=RULES, text=lambda path: ""))
    assert shown == (
        "::error file=a%2Cb%3Ac.py,line=1,endLine=1,col=1,endColumn=2,title=MOD901 bad-name::"
        "x%0A::stop-commands::%250A\n"
    )


def test_sarif_paths_are_relative_and_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"one two/é%.py": "bad\n"})
    log: Any = json.loads(formatter("sarif")(lint(Path())))
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": "one%20two/%C3%A9%25.py"}


def test_a_fingerprint_stays_when_lines_move(tmp_path: Path) -> None:
    def prints(text: str) -> list[str]:
        log = json.loads(formatter("sarif")(real(tmp_path, text)))
        return [result["partialFingerprints"]["offloadPlusLine/v1"] for result in log["runs"][0]["results"]]

    first = prints("bad\nbad\n")
    assert len(set(first)) == 2
    assert prints("x = 1\n\nbad\nbad\n") == first


def test_the_caret_stands_below_what_it_is_about(tmp_path: Path) -> None:
    lines = render_text(real(tmp_path, "def f():\n\tif x: y = '漢字é', bad\n")).split("\n")
    assert lines[1].startswith("  2:19  error  MOD901  this is bad-name")
    assert lines[2].endswith("', bad")
    # 8 columns of margin, 12 characters of one column, 2 of two, and what stands between them and the name.
    assert lines[3] == "      | " + " " * 19 + "^^^"


def test_source_cannot_control_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.py"
    path.write_text("x = '\x1b]0;title\x07\u202e', bad\n")
    shown = render_text(lint(path))
    assert shown.isprintable() or not any(ord(one) < 32 and one != "\n" for one in shown)
    assert "\\x1b]0;title\\x07\\u202e" in shown
    assert "a\\x1b[31m.py" in shown


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_long_lines_fit_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a.py": f"x = [{'1, ' * 60} bad, {'2, ' * 60}]\nwrong({'3, ' * 60})\n{'漢' * 80}, bad\n"})
    report = lint(Path("a.py"))
    lines = render_text(report, width=width).split("\n")
    assert max(map(display_width, lines)) <= max(width, 40)
    for source, caret in itertools.pairwise(lines):
        if caret.strip(" |").startswith("^") and "bad" in source:
            assert display_width(source[: source.index("bad")]) == caret.index("^")


def test_colours_are_only_there_on_request(tmp_path: Path) -> None:
    report = real(tmp_path)
    assert "\033" not in render_text(report)
    painted = render_text(report, colour=True)
    assert "\033[31merror" in painted
    assert re.sub(r"\033\[[0-9;]*m", "", painted) == render_text(report)


def test_statistics(tmp_path: Path) -> None:
    report = real(tmp_path, "bad\nbad\nworse\nwrong()\n")
    assert render_statistics(report, "text").splitlines() == [
        "2  MOD901  error    bad-name  (2 fixable)",
        "1  MOD901  warning  bad-name  (1 fixable)",
        "1  MOD911  info     bad-call",
        "4  in 1 file",
    ]
