"""Copies to the device: who waits for whom, whose memory is used again, and what waiting cost."""

from __future__ import annotations

from tests.mutants.edits import Body, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["TRANSFER"]

TRANSFER = Room(
    first=(
        "test_figures",
        "test_budgets",
        "test_stalls",
        "test_inputs",
        "test_broken_engines",
        "test_user_changes",
        "test_failures",
        "test_claims_and_copies",
        "test_training",
    ),
    mutants=[
        Mutant("no wait before a read", "Transfer.wait", Drop("_.wait_event(...)")),
        Mutant("no wait before an overwrite", "Link.start", Drop("_.wait_stream(...) if _ else _")),
        Mutant("memory is reused before it is free", "Link.start", Replace("_.wait_event(...)", "None")),
        Mutant("freed before it was used", "Transfer.wait", Drop("_.record_stream(...)")),
        Mutant("a prefetch is dropped while under way", "Transfer.cancel", Drop("self.wait()")),
        Mutant("memory that somebody holds is reused", "Link.let_go", Never("not held_alone(...)")),
        Mutant("a pass that failed counts among those measured", "Waits.end", Replace("_1 and finished", "_1")),
        Mutant("events are read before they have happened", "Waits._is_over", Body("return True")),
        Mutant("every pass is measured", "Waits.begin", Never("_ > FIRST and ...")),
        Mutant("passes that learn count among those that know", "Waits.begin", Replace("_Pass(...)", "_Pass(True)")),
        Mutant("an early group makes up for a late one", "Waits._read", Replace("max(0.0, _1)", "_1")),
    ],
)
