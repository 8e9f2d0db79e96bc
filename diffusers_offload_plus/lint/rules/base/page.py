"""The page of a rule: why it matters, what to write instead, and examples, read from the file beside its module."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .examples import BODY_LINE, blocks_example

__all__ = ["Example", "Page", "read_page"]

_FAMILY = "diffusers/modular_pipelines/toy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Source that a rule flags, or does not.

    Attributes:
        source: the file's text.
        path: the path it is linted as, relative to a source tree that holds ``diffusers``.
        lines: the lines that the rule has to report; none for a valid example.
        note: one line about what the example shows.
    """

    source: str
    path: str = f"{_FAMILY}/denoise.py"
    lines: tuple[int, ...] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """What users can read about a rule.

    Attributes:
        why: why it matters to users of the blocks; ``instead``: what to write instead.
        allowed: what is deliberately not flagged, a sentence each.
        gotcha: the intent of the original gotcha that the rule comes from, in our own words; empty if there is none.
        invalid, valid: examples that the rule flags, and examples that it does not flag.
    """

    why: str
    instead: str
    allowed: tuple[str, ...] = ()
    gotcha: str = ""
    invalid: tuple[Example, ...] = ()
    valid: tuple[Example, ...] = ()


def read_page(module: Path, code: str) -> Page:
    """The page of the rule ``code``, from the TOML file beside the Python file ``module`` that defines the rule.

    An example is either a whole ``source``, or the ``body`` of a block's ``__call__`` with what the block declares;
    ``at`` counts the lines of the body from 1, ``lines`` those of the whole source.
    """
    data = _read(module.with_suffix(".toml"))[code]
    examples = {kind: tuple(map(_example, data[kind])) for kind in ("invalid", "valid")}
    return Page(
        why=data["why"],
        instead=data["instead"],
        allowed=tuple(data.get("allowed", ())),
        gotcha=data.get("gotcha", ""),
        **examples,
    )


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    import tomllib  # linting reads no pages

    return tomllib.loads(path.read_text(encoding="utf-8"))


def _example(data: Mapping[str, Any]) -> Example:
    given = dict(data)
    place = {"path": given.pop("path", f"{_FAMILY}/{given.pop('file', 'denoise.py')}"), "note": given.pop("note", "")}
    at, lines = given.pop("at", ()), tuple(given.pop("lines", ()))
    if "source" in given:
        return Example(source=given["source"], lines=lines, **place)
    before = given.pop("before", "")
    start = BODY_LINE + before.count("\n") - 1
    return Example(source=before + blocks_example(**given), lines=lines or tuple(start + line for line in at), **place)
