"""The ways to break the package that the suite has to notice, by what they break.

[Note: a stale mutant]
``tests/mutants/test_mutants.py`` fails for a mutant that no longer applies, and says why:

* *no function ... is called*: the function was renamed. Write its new name as the second argument of the mutant, with
  the module in front (``slabs:SlabPool.take``) where several have that name. Where its file lies does not matter.
* *no ... is like*, *more than one ... is like*: look at the function and name the place anew. The shortest pattern
  that is like one place only lasts longest: the name of what is called, ``_.wait_event(...)``, or the condition,
  ``Never("_ != self._stamp")``, rather than whole statements with the names of local variables. Where two places are
  alike, ``after=`` says behind what.
* *names what is not there*: what the mutant puts in uses a name from before. It would be noticed for that alone.
* *it makes no difference*: the code has the fault now, or the place does something else.

A mutant is the fault that its name says, not its edit: where the code changed more, find where it would have the fault
now. One whose fault cannot be made any more goes. Then see it killed: ``python -m tests.mutants --only "its name"``.
"""

from __future__ import annotations

from tests.mutants.changes.budgets import BUDGETS
from tests.mutants.changes.disk import DISK
from tests.mutants.changes.failures import FAILURES
from tests.mutants.changes.runtime import RUNTIME
from tests.mutants.changes.shared import SHARED
from tests.mutants.changes.transfer import TRANSFER
from tests.mutants.changes.weights import WEIGHTS

__all__ = ["ROOMS"]

ROOMS = [WEIGHTS, RUNTIME, TRANSFER, BUDGETS, DISK, SHARED, FAILURES]
