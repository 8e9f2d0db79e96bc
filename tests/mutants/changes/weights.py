"""A group's weights: which move together, where they are, and what was written to them."""

from __future__ import annotations

from tests.mutants.edits import Always, AtEnd, Before, Body, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["WEIGHTS"]

WEIGHTS = Room(
    first=(
        "test_figures",
        "test_budgets",
        "test_inputs",
        "test_broken_engines",
        "test_buffers",
        "test_ties_and_views",
        "test_user_changes",
        "test_failures",
        "test_tensor_subclasses",
        "test_training",
        "test_claims_and_copies",
        "test_copies_and_state",
    ),
    mutants=[
        Mutant("onload does nothing", "WeightGroup._lend", AtEnd("self.offload()")),
        Mutant("the parameter is not re-pointed", "WeightGroup._lend", Drop("repoint(...)")),
        Mutant(
            "views are one alignment off", "lay_out", Replace("-(-_ // ALIGNMENT)", "max(0, -(-_ // ALIGNMENT) - 1)")
        ),
        Mutant(
            "the last tensor of a slab is not copied",
            "HostSlab.__init__",
            Replace("_copy_bytes(_1, _2)", "_copy_bytes(_1, _2) if _1 is not sources[-1] else None"),
        ),
        Mutant(
            "a shared tensor moves with its first unit only",
            "take_inventory",
            Replace("_.setdefault(_1, set()).add(_2)", "users.setdefault(_1, {_2})"),
        ),
        Mutant("ties are not seen", "_clusters", Replace("_[1:]", "_[:0]")),
        Mutant("offload does not restore", "WeightGroup.offload", Drop("repoint(...)")),
        Mutant("an in-place write on the device is dropped", "WeightGroup._keep_writes", Never("_.is_buffer or ...")),
        Mutant("bytes are not compared", "WeightGroup._keep_writes", Never("compare")),
        Mutant(
            "re-pointed on the device: dropped",
            "WeightGroup._keep_writes",
            Replace("self._adopt(_1)", "repoint(tensor, _1.host)"),
        ),
        Mutant("re-pointed on the host: not noticed", "WeightGroup._at_home", Body("return True")),
        Mutant(
            "written under a prefetch: not noticed", "WeightGroup.onload", Replace("_ != self._versions()", "False")
        ),
        Mutant("what is kept was re-pointed: not noticed", "WeightGroup.onload", Always("all(...)")),
        Mutant("only root parameters of wrappers are re-pointed", "repoint", Drop("setattr(...)")),
        Mutant("pinned memory is kept after disable", "WeightGroup.leave", Replace('_ != "host"', '_ == "disk"')),
        Mutant("saved weights are kept", "SavedWeights._pack", Always("_ is None")),
        Mutant("gradients stay on the device", "SavedWeights.land", Before("_ = _.to(...)", "return")),
    ],
)
