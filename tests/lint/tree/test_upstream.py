"""The whole tree of modular pipelines of the installed diffusers, against its reviewed snapshot and the labels."""

import json
from pathlib import Path

import pytest

from .upstream import DOCUMENT, MARKER, found, key, reviewed, summary

LABELS = [json.loads(line) for line in (Path(__file__).parents[1] / "labels.jsonl").read_text().splitlines()]
# The labels of this rule stand at the class line; findings at the declaration that is not used.
AT_DECLARATION = {"MOD039"}
MOST_CERTAIN = {f"MOD{number:03}" for number in range(1, 21)}


@pytest.fixture(scope="module")
def rows():
    return found()


def test_findings_are_those_reviewed(rows):
    expected = [{name: row[name] for name in (*rows[0],)} for row in reviewed()]
    assert [row for row in rows if row not in expected] == []
    assert [row for row in expected if row not in rows] == []


def test_every_finding_has_a_verdict():
    for row in reviewed():
        assert row["verdict"] in ("violation", "debatable"), key(row)
        assert row["reason"], key(row)


def test_the_document_shows_the_snapshot():
    assert DOCUMENT.read_text().partition(MARKER)[2] == summary(reviewed())


def places(verdict, *confidences):
    return {
        (label["rule"], label["file"], label["line"])
        for label in LABELS
        if label["verdict"] == verdict and label["tree"] == "src" and (label["confidence"] in confidences)
    }


def test_no_certain_violation_is_missed(rows):
    flagged = {(row["code"], row["file"], row["line"]) for row in rows}
    missed = places("violation", "high") - flagged
    assert {place for place in missed if place[0] in MOST_CERTAIN} == set()
    assert missed == set()


def test_violations_of_middle_confidence_are_found(rows):
    flagged = {(row["code"], row["file"], row["line"]) for row in rows}
    assert {place for place in places("violation", "medium") - flagged if place[0] not in AT_DECLARATION} == set()


def test_no_allowed_exception_is_flagged(rows):
    flagged = {(row["code"], row["file"], row["line"]) for row in rows}
    assert places("allowed-exception", "high", "medium", "low") & flagged == set()
