"""What is undone when something fails, and what is done nevertheless."""

from __future__ import annotations

from tests.mutants.edits import Body, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["FAILURES"]

FAILURES = Room(
    first=("test_enabling", "test_running", "test_ending", "test_upgrading", "test_descriptors"),
    mutants=[
        Mutant(
            "the first component stays hooked when the second fails", "Changeover.__exit__", Drop("_.attempt(...)")
        ),
        Mutant("other settings are not undone", "Changeover._replace", Drop("self.undo_with(...)")),
        Mutant("what was on the device stays on the host", "Devices.bring_back", Body("return")),
        Mutant("weights that went to disk are copied back", "Originals.give_back", Body("return frozenset()")),
        Mutant("a whole component does not come back", "Changeover.move", Drop("self.undo_with(...)")),
        Mutant("what was prepared is not dropped", "Attachment.abandon", Drop("_.forget()")),
        Mutant("stock hooks are gone after a failed upgrade", "RemovedHooks.put_back", Body("return")),
        Mutant("an error ends the tear-down", "Failures.attempt", Replace("return False", "raise")),
        Mutant("what failed while tearing down is not tried again", "Failures.retry", Body("return")),
        Mutant("an interruption is swallowed", "Failures.attempt", Drop("_.append(error)")),
        Mutant("weights that stay on disk are not named", "failures:_note", Body("return")),
        Mutant("memory of a copy that did not start is kept", "CopyEngine._drop_unsent", Body("return")),
        Mutant("no memory to compare in: nothing is stored", "are_stored", Replace("False", "True")),
        Mutant("a frame that failed to end is not compared", "ForwardPass.exit", Drop("self.compare = _")),
        Mutant("hooks are lost with the inventory that failed", "Attachment._refresh", Drop("self._put_hooks_back()")),
        Mutant("a message without its descriptor is taken", "rendezvous:_offer", Never("descriptor is None")),
        Mutant("out of descriptors: the checkpoint is not used", "KnownRanges._first_equal", Never("is_shortage(_)")),
        Mutant("out of descriptors: a wrong argument", "resolve_directory", Never("is_shortage(_) or _")),
    ],
)
