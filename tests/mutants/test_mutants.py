"""Every mutant applies to the source as it is; see [Note: a stale mutant] in :mod:`tests.mutants.changes`."""

from __future__ import annotations

import collections
import pathlib

import pytest

from tests.mutants import changes
from tests.mutants.changes import ROOMS
from tests.mutants.functions import Package
from tests.mutants.mutant import Mutant, Room, mutated

TESTS = pathlib.Path(__file__).parents[1]
MUTANTS = [mutant for room in ROOMS for mutant in room.mutants]


@pytest.fixture(scope="module")
def package() -> Package:
    return Package(TESTS.parent / "diffusers_offload_plus")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_it_applies_and_changes_one_function(mutant: Mutant, package: Package) -> None:
    _, text = mutated(mutant, package)  # which sees to it that one place is meant, and that the result can run
    function = package.function(mutant.where)
    lines, end = function.source.decode().splitlines(), function.node.end_lineno
    assert end is not None
    assert text.splitlines()[: function.node.lineno - 1] == lines[: function.node.lineno - 1]
    assert text.splitlines()[len(text.splitlines()) - len(lines) + end :] == lines[end:]


def test_each_has_a_name_of_its_own() -> None:
    assert [name for name, count in collections.Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []


def test_every_room_is_listed() -> None:
    files = {path.stem for path in pathlib.Path(changes.__file__).parent.glob("*.py")} - {"__init__"}
    listed = {name for name in files for value in vars(getattr(changes, name)).values() if value in ROOMS}
    assert listed == files


@pytest.mark.parametrize("room", ROOMS, ids=[f"{room.first[0]}, ..." for room in ROOMS])
def test_the_tests_that_come_first_exist(room: Room) -> None:
    assert [name for name in room.first if not list(TESTS.rglob(f"{name}.py"))] == []
