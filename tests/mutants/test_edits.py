"""The edit language: what edits make of the source, and what is said where they do not apply."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests.mutants.edits import After, Always, AtEnd, Before, Body, Drop, Edit, Never, Replace
from tests.mutants.functions import Package
from tests.mutants.mutant import Mutant, mutated
from tests.mutants.patterns import Stale

SOURCE = '''"""Ümlauts count as two bytes."""
import os

LIMIT = 3


class Pool:
    def take(self, nbytes):
        """The slot."""
        slots = self._free.get(nbytes)  # ü
        if slots is None or (
            self.closed  # said late
        ):
            return None
        elif nbytes > LIMIT:
            self.log("ü", "large", level=2)
        for slot in slots:
            self.check(slot, nbytes + 1)
            self.log(slot)
        return slots.pop(0)

    def give(self, slot):
        self._free.append(slot)
        self.settle()
        if slot.old:
            self.settle()


def total(values):
    return sum(value * 2 for value in values if value)
'''

Make = Callable[[str, Edit], str]


@pytest.fixture
def made(tmp_path: pathlib.Path) -> Make:
    """The lines that an edit changes, as "- old" and "+ new"."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "pool.py").write_text(SOURCE)

    def make(where: str, edit: Edit) -> str:
        _, text = mutated(Mutant("a fault", where, edit), Package(tmp_path))
        old, new = SOURCE.splitlines(), text.splitlines()
        while old and new and old[0] == new[0]:
            del old[0], new[0]
        while old and new and old[-1] == new[-1]:
            del old[-1], new[-1]
        return "\n".join([*(f"-{line}" for line in old), *(f"+{line}" for line in new)])

    return make


@pytest.mark.parametrize(
    ("where", "edit", "expected"),
    [
        pytest.param(
            "total", Replace("value*2", "value"),
            "-    return sum(value * 2 for value in values if value)\n"
            "+    return sum((value) for value in values if value)", id="an expression",
        ),
        pytest.param(
            "total", Replace("_ * _1", "_1 * 3"),
            "-    return sum(value * 2 for value in values if value)\n"
            "+    return sum(((2) * 3) for value in values if value)", id="what a wildcard stands for",
        ),
        pytest.param(
            "total", Never("_"),
            "-    return sum(value * 2 for value in values if value)\n"
            "+    return sum(value * 2 for value in values if (False))", id="a condition of a comprehension",
        ),
        pytest.param(
            "Pool.take", Replace("slots is None or self.closed", "self.closed"),
            "-        if slots is None or (\n-            self.closed  # said late\n-        ):\n"
            "+        if (self.closed):", id="over several lines, through a comment",
        ),
        pytest.param(
            "Pool.take", Always("_ > LIMIT"),
            "-        elif nbytes > LIMIT:\n+        elif (True):", id="an elif",
        ),
        pytest.param(
            "Pool.take", Drop("self.log(_, 'large', level=_)"),
            '-            self.log("ü", "large", level=2)\n+            pass', id="behind two-byte characters",
        ),
        pytest.param(
            "Pool.take", Drop("self.log(..., level=2)"),
            '-            self.log("ü", "large", level=2)\n+            pass', id="any arguments and one by name",
        ),
        pytest.param(
            "Pool.take", Drop("for _ in _: ..."),
            "-        for slot in slots:\n-            self.check(slot, nbytes + 1)\n-            self.log(slot)\n"
            "+        pass", id="a block",
        ),
        pytest.param(
            "Pool.take", Replace("self._(_1, _2 + 1)", "if _2:\n    self.check(_1)"),
            "-            self.check(slot, nbytes + 1)\n"
            "+            if (nbytes):\n+                self.check((slot))", id="a statement for an expression",
        ),
        pytest.param(
            "Pool.take", Before("self.check(...)", "if slot:\n    continue"),
            "+            if slot:\n+                continue", id="before",
        ),
        pytest.param(
            "Pool.take", After("self.check(_, _1)", "nbytes = _1\nslot = None"),
            "+            nbytes = (nbytes + 1)\n+            slot = None", id="after",
        ),
        pytest.param(
            "Pool.give", Drop("self.settle()", after="slot.old"),
            "-            self.settle()\n+            pass", id="behind a mark",
        ),
        pytest.param("Pool.give", AtEnd("os.remove(slot)"), "+        os.remove(slot)", id="at the end"),
        pytest.param(
            "pool:Pool.give", Body("return True"),
            "-        self._free.append(slot)\n-        self.settle()\n"
            "-        if slot.old:\n-            self.settle()\n"
            "+        return True", id="all of it, named with its module",
        ),
    ],
)  # fmt: skip
def test_one_place_is_changed(made: Make, where: str, edit: Edit, expected: str) -> None:
    assert made(where, edit) == expected


