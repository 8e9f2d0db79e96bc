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
        "test_arguments",
        "test_broken_engines",
        "test_user_changes",
        "test_failures",
        "test_claims_and_copies",
        "test_training",
        "test_streams",
        "test_tensor_subclasses",
    ),
    mutants=[
        Mutant("no wait before a read", "Transfer._order", Drop("_.wait_event(...)")),
        Mutant("a second stream does not wait", "Transfer._order", Replace("_ in streams", "bool(streams)")),
        Mutant("no wait before an overwrite", "CopyEngine._start", Drop("_.wait_stream(...)")),
        Mutant("memory is reused before it is free", "CopyEngine._wait_until_free", Drop("_.wait_event(...)")),
        Mutant("nobody knows when memory is free", "SlabPool.give", Replace("[_ for _ in _.streams.values()]", "[]")),
        Mutant("freed before it was used", "Transfer._order", Drop("_.record_stream(...)")),
        Mutant("a prefetch is dropped while under way", "Transfer.cancel", Drop("self._order(...)")),
        Mutant("memory that somebody holds is reused", "DeviceSlab.is_held_elsewhere", Body("return False")),
        Mutant(
            "memory of inner tensors that somebody holds is reused",
            "DeviceSlab.is_held_elsewhere",
            Replace("bool(_) and ...", "False"),
        ),
        Mutant("our own views pass for somebody's", "ParamGroup._views_over", Drop("_.note_views(...)")),
        Mutant("a pass that failed counts among those measured", "StallTimer.end", Replace("_1 and finished", "_1")),
        Mutant("events are read before they have happened", "StallTimer._is_over", Body("return True")),
        Mutant("every pass is measured", "StallTimer.begin", Never("_ > FIRST and ...")),
        Mutant(
            "passes that learn count among those that know", "StallTimer.begin", Replace("_Pass(...)", "_Pass(True)")
        ),
        Mutant("an early group makes up for a late one", "StallTimer._read", Replace("max(0.0, _1)", "_1")),
    ],
)
