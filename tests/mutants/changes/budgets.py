"""Budgets of device memory: those that are given, and those that are measured."""

from __future__ import annotations

from tests.mutants.edits import Always, Body, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["BUDGETS"]

BUDGETS = Room(
    first=(
        "test_budgets",
        "test_auto_budget",
        "test_figures",
        "test_broken_engines",
        "test_failures",
        "test_residency",
        "test_fitting",
        "test_preview",
        "test_virtual_step",
    ),
    mutants=[
        Mutant("the device budget is not kept", "bytes_for_groups", Body("return 2 * limit")),
        Mutant("nobody gives memory up", "DeviceBudget.reserve", Always("self.limit is None or ...")),
        Mutant(
            "auto: weights that come and go are not told from what is beside them",
            "DeviceBudget.note_change",
            Drop("self._note_activations()"),
        ),
        Mutant("auto: larger inputs are not measured", "AutoLimit.begin", Replace("size > _", "False")),
        Mutant("auto: what is over a smaller limit stays", "DeviceBudget._shrink", Never("_ > 0")),
        Mutant("auto: a pass that failed counts as measured", "AutoLimit.end", Drop("self._needs.pop(...)")),
        Mutant(
            "auto: what others put on the device is not looked at",
            "AutoLimit._limit_of",
            Replace("self.capacity - _", "self.capacity"),
        ),
        Mutant(
            "auto: a pass inside another hides what that needs",
            "AutoLimit.note",
            Replace("self._records", "self._records[-1:]"),
        ),
        Mutant(
            "auto: the choice of before the measurement stays", "OffloadEngine._begin", Never("_ != self._cached_for")
        ),
        Mutant("auto: what is freed during a pass hides what that needs", "AutoLimit.note", Drop("_.lowest = _")),
        Mutant("auto: the limit of the pass inside stays", "DeviceBudget._measured", Never("_ is not None")),
        Mutant("auto: no limit while training", "AutoLimit.begin", Replace("_1 or torch.is_grad_enabled()", "_1")),
        Mutant(
            "what a cast made too large for the limit stays",
            "DeviceBudget._measured",
            Drop("self._shrink(...)", after="self.auto.end(...)"),
        ),
        Mutant("what is cached is streamed through too", "choose_cached", Replace("budget - sum(...)", "budget")),
        Mutant("more is cached than there is memory", "residency:_filled", Always("_ <= left")),
        Mutant("a spread takes more than its share", "evenly_spread", Replace("_ <= nbytes", "True")),
        Mutant("blocks are kept however large", "streams_well", Body("return True")),
        Mutant("blocks are always cut", "streams_well", Body("return False")),
    ],
)