@pytest.mark.parametrize(
    ("where", "edit", "message"),
    [
        ("Pool.taek", Body("pass"), r"no function of the package is called Pool.taek; there are Pool.take"),
        ("slots:Pool.take", Body("pass"), r"no function of the package is called slots:Pool.take"),
        ("total", Drop("settle()"), r"no statement of total \(pool.py, line 29\) is like `settle\(\)`"),
        ("total", Replace("value * True", "1"), r"no expression of total"),
        ("total", Replace("_1 * _1", "1"), r"no expression of total"),
        ("Pool.give", Drop("self.settle()"), r"more than one statement of Pool.give .*: on lines 24, 26"),
        ("Pool.give", Drop("self.settle()", after="slot.new"), r"no expression of Pool.give .* is like `slot.new`"),
        ("Pool.give", Drop("self._free", after="slot.old"), r"no statement .* `self._free` after `slot.old`"),
        ("Pool.give", Never("slot"), r"no condition of Pool.give"),
        ("Pool.take", Drop("if _ > LIMIT: ..."), r"line 15 is an `elif`, which Never and Always change"),
        ("Pool.take", AtEnd("pass"), r"nothing comes after its last statement, `return slots.pop\(0\)`"),
        ("total", Replace("sum(", "1"), r"the pattern `sum\(` is not Python"),
        ("total", Replace("a; b", "1"), r"the pattern `a; b` is not one expression or statement"),
        ("total", Replace("_ * _", "_"), r"`_` of `_` stands for 2 places of the pattern: number them"),
        ("total", Replace("_ * 2", "_1"), r"`_1` of `_1` stands for no places of the pattern"),
        ("total", Replace("value * 2", "(value * 2)"), r"total .*: it makes no difference"),
        ("total", Body("break"), r"total .*: not Python any more: 'break' outside loop"),
        ("total", Body("return valeus"), r"names what is not there: valeus"),
        ("Pool.take", Replace("self._free", "self._fere"), r"names what is not there: _fere"),
        ("Pool.give", AtEnd("os.remoev(slot)"), r"names what is not there: remoev"),
    ],
)
def test_what_does_not_apply_is_refused(made: Make, where: str, edit: Edit, message: str) -> None:
    with pytest.raises(Stale, match=message):
        made(where, edit)


def test_names_that_several_have_need_their_module(tmp_path: pathlib.Path) -> None:
    for name in ("left", "right"):
        (tmp_path / f"{name}.py").write_text("def run():\n    return 1\n")
    package = Package(tmp_path)
    with pytest.raises(Stale, match=r"2 functions are called run; say which, as in left:run"):
        package.function("run")
    assert package.function("right:run").file.name == "right.py"


def test_moves_and_reformatting_make_no_difference(tmp_path: pathlib.Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "renamed.py").write_text(
        "def total(values):\n    return sum(\n        value\n        * 2  # twice\n        for value in values)\n"
    )
    _, text = mutated(Mutant("a fault", "total", Replace("value * 2", "value")), Package(tmp_path))
    assert text == "def total(values):\n    return sum(\n        (value)  # twice\n        for value in values)\n"
