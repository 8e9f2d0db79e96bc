"""Asks another process to import the linted code and to say what its blocks declare."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..analysis.analyse import Analysis
from ..reading.source import Problem, Source
from .facts import BlockFacts
from .merging import Introspection

__all__ = ["introspect"]

_SECONDS = 600


def introspect(analysis: Analysis) -> Introspection:
    """Import the linted files that define blocks, instantiate the blocks, and collect what they declare."""
    project = analysis.project
    request = [_item(source, names) for source, names in _classes(analysis)]
    facts: dict[tuple[str, str], BlockFacts] = {}
    problems: list[Problem] = []
    answered = set()
    for answer in _answers(request):
        path = answer["path"]
        answered.add(path)
        if answer["error"]:
            problems.append(Problem(path, 1, f"cannot be imported: {answer['error']}"))
        for name, data in answer["blocks"].items():
            facts[path, name] = BlockFacts.from_data(data)
        for name, error in answer["errors"].items():
            line = next(
                block.info.node.lineno for block in project.blocks if (block.source.path, block.name) == (path, name)
            )
            problems.append(Problem(path, line, f"{name} cannot be instantiated: {error}"))
    untried = [item["path"] for item in request if item["path"] not in answered]
    if untried:  # those after the first were never tried
        message = f"importing it ended the importing process, or took more than {_SECONDS} seconds"
        problems.append(Problem(untried[0], 1, message))
    return Introspection(project, facts, problems)


def _classes(analysis: Analysis) -> Iterator[tuple[Source, list[str]]]:
    found: dict[Source, list[str]] = {}
    for block in analysis.project.blocks:
        found.setdefault(block.source, []).append(block.name)
    yield from found.items()


def _item(source: Source, classes: list[str]) -> dict[str, Any]:
    depth = source.module.count(".") + (2 if source.package else 1)
    path = Path(os.path.abspath(source.path))
    return {"path": source.path, "module": source.module, "root": str(path.parents[depth - 1]), "classes": classes}


def _answers(request: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    if not request:
        return
    reading, writing = os.pipe()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",  # declaring needs nothing from a hub
        "PYTHONPATH": os.pathsep.join([_home(), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        environment.setdefault(name, "error")
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child", str(writing)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what libraries say when they are imported is not about the linted code
            pass_fds=[writing],
            env=environment,
        )
    finally:
        os.close(writing)
    overdue = threading.Timer(_SECONDS, child.kill)
    overdue.start()
    try:
        with child, os.fdopen(reading, encoding="utf-8") as answers:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it is gone already; what it did not answer tells
                child.stdin.write(json.dumps(request).encode())
                child.stdin.close()
            for line in answers:
                if line.endswith("\n"):  # the last one is cut off if the linted code ends the process
                    yield json.loads(line)
    finally:
        overdue.cancel()


def _home() -> str:
    """The folder that this package is imported from, for the other process."""
    return str(Path(__file__).resolve().parents[3])
